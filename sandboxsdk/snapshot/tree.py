"""Trees as they are stored: a directory's own metadata and what it lists, in canonical MessagePack.

A directory is one object, or an index of others, its leaves, when it lists much: what changes then
is a leaf and the index. Where leaves would be too large or too many it is a chain of pages, and so
is the list of the parts of a large file. Two equal directories are the same object. What is decoded
is checked in full: whoever holds a `Directory` may take its names for plain names, in order and
without doubles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Annotated, TypeVar

import msgspec

from sandboxsdk.codec import decode_msgpack, encode_msgpack
from sandboxsdk.errors import Corrupt, LimitExceeded
from sandboxsdk.store import LIST, TREE

from .leaves import LAST, LEAVED_MIN, NO_LEAVES, Leaves, cut, ends_of, is_end
from .node import (
    ATTRIBUTE_BYTES_MAX,
    ATTRIBUTES_BYTES_MAX,
    BLOCK,
    CHARACTER,
    DIGEST_BYTES,
    DIRECTORY,
    FIFO,
    FILE,
    MTIME_MAX,
    MTIME_MIN,
    NAME_BYTES_MAX,
    PARTS,
    SIZE_MAX,
    SOCKET,
    SYMLINK,
    TARGET_BYTES_MAX,
    Attributes,
    Node,
    check_attributes,
    check_metadata,
    check_nodes,
    checked_digest,
)
from .objects import Objects, Reader, Sink

# Nodes and objects too: who has to do with trees needs all of it.
__all__ = [
    "ATTRIBUTES_BYTES_MAX",
    "ATTRIBUTE_BYTES_MAX",
    "BLOCK",
    "CHARACTER",
    "DIGEST_BYTES",
    "DIRECTORY",
    "ENTRIES_MAX",
    "FIFO",
    "FILE",
    "LEAVED_VERSION",
    "LEVELS_MAX",
    "MTIME_MAX",
    "MTIME_MIN",
    "NAME_BYTES_MAX",
    "PARTS",
    "PARTS_MAX",
    "SIZE_MAX",
    "SOCKET",
    "SYMLINK",
    "TARGET_BYTES_MAX",
    "VERSION",
    "Attributes",
    "Directory",
    "Node",
    "Objects",
    "Part",
    "Reader",
    "Sink",
    "list_pages",
    "one_page",
    "read_directory",
    "read_leaved",
    "read_parts",
    "write_directory",
    "write_leaved",
    "write_parts",
]

VERSION = 1
# Of a directory that has leaves.
LEAVED_VERSION = 2
ENTRIES_MAX = 4_000_000
# A guest nests directories faster than anybody can walk through them.
LEVELS_MAX = 20_000
PARTS_MAX = 1_000_000
# An object may have 16 MiB; this leaves room for the last node that is put into it.
_PAGE_BYTES = 8 << 20
_PAGES_MAX = 4096
_LEAVES_MAX = 1 << 17
_PART_BYTES = 48
_NODE_BYTES = 64
# More than a page of ours ever has. It is checked before anything is made of the page's bytes: of
# the smallest nodes, an object could hold millions.
_PAGE_ITEMS_MAX = 1 << 18

# How an index begins, and a leaf.
_INDEX_HEAD = bytes((0x97, LEAVED_VERSION))
_LEAF_HEAD = bytes((0x92, LEAVED_VERSION))
# How a page ends that lists nothing and has no other after it.
_NO_FOLLOWING = encode_msgpack(b"")
_NO_NODES = encode_msgpack(()) + _NO_FOLLOWING
_ATTRIBUTES_OF = attrgetter("attributes")
_T = TypeVar("_T")


class Directory(msgspec.Struct, frozen=True):
    """A directory: its own metadata and its nodes, sorted by name."""

    mode: int
    mtime: int
    uid: int
    gid: int
    attributes: Attributes
    nodes: Sequence[Node]


class Part(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A stretch of a file: a blob, or a hole where `content` is empty."""

    length: int
    content: bytes


class _Head(msgspec.Struct, array_like=True, frozen=True):
    version: int
    mode: int
    mtime: int
    uid: int
    gid: int
    attributes: Attributes


class _TreePage(_Head, array_like=True, frozen=True):
    nodes: Annotated[tuple[Node, ...], msgspec.Meta(max_length=_PAGE_ITEMS_MAX)]
    following: bytes


class _TreeIndex(_Head, array_like=True, frozen=True):
    leaves: Annotated[tuple[bytes, ...], msgspec.Meta(min_length=1, max_length=_PAGE_ITEMS_MAX)]


class _TreeLeaf(msgspec.Struct, array_like=True, frozen=True):
    version: int
    nodes: Annotated[tuple[Node, ...], msgspec.Meta(min_length=1, max_length=_PAGE_ITEMS_MAX)]


class _ListPage(msgspec.Struct, array_like=True, frozen=True):
    version: int
    parts: Annotated[tuple[Part, ...], msgspec.Meta(max_length=_PAGE_ITEMS_MAX)]
    following: bytes


def write_directory(sink: Sink, directory: Directory) -> bytes:
    """Store a directory, whose nodes are sorted; gives its digest.

    Raises:
        LimitExceeded: it lists more than a tree may hold.
    """
    nodes = directory.nodes
    if len(nodes) > ENTRIES_MAX:
        raise LimitExceeded(reason=f"a directory has more than {ENTRIES_MAX:,} entries")
    if len(nodes) >= LEAVED_MIN:
        made = write_leaved(
            sink, directory, [node.name for node in nodes], [encode_msgpack(n) for n in nodes]
        )
        if made is not None:
            return made[0]
    if len(nodes) <= _PAGE_BYTES // (2 * _NODE_BYTES) and not any(map(_ATTRIBUTES_OF, nodes)):
        # Names and contents are in the encoded page, so no node counts more than it has there and
        # what is added for each: when all of that fits, it is one page.
        data = _encoded(directory, nodes, b"")
        if len(data) + _NODE_BYTES * len(nodes) <= _PAGE_BYTES:
            return sink.add(TREE, data)
    following = b""
    # From the end, so that each page can name the one after it.
    for listed in reversed(_pages(nodes, _node_bytes)):
        following = sink.add(TREE, _encoded(directory, listed, following))
    return following


def one_page(directory: Directory, encoded: Sequence[bytes]) -> bytes | None:
    """Put the page of a directory together; None if it takes several.

    Args:
        directory: its nodes are sorted.
        encoded: each of its nodes, as MessagePack.
    """
    count = len(encoded)
    if count > _PAGE_BYTES // (2 * _NODE_BYTES) or any(map(_ATTRIBUTES_OF, directory.nodes)):
        return None
    empty = _encoded(directory, (), b"")
    # An empty list is one byte, and one that is followed by nothing else two.
    head, tail = empty[: -len(_NO_NODES)], empty[-len(_NO_FOLLOWING) :]
    assert empty.endswith(_NO_NODES)
    page = b"".join((head, _array_head(count), *encoded, tail))
    return page if len(page) + _NODE_BYTES * count <= _PAGE_BYTES else None


def write_leaved(
    sink: Sink,
    directory: Directory,
    names: Sequence[bytes],
    encoded: Sequence[bytes],
    ends: Sequence[bytes] | None = None,
    kept: Leaves = NO_LEAVES,
) -> tuple[bytes, Leaves] | None:
    """Store a directory as an index of leaves; gives its digest and theirs. None if it would have
    leaves that are too large, or too many.

    Args:
        names, encoded: of its nodes, which are sorted; each as MessagePack.
        ends: the names that end leaves, if they are known.
        kept: leaves that are stored already.
    """
    parts = list(cut(names, ends_of(names) if ends is None else ends))
    if len(parts) > _LEAVES_MAX:
        return None
    pages: dict[bytes, bytes] = {}
    for key, start, stop in parts:
        if key not in kept:
            page = b"".join((_LEAF_HEAD, _array_head(stop - start), *encoded[start:stop]))
            if len(page) > _PAGE_BYTES or stop - start > _PAGE_ITEMS_MAX:
                return None
            pages[key] = page
    leaves = {key: kept[key] if key in kept else sink.add(TREE, pages[key]) for key, _, _ in parts}
    index = _TreeIndex(LEAVED_VERSION, *_metadata(directory), tuple(leaves.values()))
    return sink.add(TREE, encode_msgpack(index)), leaves


def _array_head(count: int) -> bytes:
    """Begin an array of MessagePack."""
    if count < 16:
        return bytes((0x90 | count,))
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def _encoded(directory: Directory, nodes: Sequence[Node], following: bytes) -> bytes:
    return encode_msgpack(_TreePage(VERSION, *_metadata(directory), tuple(nodes), following))


def read_directory(reader: Objects, digest: bytes) -> Directory:
    """Read a directory and check every part of it.

    Raises:
        Corrupt: it is missing, damaged, or not what a directory can be.
    """
    return read_leaved(reader, digest)[0]


def read_leaved(reader: Objects, digest: bytes) -> tuple[Directory, Leaves]:
    """Read a directory, and its leaves if it has some. Raises as `read_directory`."""
    path = f"tree {digest.hex()}"
    data = reader.read(TREE, digest)
    if _is_index(data):
        return _read_index(reader, decode_msgpack(data, _TreeIndex, path=path), path)
    return _read_pages(reader, data, path), NO_LEAVES


def _is_index(data: bytes) -> bool:
    """Tell whether an object is an index of leaves, as far as its first bytes say."""
    return data[:2] == _INDEX_HEAD


def _read_index(reader: Objects, index: _TreeIndex, path: str) -> tuple[Directory, Leaves]:
    nodes: list[Node] = []
    leaves: dict[bytes, bytes] = {}
    for digest in index.leaves:
        data = reader.read(TREE, checked_digest(digest, path))
        leaf = decode_msgpack(data, _TreeLeaf, path=path)
        if leaf.version != LEAVED_VERSION:
            raise Corrupt(path=path, reason=f"has a leaf of version {leaf.version}")
        nodes.extend(leaf.nodes)
        if len(nodes) > ENTRIES_MAX:
            raise Corrupt(path=path, reason=f"lists more than {ENTRIES_MAX:,} entries")
        end = nodes[-1].name
        leaves[end if is_end(end) else LAST] = digest
    check_metadata(index, path)
    check_attributes(index.attributes, path)
    check_nodes(nodes, path)
    found = Directory(*_metadata(index), nodes)
    # Cut in other places, it says the same, but its leaves are not those of what it becomes.
    ends = ends_of([node.name for node in nodes])
    as_usual = len(leaves) == len(index.leaves) and list(leaves) in (ends, [*ends, LAST])
    return found, leaves if as_usual else NO_LEAVES


def _read_pages(reader: Objects, data: bytes, path: str) -> Directory:
    page = first = _page(data, path)
    nodes = list(first.nodes)
    for number in range(1, _PAGES_MAX + 1):
        if len(nodes) > ENTRIES_MAX:
            raise Corrupt(path=path, reason=f"lists more than {ENTRIES_MAX:,} entries")
        if not page.following:
            break
        if number == _PAGES_MAX:
            raise Corrupt(path=path, reason=f"has more than {_PAGES_MAX} pages")
        page = _page(reader.read(TREE, checked_digest(page.following, path)), path)
        if _metadata(page) != _metadata(first):
            raise Corrupt(path=path, reason="has pages of different directories")
        nodes.extend(page.nodes)
    check_metadata(first, path)
    check_attributes(first.attributes, path)
    check_nodes(nodes, path)
    return Directory(*_metadata(first), nodes)


def _page(data: bytes, path: str) -> _TreePage:
    page = decode_msgpack(data, _TreePage, path=path)
    _check_version(page.version, path)
    return page


def write_parts(sink: Sink, parts: Sequence[Part]) -> bytes:
    """Store the list of a file's parts; gives its digest.

    Raises:
        LimitExceeded: there are more than a tree may hold.
    """
    if len(parts) > PARTS_MAX:
        raise LimitExceeded(reason=f"a file has more than {PARTS_MAX:,} parts")
    following = b""
    for page in reversed(_pages(parts, lambda _: _PART_BYTES)):
        following = sink.add(LIST, encode_msgpack(_ListPage(VERSION, tuple(page), following)))
    return following


def read_parts(reader: Objects, node: Node) -> list[Part]:
    """Read the parts of a PARTS node and check that they add up to its size.

    Raises:
        Corrupt: the list is missing, damaged, or not what it can be.
    """
    path, digest = f"list {node.content.hex()}", node.content
    parts: list[Part] = []
    for _ in range(_PAGES_MAX):
        page = decode_msgpack(reader.read(LIST, digest), _ListPage, path=path)
        _check_version(page.version, path)
        parts.extend(page.parts)
        if len(parts) > PARTS_MAX:
            raise Corrupt(path=path, reason=f"lists more than {PARTS_MAX:,} parts")
        if not page.following:
            break
        digest = checked_digest(page.following, path)
    else:
        raise Corrupt(path=path, reason=f"has more than {_PAGES_MAX} pages")
    total = 0
    for part in parts:
        if part.content:
            checked_digest(part.content, path)
        if part.length <= 0 or part.length > node.size - total:
            raise Corrupt(path=path, reason="does not add up to the size of its file")
        total += part.length
    if total != node.size:
        raise Corrupt(path=path, reason="does not add up to the size of its file")
    return parts


def list_pages(reader: Objects, kind: int, digest: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Give the digest and the bytes of each page of a directory (TREE) or of a parts list (LIST);
    of a directory with leaves, the index and each of these.

    Raises:
        Corrupt: a page is missing, damaged, or of another shape.
    """
    path = f"{'tree' if kind == TREE else 'list'} {digest.hex()}"
    for number in range(_PAGES_MAX):
        data = reader.read(kind, digest)
        yield digest, data
        if kind == TREE and not number and _is_index(data):
            for leaf in decode_msgpack(data, _TreeIndex, path=path).leaves:
                yield leaf, reader.read(TREE, checked_digest(leaf, path))
            return
        if kind == TREE:
            following = decode_msgpack(data, _TreePage, path=path).following
        else:
            following = decode_msgpack(data, _ListPage, path=path).following
        if not following:
            return
        digest = checked_digest(following, path)
    raise Corrupt(path=path, reason=f"has more than {_PAGES_MAX} pages")


def _pages(items: Sequence[_T], size: Callable[[_T], int]) -> list[Sequence[_T]]:
    """Cut what is too much for one object; there is always one page."""
    pages: list[Sequence[_T]] = []
    start = total = 0
    for index, item in enumerate(items):
        total += size(item)
        if total > _PAGE_BYTES:
            pages.append(items[start : index + 1])
            start, total = index + 1, 0
    if start < len(items) or not pages:
        pages.append(items[start:])
    return pages


def _node_bytes(node: Node) -> int:
    held = sum(len(name) + len(value) + 16 for name, value in node.attributes)
    return len(node.name) + len(node.content) + held + _NODE_BYTES


def _metadata(of: _Head | Directory) -> tuple[int, int, int, int, Attributes]:
    return of.mode, of.mtime, of.uid, of.gid, of.attributes


def _check_version(version: int, path: str) -> None:
    if version > VERSION:
        raise Corrupt(
            path=path,
            reason=f"was written by a newer version (version {version})",
            hint="upgrade sandboxsdk",
        )
    if version != VERSION:
        raise Corrupt(path=path, reason=f"has version {version}")
