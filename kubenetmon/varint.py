"""Variable-length numbers as protobuf and ClickHouse's native format write them (unsigned LEB128)."""

from __future__ import annotations


def varint(number: int) -> bytes:
    """The number, which is not negative: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
