"""Who may report, and for which node: service-account tokens of agents, asked of the Kubernetes API.

Contract: the receiver asks `admit` once for each stream, with the request's metadata, and the `Grant` once
for each batch. `admit` raises UNAUTHENTICATED for a token that is missing or not accepted, PERMISSION_DENIED
for a right token of someone else, UNAVAILABLE for what cannot be decided now; a grant raises
PERMISSION_DENIED for another node's name. No task, nothing to shut down.

What no honest agent sends (no token, none for us, expired, another account) is refused by what the token
itself says, without a question to the API; so only what claims to be right is asked about, one token once at
a time, few at once, and few that fail from one address. Answers are remembered for a minute, or until the
token ends, under the token's SHA-256: tokens themselves are not kept, and nothing of them is logged.
Everything kept is bounded, so that no number of tokens grows the process.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import msgspec
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from kubenetmon.clock import Clock
from kubenetmon.server.refusals import Reason, Refusals
from kubenetmon.waiting import retrieved

MAX_TOKEN_BYTES = 16 * 1024
_EXPIRY_LEEWAY = 60.0
"""Seconds that clocks may differ; the API decides in the end."""
_POD_PATIENCE = 5.0
"""Seconds to wait for the watch to bring a pod that has just started."""


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What the API says of a token. `node` is empty where it does not name one (before Kubernetes 1.30)."""

    username: str
    audiences: tuple[str, ...]
    pod_uid: str = ""
    pod_name: str = ""
    node: str = ""


class ReviewFailedError(Exception):
    """The API could not be asked; the text says why."""


class Reviewer(Protocol):
    """Whoever asks the API."""

    async def review(self, token: str, audience: str) -> Reviewed | None:
        """What the token is; None: nothing that the API accepts for that audience. Raises
        `ReviewFailedError`."""
        ...


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """`accounts` as namespace/name. Seconds: `remember` an acceptance, `remember_refusal`; after `failures`
    of one address within `failure_window` no more of its tokens are asked about."""

    audience: str = "kubenetmon-server"
    accounts: tuple[str, ...] = ("kubenetmon-agent/kubenetmon-agent",)
    remember: float = 60.0
    remember_refusal: float = 10.0
    most_remembered: int = 8192
    most_asked: int = 16
    most_waiting: int = 512
    failures: int = 20
    failure_window: float = 60.0


class Grant:
    """What one stream may do: report for one node, or for any."""

    def __init__(self, node: str | None, peer: str, refusals: Refusals) -> None:
        self._node, self._peer, self._refusals = node, peer, refusals
        self.denied = ""

    def check(self, node_name: str) -> None:
        """Raises PERMISSION_DENIED unless the stream may report for that node."""
        if self._node is None or node_name == self._node:
            return
        shown = node_name if len(node_name) <= 253 and node_name.isprintable() else "?"
        self.denied = f"the token is that of an agent on node {self._node}, the report is for {shown}"
        self._refusals.count("node", self._peer, self.denied)
        raise GRPCError(Status.PERMISSION_DENIED, self.denied)


class OpenAccess:
    """Everyone may report for every node, as with the original."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals

    async def admit(self, metadata: Mapping[str, Any], peer: str) -> Grant:
        """A grant for any node."""
        return Grant(None, peer, self._refusals)


class TokenAccess:
    """Agents show tokens."""

    def __init__(
        self,
        config: AccessConfig,
        *,
        reviewer: Reviewer,
        node_of_pod: Callable[[str], str | None],
        refusals: Refusals,
        clock: Clock,
    ) -> None:
        """`node_of_pod`: the node of the pod with that uid, None while there is none."""
        self._config = config
        self._reviewer = reviewer
        self._node_of_pod = node_of_pod
        self._refusals = refusals
        self._clock = clock
        self._accounts = {f"system:serviceaccount:{name.replace('/', ':')}" for name in config.accounts}
        self._known: OrderedDict[bytes, tuple[Reviewed | None, float]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Reviewed | None]] = {}
        self._turn = asyncio.Semaphore(config.most_asked)
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    async def admit(self, metadata: Mapping[str, Any], peer: str) -> Grant:
        """What the token in `metadata` allows. Raises `GRPCError`."""
        token = self._token(metadata, peer)
        expires = self._expiry(token, peer)
        reviewed = await self._ask(token, expires, peer)
        if reviewed is None:
            self._refuse("rejected", peer, "the Kubernetes API does not accept its token")
        if self._config.audience not in reviewed.audiences:
            # An API server that knows nothing of audiences names none: then it may be any token.
            self._refuse("audience", peer, f"its token is not for {self._config.audience}")
        if reviewed.username not in self._accounts:
            self._refuse("account", peer, f"its token is that of {_shown(reviewed.username)}")
        return Grant(await self._node(reviewed, peer), peer, self._refusals)

    def _token(self, metadata: Mapping[str, Any], peer: str) -> str:
        header = metadata.get("authorization")
        if not isinstance(header, str):
            self._refuse("no_token", peer, "it shows no token; set KUBENETMON_TOKEN_FILE at the agent")
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_BYTES or not token.isascii():
            self._refuse("malformed", peer, "its authorization is no bearer token")
        return token

    def _expiry(self, token: str, peer: str) -> float:
        """When the token says that it ends; refuses what it says itself that it is not for us."""
        try:
            _, payload, _ = token.split(".")
            claims = msgspec.json.decode(
                base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=_Claims
            )
        except (ValueError, msgspec.DecodeError):
            self._refuse("malformed", peer, "its token is no service account's (a JWT)")
        audiences = [claims.aud] if isinstance(claims.aud, str) else claims.aud
        if self._config.audience not in audiences:
            self._refuse("audience", peer, f"its token is not for {self._config.audience}")
        if claims.exp + _EXPIRY_LEEWAY < self._clock.time():
            self._refuse("expired", peer, "its token has expired")
        if claims.sub not in self._accounts:
            self._refuse(
                "account", peer, f"its token is that of {_shown(claims.sub)}, no agent's; see token_accounts"
            )
        return claims.exp

    async def _ask(self, token: str, expires: float, peer: str) -> Reviewed | None:
        digest = hashlib.sha256(token.encode()).digest()
        now = self._clock.time()
        if digest in self._known:
            reviewed, until = self._known[digest]
            if now < until:
                self._known.move_to_end(digest)
                return reviewed
            del self._known[digest]
        task = self._asking.get(digest)
        if task is None:
            address = peer.rpartition(":")[0]
            count, since = self._failures.get(address, (0, now))
            if now - since < self._config.failure_window and count >= self._config.failures:
                self._refuse("flood", peer, "too many tokens from its address were not accepted")
            if len(self._asking) >= self._config.most_waiting:
                self._later("unreviewed", peer, "too many tokens wait to be looked at; try again")
            # Whose answer all who waited may have stopped waiting for.
            task = retrieved(asyncio.create_task(self._review(token, digest, expires, address)))
            self._asking[digest] = task
            task.add_done_callback(lambda _: self._asking.pop(digest, None))
        try:
            return await asyncio.shield(task)
        except ReviewFailedError as error:
            self._later("unreviewed", peer, f"the token cannot be looked at now: {error}")

    async def _review(self, token: str, digest: bytes, expires: float, address: str) -> Reviewed | None:
        async with self._turn:
            reviewed = await self._reviewer.review(token, self._config.audience)
        now = self._clock.time()
        if reviewed is None:
            self._remember(digest, None, now + self._config.remember_refusal)
            self._failed(address, now)
        else:
            self._remember(digest, reviewed, min(now + self._config.remember, max(expires, now)))
        return reviewed

    def _remember(self, digest: bytes, reviewed: Reviewed | None, until: float) -> None:
        self._known[digest] = (reviewed, until)
        if reviewed is None:
            # Refusals give way first: they must not push agents out.
            self._known.move_to_end(digest, last=False)
        while len(self._known) > self._config.most_remembered:
            self._known.popitem(last=False)

    def _failed(self, address: str, now: float) -> None:
        count, since = self._failures.pop(address, (0, now))
        if now - since >= self._config.failure_window:
            count, since = 0, now
        self._failures[address] = (count + 1, since)
        while len(self._failures) > self._config.most_remembered:
            self._failures.popitem(last=False)

    async def _node(self, reviewed: Reviewed, peer: str) -> str:
        if reviewed.node:
            return reviewed.node
        if not reviewed.pod_uid:
            self._refuse("account", peer, "its token belongs to no pod, so that no node can be told from it")
        deadline = self._clock.monotonic() + _POD_PATIENCE
        while not (node := self._node_of_pod(reviewed.pod_uid)):
            if self._clock.monotonic() >= deadline:
                self._later("unknown_pod", peer, f"pod {reviewed.pod_name} is not known yet; try again")
            await self._clock.sleep(0.2)
        return node

    def _refuse(self, reason: Reason, peer: str, text: str) -> NoReturn:
        self._refusals.count(reason, peer, text)
        denied = reason == "account"
        raise GRPCError(Status.PERMISSION_DENIED if denied else Status.UNAUTHENTICATED, text)

    def _later(self, reason: Reason, peer: str, text: str) -> NoReturn:
        self._refusals.count(reason, peer, text)
        raise GRPCError(Status.UNAVAILABLE, text)


class _Claims(msgspec.Struct):
    """What a service account's token says of itself (RFC 7519); its signature is the API's to check."""

    sub: str
    exp: float
    aud: str | list[str] = ""


def _shown(text: str) -> str:
    return text if len(text) <= 253 and text.isprintable() else "someone"
