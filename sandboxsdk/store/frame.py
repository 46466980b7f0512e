"""The bytes of packs: a header, then frames back to back. Pure: no file is touched here.

A frame holds one segment, which is a run of objects, compressed together, behind a table of what
they are:

    header   mark 8, version 1, codec 1, zero 2, objects 4, table length 4, stored length 4,
             raw length 4, check 8
    table    for each object: kind 1, length 4, digest 32
    payload  the objects' bytes, one after the other, as the codec says
    sum      16: over everything of the frame before it

All numbers are little-endian. Mark, check and sum are made with the pack's id, which nobody knows
who only chooses what is stored: no content of a file looks like a frame of the pack that it is in.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from sandboxsdk.codec import checksum, typed_digest

from .compression import Malformed, compress, decompress

BLOB, TREE, LIST = ord("b"), ord("t"), ord("l")
KINDS = frozenset((BLOB, TREE, LIST))

PACK_VERSION = 1
FRAME_VERSION = 1
RAW, ZSTD = 0, 1

OBJECT_BYTES_MAX = 16 * 1024 * 1024
DIGEST_BYTES = 32
OBJECTS_MAX = 4096

_PACK_MAGIC = b"\x93SBXPACK"
_PACK_HEADER = struct.Struct("<8sI16s")
_HEADER = struct.Struct("<8sBBHIIII")
_ENTRY = struct.Struct("<BI32s")
_CHECK_BYTES = 8
SUM_BYTES = 16
MARK_BYTES = 8
HEADER_BYTES = _HEADER.size + _CHECK_BYTES
PACK_HEADER_BYTES = _PACK_HEADER.size + SUM_BYTES
TABLE_BYTES_MAX = OBJECTS_MAX * _ENTRY.size
FRAME_BYTES_MIN = HEADER_BYTES + _ENTRY.size + SUM_BYTES
FRAME_BYTES_MAX = HEADER_BYTES + TABLE_BYTES_MAX + OBJECT_BYTES_MAX + SUM_BYTES


class Newer(Exception):
    """These bytes were written by a newer version. The text says which."""


class Item(NamedTuple):
    """One object of a segment: `start` and `length` are bytes within it."""

    kind: int
    digest: bytes
    start: int
    length: int


class Header(NamedTuple):
    """What a frame says of itself; the lengths are within their bounds."""

    codec: int
    objects: int
    table: int
    stored: int
    raw: int

    @property
    def size(self) -> int:
        """Bytes of the whole frame."""
        return HEADER_BYTES + self.table + self.stored + SUM_BYTES


def mark_of(pack: str) -> bytes:
    """Give what every frame of this pack begins with."""
    return checksum(b"sandboxsdk frame mark\0", pack.encode())[:MARK_BYTES]


def pack_header(pack: str) -> bytes:
    """Give the first bytes of the pack with this id."""
    head = _PACK_HEADER.pack(_PACK_MAGIC, PACK_VERSION, pack.encode())
    return head + checksum(head)


def check_pack_header(data: bytes, pack: str) -> None:
    """Look at the first bytes of a pack.

    Raises:
        Newer: a newer version wrote it.
        Malformed: they are not the header of the pack with this id.
    """
    head = data[: _PACK_HEADER.size]
    if len(data) < PACK_HEADER_BYTES:
        raise Malformed("is shorter than the header of a pack")
    if data[_PACK_HEADER.size : PACK_HEADER_BYTES] != checksum(head):
        raise Malformed("has a damaged header")
    magic, version, name = _PACK_HEADER.unpack(head)
    if magic != _PACK_MAGIC:
        raise Malformed("is not a pack")
    if version != PACK_VERSION:
        raise Newer(f"pack version {version}")
    if name != pack.encode():
        raise Malformed("is the pack of another name")


def build(pack: str, objects: list[tuple[int, bytes, bytes]]) -> tuple[bytes, tuple[Item, ...]]:
    """Give the frame of some objects, each (kind, digest, data), and where they lie in it."""
    items, start = [], 0
    for kind, digest, data in objects:
        items.append(Item(kind, digest, start, len(data)))
        start += len(data)
    assert 0 < len(items) <= OBJECTS_MAX
    assert start <= OBJECT_BYTES_MAX
    raw = objects[0][2] if len(objects) == 1 else b"".join(data for _, _, data in objects)
    stored, codec = compress(raw) if raw else raw, ZSTD
    if len(stored) >= len(raw):
        stored, codec = raw, RAW
    table = b"".join(_ENTRY.pack(item.kind, item.length, item.digest) for item in items)
    head = _HEADER.pack(
        mark_of(pack), FRAME_VERSION, codec, 0, len(items), len(table), len(stored), len(raw)
    )
    head += _check(pack, head)
    body = b"".join((head, table, stored))
    return body + checksum(pack.encode(), body), tuple(items)


def _check(pack: str, head: bytes) -> bytes:
    return checksum(b"sandboxsdk frame header\0", pack.encode(), head)[:_CHECK_BYTES]


def parse_header(data: bytes, pack: str) -> Header:
    """Take the header of a frame apart.

    Raises:
        Newer: a newer version wrote it.
        Malformed: it is none, or a number in it is out of bounds.
    """
    if len(data) < HEADER_BYTES:
        raise Malformed("ends within the header of a frame")
    head = data[: _HEADER.size]
    mark, version, codec, zero, objects, table, stored, raw = _HEADER.unpack(head)
    if mark != mark_of(pack):
        raise Malformed("has something else where a frame should begin")
    if data[_HEADER.size : HEADER_BYTES] != _check(pack, head):
        raise Malformed("has a damaged header of a frame")
    if version != FRAME_VERSION:
        raise Newer(f"frame version {version}")
    if codec not in (RAW, ZSTD):
        raise Newer(f"codec {codec}")
    whole = (
        zero == 0
        and 0 < objects <= OBJECTS_MAX
        and table == objects * _ENTRY.size
        and raw <= OBJECT_BYTES_MAX
        and (stored == raw if codec == RAW else stored < raw)
    )
    if not whole:
        raise Malformed("has a frame with impossible lengths")
    return Header(codec, objects, table, stored, raw)


def parse_table(table: bytes, header: Header) -> tuple[Item, ...]:
    """Take the table of a frame apart; `table` has the length that its header says.

    Raises:
        Malformed: it does not describe the segment.
    """
    items, start = [], 0
    for kind, length, digest in _ENTRY.iter_unpack(table):
        if kind not in KINDS or length > header.raw - start:
            raise Malformed("has a frame whose table does not fit its content")
        items.append(Item(kind, digest, start, length))
        start += length
    if start != header.raw:
        raise Malformed("has a frame whose table does not fit its content")
    return tuple(items)


def check_sum(frame: bytes, pack: str) -> None:
    """Compare a whole frame with its sum.

    Raises:
        Malformed: it is damaged.
    """
    body = memoryview(frame)[:-SUM_BYTES]
    if frame[-SUM_BYTES:] != checksum(pack.encode(), body):
        raise Malformed("has a damaged frame")


def content(frame: bytes, header: Header) -> bytes:
    """Give a whole frame's segment, uncompressed.

    Raises:
        Malformed: it is not what the header says.
    """
    stored = frame[HEADER_BYTES + header.table : len(frame) - SUM_BYTES]
    if len(stored) != header.stored:
        raise Malformed("ends within a frame")
    return stored if header.codec == RAW else decompress(stored, header.raw)


def holds(segment: bytes, item: Item) -> bool:
    """Tell whether an object is what its digest says."""
    data = memoryview(segment)[item.start : item.start + item.length]
    return typed_digest(item.kind, data) == item.digest
