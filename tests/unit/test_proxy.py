"""The proxy of the fault tests does what it says: else those tests prove nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.beds.proxy import TcpProxy


@asynccontextmanager
async def echo() -> AsyncIterator[TcpProxy]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        async with TcpProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
            yield proxy
    finally:
        server.close()


async def test_it_forwards_both_ways_and_the_end_of_the_stream() -> None:
    async with echo() as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        payload = bytes(range(256)) * 4000
        writer.write(payload)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(-1), 5) == payload
        writer.close()


async def test_a_stall_holds_bytes_until_resumed() -> None:
    async with echo() as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        proxy.to_client.stall()
        writer.write(b"hello")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reader.read(5), 0.1)
        proxy.to_client.resume()
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello"
        writer.close()


async def test_a_stall_holds_a_slow_direction_in_the_middle_of_what_was_sent() -> None:
    async with echo() as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        proxy.to_upstream.bytes_per_second = 2000
        writer.write(bytes(1000))
        await asyncio.wait_for(reader.readexactly(100), 5)
        proxy.to_upstream.stall()
        await asyncio.sleep(0.1)
        passed = proxy.to_upstream.forwarded
        await asyncio.sleep(0.2)
        assert proxy.to_upstream.forwarded == passed < 1000
        proxy.heal()
        await asyncio.wait_for(reader.readexactly(900), 5)
        writer.close()


async def test_a_dropped_direction_loses_bytes_silently() -> None:
    async with echo() as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        proxy.to_upstream.dropping = True
        writer.write(b"lost")
        await writer.drain()
        await asyncio.sleep(0.05)
        proxy.heal()
        writer.write(b"kept")
        assert await asyncio.wait_for(reader.readexactly(4), 5) == b"kept"
        writer.close()


async def test_a_cut_resets_the_connection_and_new_ones_work() -> None:
    async with echo() as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"x")
        await reader.readexactly(1)
        await proxy.cut()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(reader.readexactly(1), 5)
        writer.close()
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"y")
        assert await asyncio.wait_for(reader.readexactly(1), 5) == b"y"
        writer.close()


async def test_a_cut_after_a_number_of_bytes_lets_exactly_those_through() -> None:
    async with echo() as proxy:
        proxy.to_upstream.cut_after_bytes(3)
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"abcdef")
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(-1), 5)
        assert proxy.to_upstream.forwarded == 3
        writer.close()


async def test_a_speed_limit_and_a_delay_take_their_time() -> None:
    async with echo() as proxy:
        proxy.to_upstream.bytes_per_second = 1000
        proxy.to_client.delay = 0.05
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        started = asyncio.get_running_loop().time()
        writer.write(b"z" * 200)
        await asyncio.wait_for(reader.readexactly(200), 5)
        assert asyncio.get_running_loop().time() - started >= 0.19
        writer.close()
