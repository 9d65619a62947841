"""The original's server as far as an agent can see it: gRPC's own C core, with Submit and without Push.

Contract: `async with OriginalServer(folder) as server` serves on `server.host:server.port`. The messages are
protobuf's own classes, compiled from grpc.proto into `folder` when the bed is made, so that nothing of ours
judges our wire. Every stream's observations are kept in `server.streams`. `fail_after` ends the next stream
with `status` once so many observations were read; `hang` never sends a summary.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from grpc_tools import protoc


def compile_messages(folder: Path) -> ModuleType:
    """protobuf's classes for grpc.proto."""
    source = Path(__file__).parents[2] / "kubenetmon" / "proto"
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    # Under a name of its own: protobuf keeps one registry of file names a process.
    copy = folder / "original_wire.proto"
    copy.write_bytes((source / "grpc.proto").read_bytes())
    arguments = ["protoc", f"-I{folder}", f"-I{well_known}", f"--python_out={folder}", str(copy)]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed")
    spec = importlib.util.spec_from_file_location("original_wire_pb2", folder / "original_wire_pb2.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class OriginalServer:
    """One listener."""

    def __init__(self, messages: ModuleType, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host, self.port = host, port
        self.streams: list[list[Any]] = []
        self.fail_after: int | None = None
        self.status = grpc.StatusCode.UNAVAILABLE
        self.hang = False
        self.miscount = 0
        self._messages = messages
        self._server: grpc.aio.Server | None = None

    async def _submit(self, requests: AsyncIterator[Any], context: Any) -> Any:
        received: list[Any] = []
        self.streams.append(received)
        async for observation in requests:
            received.append(observation)
            if self.fail_after is not None and len(received) >= self.fail_after:
                self.fail_after = None
                await context.abort(self.status, "scripted")
        if self.hang:
            await asyncio.sleep(3600)
        return self._messages.ObservationSummary(observation_count=len(received) - self.miscount)

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server()
        handler = grpc.stream_unary_rpc_method_handler(
            self._submit,
            request_deserializer=self._messages.Observation.FromString,
            response_serializer=self._messages.ObservationSummary.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("grpc.FlowHandler", {"Submit": handler}),)
        )
        self.port = self._bind(self._server)
        await self._server.start()
        return self

    def _bind(self, server: grpc.aio.Server) -> int:
        """Listen; a bed in another network namespace does so from there."""
        return int(server.add_insecure_port(f"{self.host}:{self.port}"))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        await self._server.stop(None)

    def observations(self) -> list[Any]:
        """Of all streams, in order."""
        return [observation for stream in self.streams for observation in stream]
