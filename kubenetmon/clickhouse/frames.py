"""Data packets of ClickHouse's native protocol as a client sends them, compressed or not; frames it gets.

Contract: pure functions; callers move large blocks off the event loop. Source for the layout: ClickHouse's
NativeWriter and CompressedWriteBuffer: a frame is the CityHash128 of the rest, one byte for the method, the
compressed size with its nine bytes of header, the size before compression, the data.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Literal

import lz4.block
import zstandard
from clickhouse_cityhash.cityhash import CityHash128

from kubenetmon.clickhouse.native import Piece
from kubenetmon.varint import varint

Compression = Literal["none", "lz4", "zstd"]

FRAME_BYTES = 1 << 20
_HEADER = struct.Struct("<BII")
_HASH = struct.Struct("<QQ")
HEAD_BYTES = _HASH.size + _HEADER.size
_METHODS: dict[str, tuple[int, Callable[[Piece], bytes]]] = {
    "lz4": (0x82, lambda data: lz4.block.compress(data, store_size=False)),
    "zstd": (0x90, lambda data: zstandard.ZstdCompressor(level=1).compress(data)),
}

_UNPACKING: dict[int, Callable[[bytes, int], bytes]] = {
    0x02: lambda data, size: data,
    0x82: lambda data, size: lz4.block.decompress(data, uncompressed_size=size),
    0x90: lambda data, size: _unzstd(data, size),
}
"""By the method that a server's profile names (`network_compression_method`): none, LZ4 or LZ4HC, ZSTD."""

CLIENT_DATA = b"\x02\x00"
"""Packet type Data, then the empty name of a temporary table."""

_BLOCK_INFO = b"\x01\x00\x02\xff\xff\xff\xff\x00"
"""Field 1 (overflows): no; field 2 (bucket): -1; end."""


def data_packet(columns: int, rows: int, body: bytes, compression: Compression) -> list[Piece]:
    """One Data packet in pieces of about a mebibyte; `data_packet(0, 0, b"", …)` ends the data."""
    head = _BLOCK_INFO + varint(columns) + varint(rows)
    if compression == "none":
        return [CLIENT_DATA + head, *_pieces(memoryview(body))]
    method, compress = _METHODS[compression]
    pieces: list[Piece] = [head + body[:FRAME_BYTES], *_pieces(memoryview(body)[FRAME_BYTES:])]
    return [CLIENT_DATA, *(_frame(piece, method, compress) for piece in pieces)]


def frame_sizes(head: bytes) -> tuple[int, int]:
    """Bytes that follow the first `HEAD_BYTES` of a frame, and bytes that they unpack to.

    Raises `ConnectionError` for a frame that is none, or made by a method that no server uses between itself
    and clients.
    """
    method, packed, unpacked = _HEADER.unpack_from(head, _HASH.size)
    if method not in _UNPACKING or packed < _HEADER.size:
        raise ConnectionError(f"the server sent a frame of method {method:#x} and {packed} bytes")
    return packed - _HEADER.size, unpacked


def unpack_frame(head: bytes, packed: bytes) -> bytearray:
    """What a frame holds. Raises `ConnectionError` where it is damaged."""
    checksum = CityHash128(head[_HASH.size :] + packed)
    if _HASH.pack(checksum >> 64, checksum & 0xFFFFFFFFFFFFFFFF) != head[: _HASH.size]:
        raise ConnectionError("the server sent a frame whose checksum does not match")
    _, size = frame_sizes(head)
    try:
        unpacked = _UNPACKING[head[_HASH.size]](packed, size)
    except (lz4.block.LZ4BlockError, zstandard.ZstdError, ValueError):
        unpacked = b""
    if len(unpacked) != size:
        raise ConnectionError("the server sent a frame that does not unpack")
    return bytearray(unpacked)


def _unzstd(data: bytes, size: int) -> bytes:
    if zstandard.frame_content_size(data) != size:  # for so much room is made, whatever the limit
        raise ValueError(f"not {size} bytes")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)


def _pieces(data: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(data), FRAME_BYTES):
        yield data[start : start + FRAME_BYTES]


def _frame(data: Piece, method: int, compress: Callable[[Piece], bytes]) -> bytes:
    compressed = compress(data)
    content = _HEADER.pack(method, len(compressed) + _HEADER.size, len(data)) + compressed
    # clickhouse_cityhash gives the first half of the checksum in the high 64 bits.
    checksum = CityHash128(content)
    return _HASH.pack(checksum >> 64, checksum & 0xFFFFFFFFFFFFFFFF) + content
