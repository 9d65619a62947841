"""TokenReview: the Kubernetes API says whose token an agent shows.

Contract: `TokenReviewer` owns a session with the API of its own; `run` tells /ready whether tokens can be
looked at, by asking about one that nobody has, and closes the session at the end. Needs `create` on
`tokenreviews` (authentication.k8s.io), which `deploy/` grants in a role of its own. An API server that has
no audience support accepts a token for itself and names no audience; the caller refuses that.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec

from kubenetmon.clock import Clock
from kubenetmon.errors import ConfigurationError
from kubenetmon.readiness import Readiness
from kubenetmon.server.access import Reviewed, ReviewFailedError
from kubenetmon.server.kubernetes import ApiError, KubernetesClient
from kubenetmon.server.kubernetes_source import InCluster, Kubeconfig

CHECK = "tokens"
_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"
_NODE_NAME = "authentication.kubernetes.io/node-name"
_NOBODYS = "nobody"


@dataclass(frozen=True, slots=True)
class TokenReviewerConfig:
    """Seconds: how long an answer may take, how often the check is repeated while it passes and while not."""

    timeout: float = 10.0
    check_interval: float = 300.0
    retry_interval: float = 5.0


class _User(msgspec.Struct):
    username: str = ""
    extra: dict[str, list[str]] = msgspec.field(default_factory=dict)


class _Status(msgspec.Struct):
    authenticated: bool = False
    user: _User = msgspec.field(default_factory=_User)
    audiences: list[str] = msgspec.field(default_factory=list)


class _Review(msgspec.Struct):
    status: _Status


class TokenReviewer:
    """The component that asks."""

    name = "tokens"

    def __init__(
        self,
        config: TokenReviewerConfig,
        *,
        source: InCluster | Kubeconfig,
        readiness: Readiness,
        clock: Clock,
    ) -> None:
        self._config = config
        self._client = KubernetesClient(source, connect_timeout=config.timeout, read_timeout=config.timeout)
        self._readiness = readiness
        self._clock = clock
        readiness.expect(CHECK, "the Kubernetes API has not answered a TokenReview yet")

    async def run(self) -> None:
        """Keep /ready true to whether tokens can be looked at, until cancelled."""
        try:
            while True:
                try:
                    await self.review(_NOBODYS, _NOBODYS)
                except ReviewFailedError:
                    await self._clock.sleep(self._config.retry_interval)
                else:
                    await self._clock.sleep(self._config.check_interval)
        finally:
            await self._client.close()

    async def stop(self) -> None:
        """Nothing to finish."""

    async def review(self, token: str, audience: str) -> Reviewed | None:
        """Who the token stands for with that audience; None: nobody. Raises `ReviewFailedError`."""
        body: dict[str, object] = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        try:
            async with asyncio.timeout(self._config.timeout):
                answer = await self._client.create(_PATH, body)
            status = msgspec.json.decode(answer, type=_Review).status
        except (ApiError, ConfigurationError, TimeoutError, msgspec.DecodeError) as error:
            text = str(error) or f"the Kubernetes API took longer than {self._config.timeout:g}s"
            self._readiness.failed(CHECK, text)
            raise ReviewFailedError(text) from error
        self._readiness.passed(CHECK)
        if not status.authenticated:
            return None
        extra = status.user.extra
        return Reviewed(
            status.user.username,
            tuple(status.audiences),
            pod_uid=_first(extra, _POD_UID),
            pod_name=_first(extra, _POD_NAME),
            node=_first(extra, _NODE_NAME),
        )


def _first(extra: dict[str, list[str]], name: str) -> str:
    values = extra.get(name) or [""]
    return values[0]
