"""Reading protocol buffers field by field, without generated code and without their bulk.

Source: https://protobuf.dev/programming-guides/encoding/. A field's content is skipped by seeking,
so a message whose graph is large costs no more than the fields that are read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Span = tuple[int, int]
"""Where a length-delimited field's content starts and ends."""


def read_fields(stream: BinaryIO, span: Span) -> Iterator[tuple[int, int | Span]]:
    """(field number, value) for each field of the message in `span`.

    A varint's value is its unsigned number, any other's is the span of its content. Raises
    ValueError where the bytes are not a message.

    >>> list(read_fields(io.BytesIO(bytes([8, 150, 1, 18, 2, 104, 105])), (0, 7)))
    [(1, 150), (2, (5, 7))]
    """
    position, end = span
    while position < end:
        stream.seek(position)
        number, wire = divmod(_varint(stream), 8)
        if wire == VARINT:
            value: int | Span = _varint(stream)
            position = stream.tell()
        else:
            size = {FIXED64: 8, FIXED32: 4}.get(wire)
            if wire == BYTES:
                size = _varint(stream)
            if size is None or not number:
                raise ValueError(f"wire type {wire} of field {number} at byte {position}")
            position = stream.tell() + size
            value = (position - size, position)
        if position > end:
            raise ValueError(f"field {number} ends past its message, at byte {position} of {end}")
        yield number, value


def read_message(stream: BinaryIO, span: Span) -> dict[int, list[int | Span]]:
    """All fields of a message by number, each with its values in order."""
    fields: dict[int, list[int | Span]] = {}
    for number, value in read_fields(stream, span):
        fields.setdefault(number, []).append(value)
    return fields


def read_text(stream: BinaryIO, value: int | Span) -> str:
    """The content of a string field."""
    start, end = as_span(value)
    stream.seek(start)
    return stream.read(end - start).decode("utf-8")


def as_span(value: int | Span) -> Span:
    """A field's value where a message or string is expected."""
    if isinstance(value, int):
        raise ValueError("a number where a message is expected")
    return value


def as_signed(value: int | Span) -> int:
    """A field's value where an int64 is expected."""
    if not isinstance(value, int):
        raise ValueError("a message where a number is expected")
    return value - (1 << 64) if value >= 1 << 63 else value


def whole(stream: BinaryIO) -> Span:
    """The span of everything in a stream."""
    return 0, stream.seek(0, io.SEEK_END)


def _varint(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise ValueError("the bytes end inside a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value & ((1 << 64) - 1)
    raise ValueError("a number is longer than ten bytes")
