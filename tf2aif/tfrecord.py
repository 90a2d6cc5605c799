"""TFRecord files and the tf.train.Example messages in them, read without TensorFlow.

Source: "TFRecords format details" in TensorFlow's guide for the framing (length, masked CRC32C of
the length, data, masked CRC32C of the data; little-endian), `tensorflow/core/example/*.proto` for
the messages, and the protocol buffers encoding guide for the wire format.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .errors import StepFailed

POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected
MASK_DELTA = 0xA282EAD8
HEADER_BYTES = 12  # u64 length, u32 CRC of the length
SHORT_BYTES = 512  # below this the loop over bytes is faster than the lanes
FULL = 0xFFFFFFFF

Array = NDArray[Any]
Words = NDArray[np.uint32]


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a file in order, both checksums of each one checked.

    Files that end in `.gz` are decompressed. Raises StepFailed where the file is cut off or a
    checksum does not agree, naming the record by its number from 0.
    """
    opener: Any = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            yield from _records(stream, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise StepFailed(f"not a complete gzip file: {error}", at=str(path)) from error


def _records(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    number = 0
    while header := stream.read(HEADER_BYTES):
        at = f"{path}: record {number}"
        if len(header) < HEADER_BYTES:
            raise StepFailed("the TFRecord file is cut off", at=at)
        length, check = struct.unpack("<QI", header)
        if masked_crc32c(header[:8]) != check:
            hint = "is this a TFRecord file? compressed ones end in .gz"
            raise StepFailed("the checksum of a record's length is wrong", at=at, hint=hint)
        data, end = stream.read(length), stream.read(4)
        if len(data) < length or len(end) < 4:
            raise StepFailed("the TFRecord file is cut off", at=at)
        if masked_crc32c(data) != struct.unpack("<I", end)[0]:
            raise StepFailed("the checksum of a record is wrong", at=at)
        yield data
        number += 1


def read_feature(record: bytes, name: str) -> Array | list[bytes]:
    """One feature of a tf.train.Example: float32 or int64 values, or a list of byte strings.

    Raises KeyError with the names of the features that are there.
    """
    features = dict(_features(record))
    if name not in features:
        raise KeyError(*sorted(features))
    for number, value in _fields(features[name]):
        if number == 1:
            return [bytes(item) for field, item in _fields(value) if field == 1]
        if number == 2:
            return _floats(value)
        if number == 3:
            return _integers(value)
    return np.empty(0, np.float32)


def _features(record: bytes) -> Iterator[tuple[str, bytes]]:
    for number, features in _fields(record):
        if number != 1:
            continue
        for field, entry in _fields(features):
            if field == 1:
                pair = dict(_fields(entry))
                yield bytes(pair.get(1, b"")).decode(), bytes(pair.get(2, b""))


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a message: (number, bytes); a varint is given as its own bytes.

    Raises ValueError where the message does not follow the wire format.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        start, kind = at, tag & 7
        if kind == 0:
            _, at = _varint(message, at)
        elif kind == 1:
            at += 8
        elif kind == 2:
            length, start = _varint(message, at)
            at = start + length
        elif kind == 5:
            at += 4
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(message):
            raise ValueError("the message is cut off")
        yield tag >> 3, message[start:at]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if at >= len(message):
            raise ValueError("the message is cut off")
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a varint has more than 10 bytes")


def _floats(message: bytes) -> Array:
    # Packed or one by one, each field's bytes are little-endian float32.
    joined = b"".join(value for number, value in _fields(message) if number == 1)
    return np.frombuffer(joined, "<f4").astype(np.float32)


def _integers(message: bytes) -> Array:
    """All varints of a packed (or unpacked) int64 list, decoded together."""
    joined = b"".join(value for number, value in _fields(message) if number == 1)
    data = np.frombuffer(joined, np.uint8)
    ends = np.flatnonzero(data < 128)
    if not ends.size:
        return np.empty(0, np.int64)
    starts = np.concatenate(([0], ends[:-1] + 1))
    place = np.arange(ends[-1] + 1) - np.repeat(starts, ends - starts + 1)
    bits = (data[: ends[-1] + 1] & 127).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.bitwise_or.reduceat(bits, starts).view(np.int64)


def masked_crc32c(data: bytes) -> int:
    """The masked CRC32C of TFRecord framing.

    >>> hex(masked_crc32c(b"123456789"))
    '0xc78ab0e5'
    """
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & FULL


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4) of some bytes.

    Long data is cut into lanes of equal length that numpy advances together. A CRC is linear over
    GF(2): zeros in front of data do not change it when it starts at zero, the initial value is the
    same as inverting the first four bytes, and two lanes are joined by shifting the left one over
    the length of the right one.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    if len(data) < SHORT_BYTES:
        table, crc = _byte_list(), FULL
        for byte in data:
            crc = table[(crc ^ byte) & 255] ^ crc >> 8
        return crc ^ FULL
    steps_log2 = max(5, (len(data).bit_length() + 1) // 2)
    lanes_log2 = max(0, (len(data) - 1).bit_length() - steps_log2)
    padded = np.zeros(1 << (steps_log2 + lanes_log2), np.uint8)
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    padded[-len(data) : len(padded) - len(data) + 4] ^= 255
    lanes = padded.reshape(1 << lanes_log2, 1 << steps_log2)
    return int(_join(_advance(lanes), steps_log2)) ^ FULL


def _advance(lanes: NDArray[np.uint8]) -> Words:
    """The CRC, from zero, of each row."""
    table = _shift_table(0)[0]
    crc = np.zeros(len(lanes), np.uint32)
    for column in np.ascontiguousarray(lanes.T):
        crc = table[(crc ^ column) & 255] ^ crc >> 8
    return crc


def _join(crc: Words, length_log2: int) -> np.uint32:
    while len(crc) > 1:
        crc = _shift(crc[0::2], _shift_table(length_log2)) ^ crc[1::2]
        length_log2 += 1
    return np.uint32(crc[0])


def _shift(crc: Words, table: Words) -> Words:
    """Each CRC after as many zero bytes as the table stands for."""
    shifted: Words = (
        table[0][crc & 255]
        ^ table[1][crc >> 8 & 255]
        ^ table[2][crc >> 16 & 255]
        ^ table[3][crc >> 24]
    )
    return shifted


@lru_cache(maxsize=64)
def _shift_table(length_log2: int) -> Words:
    """What 2**length_log2 zero bytes make of each value of each byte of a CRC: shape (4, 256)."""
    if length_log2:
        half = _shift_table(length_log2 - 1)
        return _shift(half, half)
    low = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        low = np.where(low & 1, low >> 1 ^ np.uint32(POLYNOMIAL), low >> 1)
    # The three upper bytes only move down; the lowest one goes through the table.
    rest = [np.arange(256, dtype=np.uint32) << np.uint32(8 * place) for place in range(3)]
    return np.stack([low, *rest])


@lru_cache(maxsize=1)
def _byte_list() -> list[int]:
    return [int(value) for value in _shift_table(0)[0]]
