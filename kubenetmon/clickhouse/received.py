"""What a ClickHouse server may send: asynch's readers, with bounds.

Contract: lengths, numbers and types are checked before anything is made for them, and what goes beyond raises
`ConnectionError` in one line. A packet holds at most `PACKET_BYTES`, on the wire and unpacked; a request has
at most `MOST_PACKETS`, and the values that its `Allowance` has. Nothing here waits; who reads sets deadlines.

Facts on asynch 0.4.0 that this goes around: it believes the server. It makes room for an `Array` by its last
offset and for a frame by the size in its head; a type nested ten thousand deep, or exceptions within
exceptions, end the process; a number goes on for as long as its bytes do.
"""

from __future__ import annotations

import re
from typing import Any

from asynch.errors import ServerException
from asynch.proto import block as asynch_block
from asynch.proto import columns as asynch_columns
from asynch.proto import constants
from asynch.proto.streams.block import BlockReader
from asynch.proto.streams.buffered import BufferedReader, CompressedBufferedReader

from kubenetmon.clickhouse.frames import HEAD_BYTES, frame_sizes, unpack_frame

PACKET_BYTES = 32 << 20
MESSAGE_BYTES = 64 << 10
"""Of a packet that brings no data: greeting, pong."""

MOST_PACKETS = 100_000
"""Of one request; ClickHouse sends ten of progress a second."""

_READ_BYTES = 64 << 10
_MOST_COLUMNS = 1000
_MOST_FIELDS = 16
_MOST_NESTED = 16
_VARINT_BYTES = 10

# What our queries ask for, and what ClickHouse tells with ProfileEvents. None of them makes more values than
# it has bytes or the block rows, and none nests.
_TYPE = re.compile(
    r"(LowCardinality\(|Nullable\(|LowCardinality\(Nullable\()?String\)*"
    r"|(Nullable\()?(FixedString\([0-9]{1,5}\)|U?Int(8|16|32|64)|Float(32|64)|Bool|UUID|IPv[46]|Date|Date32"
    r"|DateTime(\('[^']{1,64}'\))?|DateTime64\([0-9](, '[^']{1,64}')?\)|Decimal\([0-9]{1,2}, [0-9]{1,2}\)"
    r"|Enum(8|16)\([^()]{1,2000}\))\)?"
)


def takes(spec: str) -> bool:
    """Whether a server may send values of that type."""
    return _TYPE.fullmatch(spec) is not None


_Reader: Any = BufferedReader
_FrameReader: Any = CompressedBufferedReader
_BlockReader: Any = BlockReader
_block: Any = asynch_block
_columns: Any = asynch_columns
_ServerException: Any = ServerException
"""Untyped, as asynch is."""


class Allowance:
    """What the server may still send; one for each connection."""

    def __init__(self, most_values: int) -> None:
        self._most_values = most_values
        self._bytes = self._values = self._packets = 0

    def begin_request(self) -> None:
        """As much as a request may have."""
        self._values, self._packets = self._most_values, MOST_PACKETS

    def begin_packet(self) -> int:
        """As much as a packet may have; returns how many may follow it."""
        self._bytes = PACKET_BYTES
        self._packets -= 1
        if self._packets < 0:
            raise ConnectionError(f"the server sent more than {MOST_PACKETS} packets for one answer")
        return self._packets

    def begin_message(self) -> None:
        """As much as a greeting or a pong may have."""
        self._bytes, self._values, self._packets = MESSAGE_BYTES, 0, 0

    def spend_bytes(self, number: int) -> None:
        """Raises `ConnectionError` beyond what is left."""
        self._bytes -= number
        if self._bytes < 0:
            raise ConnectionError("the server sent a packet larger than any that is asked for")

    def spend_values(self, number: int) -> None:
        """Raises `ConnectionError` beyond what is left."""
        self._values -= number
        if self._values < 0:
            raise ConnectionError(f"the server sent more than {self._most_values} values for one answer")


class _Bounded:
    """What both readers below do otherwise than asynch's."""

    most_strings = 0
    """That a column may have: the rows of the block, and two that stand for none and for empty."""

    async def read_varint(self: Any) -> int:
        result: int = 0
        for shift in range(0, 7 * _VARINT_BYTES, 7):
            if self.position == self.current_buffer_size and not await self._is_buffer_readable():
                raise ConnectionError("the connection ended within a packet")
            byte = self._read_one()
            result |= (byte & 0x7F) << shift
            if byte < 0x80 and result < 1 << 63:
                return result
        raise ConnectionError("the server sent a number that is none")

    async def read_strs(self: Any, n_items: int, as_bytes: bool = False) -> Any:
        if n_items > self.most_strings:
            raise ConnectionError("the server sent a column with more values than rows")
        return await super().read_strs(n_items, as_bytes)  # type: ignore[misc]


class BoundedReader(_Bounded, _Reader):  # type: ignore[misc]
    """The bytes of a stream."""

    def __init__(self, stream: Any, allowance: Allowance) -> None:
        super().__init__(stream, _READ_BYTES)
        self._allowance = allowance

    async def _read_into_buffer(self) -> None:
        piece = await self.reader.read(self.buffer_max_size)
        self._allowance.spend_bytes(len(piece))
        self.buffer.extend(piece)
        self.current_buffer_size = len(self.buffer)


class BoundedFrames(_Bounded, _FrameReader):  # type: ignore[misc]
    """The bytes that the frames of a stream hold."""

    def __init__(self, raw: BoundedReader, allowance: Allowance) -> None:
        super().__init__(raw, raw.reader, _READ_BYTES)
        self._allowance = allowance

    async def _read_into_buffer(self) -> None:
        head = bytes(await self.raw_reader.read_bytes(HEAD_BYTES))
        if len(head) < HEAD_BYTES:
            raise ConnectionError("the connection ended within a packet")
        packed, unpacked = frame_sizes(head)
        self._allowance.spend_bytes(max(packed, unpacked))
        self.buffer = unpack_frame(head, bytes(await self.raw_reader.read_bytes(packed)))
        self.current_buffer_size = len(self.buffer)


class BoundedBlocks(_BlockReader):  # type: ignore[misc]
    """The blocks that come through one of these readers."""

    def __init__(
        self, reader: BoundedReader | BoundedFrames, writer: Any, context: Any, allowance: Allowance
    ) -> None:
        super().__init__(reader, writer, context)
        self._allowance = allowance

    async def read(self) -> Any:
        """The next block."""
        info = _block.BlockInfo()
        if self.context.server_info.revision >= constants.DBMS_MIN_REVISION_WITH_BLOCK_INFO:
            await self._read_info()
        columns, rows = await self.reader.read_varint(), await self.reader.read_varint()
        if columns > _MOST_COLUMNS:
            raise ConnectionError(f"the server sent a block of {columns} columns")
        self._allowance.spend_values(columns * rows)
        self.reader.most_strings = rows + 2
        described, data = [], []
        for _ in range(columns):
            name, spec = await self.reader.read_str(), await self.reader.read_str()
            described.append((name, spec))
            if not rows:
                continue
            if not takes(spec):
                raise ConnectionError(f"the server sent values of type {spec:.60}, which nothing asks for")
            data.append(await _columns.read_column(self.reader, self.writer, self.context, spec, rows))
        return _block.ColumnOrientedBlock(columns_with_types=described, data=data, info=info)

    async def _read_info(self) -> None:
        """Numbered fields, of which nothing here has a use."""
        for _ in range(_MOST_FIELDS):
            field = await self.reader.read_varint()
            if field == 0:
                return
            if field == 1:
                await self.reader.read_uint8()
            elif field == 2:
                await self.reader.read_uint32()
        raise ConnectionError("the server sent a block without an end to its head")


async def read_exception(reader: BoundedReader) -> ServerException:
    """The server's exception; those within it are read and left out, as they say the same."""
    first: tuple[str, int] | None = None
    for _ in range(_MOST_NESTED):
        code = await reader.read_int32()
        name, message = await reader.read_str(), await reader.read_str()
        await reader.read_str()  # where in ClickHouse
        if first is None:
            first = message if name == "DB::Exception" else f"{name}. {message}", code
        if not await reader.read_uint8():
            refused: ServerException = _ServerException(*first)
            return refused
    raise ConnectionError("the server sent exceptions within exceptions without end")
