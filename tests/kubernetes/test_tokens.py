"""Agents show service accounts' tokens; a real API server says whose they are, and so who may report."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import grpclib.client
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.metrics import catalogue
from kubenetmon.proto import FlowCollectorStub, FlowHandlerStub, Outcome
from kubenetmon.server.access import AccessConfig, Reviewed, TokenAccess
from kubenetmon.server.kubernetes_source import Kubeconfig
from kubenetmon.server.token_review import CHECK, TokenReviewer, TokenReviewerConfig
from tests.beds.kubernetes import SERVER_ACCOUNT, Cluster
from tests.beds.manifests import BASE_VALUES, render_chart
from tests.beds.receiving import Rig, batch_message, observation, running_receiver
from tests.kubernetes.conftest import Follower, eventually, following

pytestmark = pytest.mark.apiserver

AUDIENCE = "kubenetmon-server"
ACCOUNT = ("kubenetmon-agent", "kubenetmon-agent")
QUICK = AccessConfig(remember=0.5, remember_refusal=0.5)


def bind_roles(cluster: Cluster, *, token_review: bool = True) -> None:
    """The roles that the chart gives the server's account, with tokens required."""
    values = {**BASE_VALUES["server"], "secure": True}
    for one in render_chart("server", values):
        if one["kind"] in ("ClusterRole", "ClusterRoleBinding"):
            wanted = dict(one)
            if one["metadata"]["name"].endswith("token-review") and one["kind"] == "ClusterRole":
                wanted["rules"] = one["rules"] if token_review else []
            cluster.apply(wanted)


class CountingReviewer:
    """The real one, and how often it was asked."""

    def __init__(self, inner: TokenReviewer) -> None:
        self.inner = inner
        self.asked = 0

    async def review(self, token: str, audience: str) -> Reviewed | None:
        self.asked += 1
        return await self.inner.review(token, audience)


@dataclass
class Guarded:
    """A receiver that asks for tokens, with the server's own account, and the cluster it asks."""

    cluster: Cluster
    rig: Rig
    follower: Follower
    reviewer: CountingReviewer

    def agent_token(self, node: str, audience: str = AUDIENCE) -> str:
        """The token of the agent on that node."""
        return self.cluster.token(*ACCOUNT, pod=f"agent-{node}", audience=audience)

    def refused(self, reason: str) -> float:
        """How many were refused for that reason."""
        return self.rig.metrics.value(catalogue.SERVER_REFUSED, reason=reason)


@contextlib.asynccontextmanager
async def guarded(cluster: Cluster, config: AccessConfig = QUICK) -> AsyncIterator[Guarded]:
    bind_roles(cluster)
    for namespace in ("kubenetmon-agent", "kubenetmon-server", "shop"):
        cluster.create_namespace(namespace)
    cluster.create_service_account(*ACCOUNT)
    cluster.create_service_account("shop", "till")
    for index, node in enumerate(("node-a", "node-b")):
        cluster.create_node(node, address=f"192.0.2.{10 + index}")
        cluster.create_pod(
            f"agent-{node}",
            node=node,
            address=f"192.0.2.{10 + index}",
            namespace=ACCOUNT[0],
            host_network=True,
            account=ACCOUNT[1],
        )
    cluster.create_pod("till-1", node="node-a", address="10.1.0.9", namespace="shop", account="till")
    source = cluster.kubeconfig(SERVER_ACCOUNT)
    await eventually(lambda: cluster.allows(SERVER_ACCOUNT, "watch", "pods"))
    async with following(source) as follower:
        await eventually(lambda: follower.readiness.ready)
        reviewer = TokenReviewer(
            TokenReviewerConfig(timeout=3.0, retry_interval=0.2),
            source=Kubeconfig(str(source)),
            readiness=follower.readiness,
            clock=SYSTEM_CLOCK,
        )
        checking = asyncio.create_task(reviewer.run())
        counting = CountingReviewer(reviewer)
        try:
            await eventually(lambda: follower.readiness.ready)
            async with running_receiver(
                access=lambda refusals: TokenAccess(
                    config,
                    reviewer=counting,
                    node_of_pod=follower.inventory.node_of_pod,
                    refusals=refusals,
                    clock=SYSTEM_CLOCK,
                )
            ) as rig:
                yield Guarded(cluster, rig, follower, counting)
        finally:
            checking.cancel()
            await asyncio.gather(checking, return_exceptions=True)


async def push(rig: Rig, node: str, authorization: str | None, *, address: str = "127.0.0.1") -> Outcome:
    """One batch for that node; its outcome. Raises `GRPCError`."""
    now = int(time.time())
    metadata = None if authorization is None else {"authorization": authorization}
    async with asyncio.timeout(10):
        channel = grpclib.client.Channel(address, rig.port)
        try:
            batch = batch_message(5, node=node, start=now - 60, end=now)
            async for ack in FlowCollectorStub(channel).push([batch], metadata=metadata):
                return ack.outcome
        finally:
            channel.close()
    raise AssertionError("no answer")


async def refusal(rig: Rig, node: str, authorization: str | None) -> GRPCError:
    """What a push is refused with; nothing of it is stored."""
    before = len(rig.pipeline.batches)
    with pytest.raises(GRPCError) as caught:
        await push(rig, node, authorization)
    assert len(rig.pipeline.batches) == before
    return caught.value


def signed(claims: dict[str, Any], key: rsa.RSAPrivateKey) -> str:
    """A JWT as the API server makes them."""

    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    text = part({"alg": "RS256", "kid": ""}) + "." + part(claims)
    signature = key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
    return text + "." + base64.urlsafe_b64encode(signature).rstrip(b"=").decode()


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))))


async def test_an_agent_reports_for_its_own_node_and_for_no_other(cluster: Cluster) -> None:
    async with guarded(cluster) as bed:
        token = bed.agent_token("node-a")
        assert await push(bed.rig, "node-a", f"Bearer {token}") is Outcome.COMMITTED
        error = await refusal(bed.rig, "node-b", f"Bearer {token}")
        assert error.status is Status.PERMISSION_DENIED
        assert "agent on node node-a, the report is for node-b" in str(error.message)
        assert bed.refused("node") == 1
        other = bed.agent_token("node-b")
        assert await push(bed.rig, "node-b", f"Bearer {other}") is Outcome.COMMITTED
        channel = grpclib.client.Channel("127.0.0.1", bed.rig.port)
        now = int(time.time())
        stored = len(bed.rig.pipeline.batches)
        with pytest.raises(GRPCError) as caught:
            await FlowHandlerStub(channel).submit(
                [observation(i, node="node-b", timestamp=now) for i in range(3)],
                metadata={"authorization": f"Bearer {token}"},
            )
        assert caught.value.status is Status.PERMISSION_DENIED
        assert len(bed.rig.pipeline.batches) == stored
        own = [observation(i, node="node-a", timestamp=now) for i in range(3)]
        summary = await FlowHandlerStub(channel).submit(own, metadata={"authorization": f"Bearer {token}"})
        assert summary.observation_count == 3
        channel.close()


async def test_who_is_no_agent_is_refused_and_counted(cluster: Cluster) -> None:
    async with guarded(cluster) as bed:
        asked = bed.reviewer.asked
        shop = cluster.token("shop", "till", pod="till-1", audience=AUDIENCE)
        api = bed.agent_token("node-a", audience="")
        key = serialization.load_pem_private_key(cluster.signing_key.read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        right = claims_of(bed.agent_token("node-a"))
        old = signed(
            {**right, "iat": time.time() - 7200, "nbf": time.time() - 7200, "exp": time.time() - 3600}, key
        )
        for authorization, reason, status in (
            (None, "no_token", Status.UNAUTHENTICATED),
            ("Basic YTpi", "malformed", Status.UNAUTHENTICATED),
            ("Bearer token-1", "malformed", Status.UNAUTHENTICATED),
            ("Bearer a.b.c", "malformed", Status.UNAUTHENTICATED),
            ("Bearer " + "x" * 15_000, "malformed", Status.UNAUTHENTICATED),
            (f"Bearer {api}", "audience", Status.UNAUTHENTICATED),
            (f"Bearer {old}", "expired", Status.UNAUTHENTICATED),
            (f"Bearer {shop}", "account", Status.PERMISSION_DENIED),
        ):
            before = bed.refused(reason)
            error = await refusal(bed.rig, "node-a", authorization)
            assert error.status is status, reason
            assert bed.refused(reason) == before + 1, reason
            assert authorization is None or authorization[7:] not in str(error.message)
        assert bed.reviewer.asked == asked  # none of these cost the API a question


async def test_what_only_the_api_can_tell_is_asked_and_refused(cluster: Cluster) -> None:
    async with guarded(cluster) as bed:
        right = claims_of(bed.agent_token("node-a"))
        key = serialization.load_pem_private_key(cluster.signing_key.read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        for token in (
            signed(right, stranger),
            signed({**right, "iss": "https://elsewhere"}, key),
        ):
            error = await refusal(bed.rig, "node-a", f"Bearer {token}")
            assert error.status is Status.UNAUTHENTICATED
        assert bed.refused("rejected") == 2
        assert await push(bed.rig, "node-a", f"Bearer {signed(right, key)}") is Outcome.COMMITTED
        unbound = cluster.token(*ACCOUNT, audience=AUDIENCE)
        error = await refusal(bed.rig, "node-a", f"Bearer {unbound}")
        assert error.status is Status.PERMISSION_DENIED
        assert "belongs to no pod" in str(error.message)


async def test_a_token_outlives_its_pod_only_as_long_as_it_is_remembered(cluster: Cluster) -> None:
    async with guarded(cluster) as bed:
        token = bed.agent_token("node-a")
        assert await push(bed.rig, "node-a", f"Bearer {token}") is Outcome.COMMITTED
        cluster.delete_pod("agent-node-a", namespace=ACCOUNT[0])
        await asyncio.sleep(QUICK.remember)
        error = await refusal(bed.rig, "node-a", f"Bearer {token}")
        # The API remembers the token for ten seconds; but there is no such pod any more.
        assert error.status in (Status.UNAUTHENTICATED, Status.UNAVAILABLE)
        assert bed.refused("unknown_pod") + bed.refused("rejected") == 1


async def test_many_streams_ask_the_api_once(cluster: Cluster) -> None:
    async with guarded(cluster, replace(QUICK, remember=60.0)) as bed:
        before = bed.reviewer.asked
        token = bed.agent_token("node-a")
        outcomes = await asyncio.gather(*(push(bed.rig, "node-a", f"Bearer {token}") for _ in range(20)))
        assert outcomes == [Outcome.COMMITTED] * 20
        assert bed.reviewer.asked == before + 1


async def test_while_the_api_is_away_agents_known_go_on_and_others_wait(cluster: Cluster) -> None:
    async with guarded(cluster, replace(QUICK, remember=60.0)) as bed:
        known, other = bed.agent_token("node-a"), bed.agent_token("node-b")
        assert await push(bed.rig, "node-a", f"Bearer {known}") is Outcome.COMMITTED
        cluster.kill_api_server()
        try:
            assert await push(bed.rig, "node-a", f"Bearer {known}") is Outcome.COMMITTED
            error = await refusal(bed.rig, "node-b", f"Bearer {other}")
            assert error.status is Status.UNAVAILABLE
            assert "cannot reach the Kubernetes API" in str(error.message)
        finally:
            cluster.start_api_server()
        assert await push(bed.rig, "node-b", f"Bearer {other}") is Outcome.COMMITTED


async def test_a_flood_of_forged_tokens_costs_few_questions_and_lines(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with guarded(cluster, replace(QUICK, most_remembered=100)) as bed:
        before = bed.reviewer.asked
        right = claims_of(bed.agent_token("node-a"))
        header, _, signature = bed.agent_token("node-a").split(".")

        def forged(number: int) -> str:
            body = json.dumps({**right, "jti": number}).encode()
            return f"{header}.{base64.urlsafe_b64encode(body).rstrip(b'=').decode()}.{signature}"

        caplog.clear()
        channel = grpclib.client.Channel("127.0.0.1", bed.rig.port)
        for number in range(1000):
            with pytest.raises(GRPCError):
                async for _ in FlowCollectorStub(channel).push(
                    [batch_message(1)], metadata={"authorization": f"Bearer {forged(number)}"}
                ):
                    pass
        channel.close()
        assert bed.reviewer.asked - before <= QUICK.failures
        assert bed.refused("flood") + bed.refused("rejected") == 1000
        said = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(said) <= 2 * 11
        assert right["sub"] not in {record.getMessage() for record in said}
        # An agent elsewhere notices nothing. The flood's address is the loopback's first.
        access = bed.rig.receiver._access
        grant = await access.admit(
            {"authorization": f"Bearer {bed.agent_token('node-b')}"}, "192.0.2.11:40000"
        )
        grant.check("node-b")


async def test_a_missing_permission_is_said_in_ready(cluster: Cluster) -> None:
    async with guarded(cluster) as bed:
        bind_roles(cluster, token_review=False)
        token = bed.agent_token("node-a")

        async def denied() -> str:
            with contextlib.suppress(Exception):
                await bed.reviewer.review("nobody", AUDIENCE)
            checks = bed.follower.readiness.report()["checks"]
            assert isinstance(checks, dict)
            return str(checks[CHECK]["detail"])

        deadline = time.monotonic() + 10
        while not (detail := await denied()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert detail == (
            "not allowed to create tokenreviews: bind the ClusterRole kubenetmon-server-token-review to this "
            "account"
        )
        error = await refusal(bed.rig, "node-a", f"Bearer {token}")
        assert error.status is Status.UNAVAILABLE
        bind_roles(cluster)
        deadline = time.monotonic() + 10
        while await denied():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert await push(bed.rig, "node-a", f"Bearer {token}") is Outcome.COMMITTED
