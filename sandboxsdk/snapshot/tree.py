"""Trees as they are stored: a directory's own metadata and what it lists, in canonical MessagePack.

A directory is one object, or a chain of them when it lists very much; so is the list of the parts
of a large file. Two equal directories are the same object. What is decoded is checked in full:
whoever holds a `Directory` may take its names for plain names, in order and without doubles.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from operator import attrgetter, lt
from typing import Annotated, Protocol, TypeVar

import msgspec

from sandboxsdk.codec import decode_msgpack, encode_msgpack
from sandboxsdk.errors import Corrupt, LimitExceeded
from sandboxsdk.store import LIST, TREE

# What an entry is. A regular file is FILE when one blob holds all of it, PARTS when a list of blobs
# and holes does.
FILE, DIRECTORY, SYMLINK, FIFO, SOCKET, CHARACTER, BLOCK, PARTS = range(8)

VERSION = 1
DIGEST_BYTES = 32
NAME_BYTES_MAX = 255
TARGET_BYTES_MAX = 4095
SIZE_MAX = 2**63 - 1
ENTRIES_MAX = 4_000_000
# A guest nests directories faster than anybody can walk through them.
LEVELS_MAX = 20_000
PARTS_MAX = 1_000_000
ATTRIBUTES_BYTES_MAX = 1 << 20
# What the kernel takes as one value.
ATTRIBUTE_BYTES_MAX = 1 << 16
# Nanoseconds that fit into 64 bits: the years 1677 to 2262.
MTIME_MIN, MTIME_MAX = -(2**63), 2**63 - 1
# An object may have 16 MiB; this leaves room for the last node that is put into it.
_PAGE_BYTES = 8 << 20
_PAGES_MAX = 4096
_PART_BYTES = 48
_NODE_BYTES = 64
# More than a page of ours ever has. It is checked before anything is made of the page's bytes: of
# the smallest nodes, an object could hold millions.
_PAGE_ITEMS_MAX = 1 << 18

# How a page ends that lists nothing and has no other after it.
_NO_FOLLOWING = encode_msgpack(b"")
_NO_NODES = encode_msgpack(()) + _NO_FOLLOWING
_IN_NO_NAME = re.compile(b"[/\0]")
_ATTRIBUTES_OF = attrgetter("attributes")
_T = TypeVar("_T")

Attributes = tuple[tuple[bytes, bytes], ...]


class Node(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One name of a directory.

    Attributes:
        mode: the lower twelve bits, set-id bits included, as they were found.
        mtime: UTC nanoseconds; may be negative.
        size: bytes of a regular file; of a device its number.
        content: digest of the blob (FILE, empty if size is 0), of the list (PARTS), of the tree
            (DIRECTORY); where a SYMLINK points; else empty.
        link: names with the same number are one file; 0 is a file of one name.
        attributes: user.* attributes in the order of their names.

    Of a DIRECTORY all but name, kind and content is 0: the tree itself says it.
    """

    name: bytes
    kind: int
    mode: int = 0
    mtime: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    content: bytes = b""
    link: int = 0
    attributes: Attributes = ()

    @property
    def is_file(self) -> bool:
        return self.kind in (FILE, PARTS)


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


class Objects(Protocol):
    """What gives one object after another: a store, a writer, or what was only measured."""

    def read(self, kind: int, digest: bytes, /) -> bytes: ...


class Reader(Objects, Protocol):
    """What also gives many objects at once, in the order they lie."""

    def read_many(
        self, kind: int, digests: Iterable[bytes], /
    ) -> Iterator[tuple[bytes, bytes]]: ...


class Sink(Protocol):
    """What takes objects and gives their digests."""

    def add(self, kind: int, data: bytes, /) -> bytes: ...


class _TreePage(msgspec.Struct, array_like=True, frozen=True):
    version: int
    mode: int
    mtime: int
    uid: int
    gid: int
    attributes: Attributes
    nodes: Annotated[tuple[Node, ...], msgspec.Meta(max_length=_PAGE_ITEMS_MAX)]
    following: bytes


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
    if count < 16:
        length = bytes((0x90 | count,))
    elif count < 1 << 16:
        length = b"\xdc" + count.to_bytes(2, "big")
    else:
        length = b"\xdd" + count.to_bytes(4, "big")
    page = b"".join((head, length, *encoded, tail))
    return page if len(page) + _NODE_BYTES * count <= _PAGE_BYTES else None


def _encoded(directory: Directory, nodes: Sequence[Node], following: bytes) -> bytes:
    return encode_msgpack(
        _TreePage(
            VERSION,
            directory.mode,
            directory.mtime,
            directory.uid,
            directory.gid,
            directory.attributes,
            tuple(nodes),
            following,
        )
    )


def read_directory(reader: Objects, digest: bytes) -> Directory:
    """Read a directory and check every part of it.

    Raises:
        Corrupt: it is missing, damaged, or not what a directory can be.
    """
    path = f"tree {digest.hex()}"
    first: _TreePage | None = None
    nodes: list[Node] = []
    for _ in range(_PAGES_MAX):
        page = decode_msgpack(reader.read(TREE, digest), _TreePage, path=path)
        _check_version(page.version, path)
        first = first or page
        if _metadata(page) != _metadata(first):
            raise Corrupt(path=path, reason="has pages of different directories")
        nodes.extend(page.nodes)
        if len(nodes) > ENTRIES_MAX:
            raise Corrupt(path=path, reason=f"lists more than {ENTRIES_MAX:,} entries")
        if not page.following:
            break
        digest = _checked_digest(page.following, path)
    else:
        raise Corrupt(path=path, reason=f"has more than {_PAGES_MAX} pages")
    _check_metadata(first, path)
    _check_attributes(first.attributes, path)
    _check_nodes(nodes, path)
    return Directory(first.mode, first.mtime, first.uid, first.gid, first.attributes, nodes)


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
        digest = _checked_digest(page.following, path)
    else:
        raise Corrupt(path=path, reason=f"has more than {_PAGES_MAX} pages")
    total = 0
    for part in parts:
        if part.content:
            _checked_digest(part.content, path)
        if part.length <= 0 or part.length > node.size - total:
            raise Corrupt(path=path, reason="does not add up to the size of its file")
        total += part.length
    if total != node.size:
        raise Corrupt(path=path, reason="does not add up to the size of its file")
    return parts


def list_pages(reader: Objects, kind: int, digest: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Give the digest and the bytes of each page of a directory (TREE) or of a parts list (LIST).

    Raises:
        Corrupt: a page is missing, damaged, or of another shape.
    """
    path = f"{'tree' if kind == TREE else 'list'} {digest.hex()}"
    for _ in range(_PAGES_MAX):
        data = reader.read(kind, digest)
        yield digest, data
        if kind == TREE:
            following = decode_msgpack(data, _TreePage, path=path).following
        else:
            following = decode_msgpack(data, _ListPage, path=path).following
        if not following:
            return
        digest = _checked_digest(following, path)
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


def _metadata(page: _TreePage) -> tuple[int, int, int, int, Attributes]:
    return page.mode, page.mtime, page.uid, page.gid, page.attributes


def _check_version(version: int, path: str) -> None:
    if version > VERSION:
        raise Corrupt(
            path=path,
            reason=f"was written by a newer version (version {version})",
            hint="upgrade sandboxsdk",
        )
    if version != VERSION:
        raise Corrupt(path=path, reason=f"has version {version}")


def _checked_digest(digest: bytes, path: str) -> bytes:
    if len(digest) != DIGEST_BYTES:
        raise Corrupt(path=path, reason="names something that is no digest")
    return digest


def _check_metadata(found: _TreePage | Node, path: str) -> None:
    owned = 0 <= found.uid < 2**32 and 0 <= found.gid < 2**32
    if not owned or not 0 <= found.mode <= 0o7777 or not MTIME_MIN <= found.mtime <= MTIME_MAX:
        raise Corrupt(path=path, reason="has a mode, a time or an owner that cannot be")


def _check_attributes(attributes: Attributes, path: str) -> None:
    total = 0
    for name, value in attributes:
        total += len(name) + len(value)
        named = name.startswith(b"user.") and 5 < len(name) <= NAME_BYTES_MAX and b"\0" not in name
        if not named or len(value) > ATTRIBUTE_BYTES_MAX:
            raise Corrupt(path=path, reason=f"has an attribute {os.fsdecode(name)!r}")
    if total > ATTRIBUTES_BYTES_MAX or any(a[0] >= b[0] for a, b in pairwise(attributes)):
        raise Corrupt(path=path, reason="has attributes that cannot be")


def _check_nodes(nodes: Sequence[Node], path: str) -> None:
    """Refuse nodes that cannot be, or do not lie in order.

    Most are plain files with plain names, which is quickly seen; only what is not seen so is looked
    at one by one.
    """
    if _are_names_in_order([node.name for node in nodes]):
        for node in nodes:
            if not _is_plain_file(node):
                _check_node(node, path)
        return
    for node in nodes:
        _check_node(node, path)
    for one, two in pairwise(nodes):
        if one.name >= two.name:
            raise Corrupt(path=path, reason=f"does not list {os.fsdecode(two.name)!r} in order")


def _are_names_in_order(names: list[bytes]) -> bool:
    """Tell whether these are names as `_check_node` wants them, in order and without doubles."""
    if not names:
        return True
    joined = b"".join(names)
    return (
        b"/" not in joined
        and b"\0" not in joined
        and names[0] != b""
        and max(map(len, names)) <= NAME_BYTES_MAX
        and b"." not in names
        and b".." not in names
        and all(map(lt, names, names[1:]))
    )


def _is_plain_file(node: Node) -> bool:
    """Tell whether a node is a FILE as `_check_node` wants it, without attributes; says nothing of
    its name.
    """
    size = node.size
    # A negative number stays one, however far it is shifted.
    return (
        node.kind == FILE
        and len(node.content) == (DIGEST_BYTES if size else 0)
        and not (size | node.link) >> 63
        and not (node.uid | node.gid) >> 32
        and not node.mode >> 12
        and MTIME_MIN <= node.mtime <= MTIME_MAX
        and not node.attributes
    )


def _check_node(node: Node, path: str) -> None:
    """Refuse whatever a directory of a real file system could not hold."""
    name = node.name
    if not 0 < len(name) <= NAME_BYTES_MAX or name in (b".", b"..") or _IN_NO_NAME.search(name):
        raise Corrupt(path=path, reason=f"lists {os.fsdecode(name)!r}, which is no name")
    _check_metadata(node, path)
    if node.attributes:
        _check_attributes(node.attributes, path)
        if not node.is_file:
            # The kernel takes user attributes of nothing else; a directory's are in its own tree.
            raise Corrupt(path=path, reason=f"lists {os.fsdecode(name)!r} with attributes")
    length, size, fine = len(node.content), node.size, 0 <= node.size <= SIZE_MAX
    if node.kind == FILE:
        fine = fine and length == (DIGEST_BYTES if size else 0)
    elif node.kind == PARTS:
        fine = fine and length == DIGEST_BYTES and size > 0
    elif node.kind == DIRECTORY:
        fine = length == DIGEST_BYTES and node == Node(name, DIRECTORY, content=node.content)
    elif node.kind == SYMLINK:
        fine = 0 < length <= TARGET_BYTES_MAX and size == 0 and b"\0" not in node.content
    elif node.kind in (FIFO, SOCKET):
        fine = size == 0 and not length
    elif node.kind in (CHARACTER, BLOCK):
        fine = fine and not length
    else:
        fine = False
    if not fine or not 0 <= node.link < 2**63:
        raise Corrupt(path=path, reason=f"lists {os.fsdecode(name)!r} as what cannot be")
