"""What a directory lists: nodes, and what no directory of a real file system could list."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import pairwise
from operator import lt
from typing import Protocol

import msgspec

from sandboxsdk.errors import Corrupt

# What an entry is. A regular file is FILE when one blob holds all of it, PARTS when a list of blobs
# and holes does.
FILE, DIRECTORY, SYMLINK, FIFO, SOCKET, CHARACTER, BLOCK, PARTS = range(8)


DIGEST_BYTES = 32
NAME_BYTES_MAX = 255
TARGET_BYTES_MAX = 4095
SIZE_MAX = 2**63 - 1
ATTRIBUTES_BYTES_MAX = 1 << 20
# What the kernel takes as one value.
ATTRIBUTE_BYTES_MAX = 1 << 16
# Nanoseconds that fit into 64 bits: the years 1677 to 2262.
MTIME_MIN, MTIME_MAX = -(2**63), 2**63 - 1

_IN_NO_NAME = re.compile(b"[/\0]")

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


class Owned(Protocol):
    """What has a mode, a time and an owner."""

    @property
    def mode(self) -> int: ...
    @property
    def mtime(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...


def checked_digest(digest: bytes, path: str) -> bytes:
    """Give it back, or refuse it where it cannot be one."""
    if len(digest) != DIGEST_BYTES:
        raise Corrupt(path=path, reason="names something that is no digest")
    return digest


def check_metadata(found: Owned, path: str) -> None:
    """Refuse a mode, a time or an owner that no file system has."""
    owned = 0 <= found.uid < 2**32 and 0 <= found.gid < 2**32
    if not owned or not 0 <= found.mode <= 0o7777 or not MTIME_MIN <= found.mtime <= MTIME_MAX:
        raise Corrupt(path=path, reason="has a mode, a time or an owner that cannot be")


def check_attributes(attributes: Attributes, path: str) -> None:
    """Refuse attributes that a file system would not take, or that lie out of order."""
    total = 0
    for name, value in attributes:
        total += len(name) + len(value)
        named = name.startswith(b"user.") and 5 < len(name) <= NAME_BYTES_MAX and b"\0" not in name
        if not named or len(value) > ATTRIBUTE_BYTES_MAX:
            raise Corrupt(path=path, reason=f"has an attribute {os.fsdecode(name)!r}")
    if total > ATTRIBUTES_BYTES_MAX or any(a[0] >= b[0] for a, b in pairwise(attributes)):
        raise Corrupt(path=path, reason="has attributes that cannot be")


def check_nodes(nodes: Sequence[Node], path: str) -> None:
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
    check_metadata(node, path)
    if node.attributes:
        check_attributes(node.attributes, path)
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
