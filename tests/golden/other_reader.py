"""A second reader of a home, written from docs/format.md alone: it imports nothing of sandboxsdk.

It is what the page promises: whoever has the page, BLAKE3 and zstd can read every checkpoint.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3

_FILE, _DIRECTORY, _LINK, _PARTS = 0, 1, 2, 7


def checkpoints(home: Path) -> Iterator[tuple[dict[str, Any], dict[bytes, tuple[Any, ...]]]]:
    """Give each checkpoint's entry, and its files: kind, mode, mtime, size, what is in it."""
    objects = dict(_objects(home / "store" / "packs"))
    for journal in sorted((home / "tasks").glob("*/journal.jsonl")):
        for record in _history(journal).values():
            yield record, dict(_walk(objects, b"", bytes.fromhex(record["tree"])))


def _history(journal: Path) -> dict[str, dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    prev = "0" * 64
    for line in journal.read_bytes().split(b"\n")[:-1]:
        body, _, tail = line.rpartition(b',"sum":"')
        assert tail == blake3(body).hexdigest()[:16].encode() + b'"}'
        entry = json.loads(line)
        assert entry["prev"] == prev
        prev = blake3(line).hexdigest()
        if entry["kind"] == "checkpoint":
            records[entry["data"]["id"]] = entry["data"]
        elif entry["kind"] == "checkpoint-deleted":
            gone = records.pop(entry["data"]["id"])
            for record in records.values():
                if record["parent"] == gone["id"]:
                    record["parent"] = gone["parent"]
    return records


def _objects(packs: Path) -> Iterator[tuple[bytes, tuple[int, bytes]]]:
    for path in packs.glob("*.pack"):
        data, pack = path.read_bytes(), path.stem.encode()
        assert data[:8] == bytes.fromhex("93 53 42 58 50 41 43 4B")
        assert data[8:28] == struct.pack("<I", 1) + pack
        assert data[28:44] == blake3(data[:28]).digest()[:16]
        at = 44
        while at < len(data):
            head = data[at : at + 28]
            mark, version, codec, _, count, table, stored, raw = struct.unpack("<8sBBHIIII", head)
            assert mark == blake3(b"sandboxsdk frame mark\0" + pack).digest()[:8]
            assert version == 1
            check = blake3(b"sandboxsdk frame header\0" + pack + head).digest()[:8]
            assert data[at + 28 : at + 36] == check
            end = at + 36 + table + stored
            assert data[end : end + 16] == blake3(pack + data[at:end]).digest()[:16]
            segment = data[at + 36 + table : end]
            if codec == 1:
                segment = zstandard.ZstdDecompressor().decompress(segment, max_output_size=raw)
            assert len(segment) == raw
            start = 0
            for number in range(count):
                entry = data[at + 36 + number * 37 : at + 36 + (number + 1) * 37]
                kind, length, digest = struct.unpack("<BI32s", entry)
                found = segment[start : start + length]
                assert blake3(struct.pack("<BQ", kind, length) + found).digest() == digest
                yield digest, (kind, found)
                start += length
            at = end + 16


def _pages(
    objects: dict[bytes, tuple[int, bytes]], kind: str, digest: bytes
) -> Iterator[list[Any]]:
    while digest:
        stored, data = objects[digest]
        assert chr(stored) == kind
        page = _only(data)
        if page[0] == 2:
            yield [*page[:6], [n for leaf in page[6] for n in _leaf(objects, leaf)], b""]
            return
        assert page[0] == 1
        yield page
        digest = page[-1]


def _leaf(objects: dict[bytes, tuple[int, bytes]], digest: bytes) -> list[Any]:
    kind, data = objects[digest]
    assert chr(kind) == "t"
    version, nodes = _only(data)
    assert version == 2
    assert nodes
    return nodes


def _only(data: bytes) -> Any:
    value, end = _unpacked(data, 0)
    assert end == len(data)
    return value


def _walk(
    objects: dict[bytes, tuple[int, bytes]], path: bytes, tree: bytes
) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
    pages = list(_pages(objects, "t", tree))
    _, mode, mtime, _, _, attributes, _, _ = pages[0]
    yield path, (_DIRECTORY, mode, mtime, 0, b"", 0, attributes)
    for page in pages:
        for name, kind, mode, mtime, _uid, _gid, size, where, link, attributes in page[6]:
            below = path + b"/" + name if path else name
            if kind == _DIRECTORY:
                yield from _walk(objects, below, where)
                continue
            if kind == _FILE:
                content = objects[where][1] if where else b""
            elif kind == _PARTS:
                lists = _pages(objects, "l", where)
                parts = [part for page in lists for part in page[1]]
                content = b"".join(objects[d][1] if d else bytes(n) for n, d in parts)
            else:
                content = where
            shown = _FILE if kind == _PARTS else kind
            if kind != _LINK:
                assert kind not in (_FILE, _PARTS) or len(content) == size
            yield below, (shown, mode, mtime, size, content, link, attributes)


_SIZED = {0xC4: "B", 0xC5: ">H", 0xC6: ">I", 0xD9: "B", 0xDA: ">H", 0xDB: ">I"}
_NUMBERS = {
    0xCC: "B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: "b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_ARRAYS = {0xDC: ">H", 0xDD: ">I"}


def _unpacked(data: bytes, at: int) -> tuple[Any, int]:
    """Decode as much of MessagePack as the format needs."""
    first, at = data[at], at + 1
    if first < 0x80:
        return first, at
    if first >= 0xE0:
        return first - 256, at
    if first in _NUMBERS:
        form = _NUMBERS[first]
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if first in _SIZED:
        form = _SIZED[first]
        (length,) = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
        return data[at : at + length], at + length
    if first in _ARRAYS:
        form = _ARRAYS[first]
        (length,) = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
    else:
        assert 0x90 <= first < 0xA0, hex(first)
        length = first - 0x90
    items = []
    for _ in range(length):
        item, at = _unpacked(data, at)
        items.append(item)
    return items, at
