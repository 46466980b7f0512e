"""How much a tree is when it is written out, counted without visiting a directory twice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from sandboxsdk.errors import Corrupt, LimitExceeded

from .bases import Bases
from .tree import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    FIFO,
    PARTS,
    SOCKET,
    Directory,
    Node,
    Reader,
    read_directory,
    read_parts,
)

# One checkpoint cannot be larger, however often its directories share what is below them.
ENTRIES_MAX = 20_000_000
DEPTH_MAX = 65_536
# What is recorded and never made.
NOT_MADE = (SOCKET, CHARACTER, BLOCK)

_KEPT_NODES_MAX = 200_000


def check_limits(entries: int, depth: int) -> None:
    """Refuse what is more than a checkpoint may be.

    Raises:
        LimitExceeded: it has too many entries or levels.
    """
    if entries > ENTRIES_MAX:
        raise LimitExceeded(reason=f"a checkpoint has more than {ENTRIES_MAX:,} entries")
    if depth > DEPTH_MAX:
        raise LimitExceeded(reason=f"a checkpoint has more than {DEPTH_MAX:,} levels")


class Trees:
    """Directories by digest; some are kept, because measuring, planning and writing each ask.

    Args:
        bases: remembers directories beyond this object, for what needs nothing from the store.
    """

    def __init__(self, reader: Reader, bases: Bases | None = None) -> None:
        self.reader = reader
        self._bases = bases
        self._kept: dict[bytes, Directory] = {}
        self._nodes = 0

    def directory(self, digest: bytes) -> Directory:
        """Give a directory, checked in full.

        Raises:
            Corrupt: it is missing, damaged, or not what a directory can be.
        """
        if self._bases is not None:
            return self._bases.read(self.reader, digest).directory
        found = self._kept.get(digest)
        if found is None:
            found = read_directory(self.reader, digest)
            cost = len(found.nodes) + 1
            if self._nodes + cost > _KEPT_NODES_MAX:
                self._kept.clear()
                self._nodes = 0
            if cost <= _KEPT_NODES_MAX:
                self._kept[digest] = found
                self._nodes += cost
        return found


class Extent(NamedTuple):
    """What a directory holds, itself counted; each path counts, also of what is shared."""

    entries: int
    data: int
    depth: int
    linked: bool


class Measure:
    """Counts what trees would be when written out, each directory read once, however often it is
    shared; every number stops growing at a limit.

    Attributes:
        linked: a node of each link number; its data is counted once, in `linked_data`.
    """

    def __init__(self, trees: Trees) -> None:
        self._trees = trees
        self._known: dict[bytes, Extent] = {}
        self.linked: dict[int, Node] = {}
        self.linked_data: int = 0

    @classmethod
    def whole(cls, trees: Trees, digest: bytes) -> Extent:
        """Measure one tree, with the data of files of several names; see `of`."""
        measure = cls(trees)
        extent = measure.of(digest)
        return extent._replace(data=extent.data + measure.linked_data)

    def of(self, digest: bytes) -> Extent:
        """Measure a directory and all below it.

        Raises:
            LimitExceeded: it has more entries or levels than a checkpoint may have.
            Corrupt: a directory or a list of parts is missing or damaged, a directory contains
                itself, or names of one file do not agree.
        """
        stack, begun = [digest], set[bytes]()
        while stack:
            now = stack[-1]
            if now in self._known:
                stack.pop()
                continue
            nodes = self._trees.directory(now).nodes
            if now in begun:
                self._known[now] = self._added_up(nodes)
                begun.discard(now)
                continue
            begun.add(now)
            check_limits(0, len(begun))
            for node in nodes:
                if node.kind == DIRECTORY and node.content not in self._known:
                    if node.content in begun:
                        raise Corrupt(path=f"tree {now.hex()}", reason="contains itself")
                    stack.append(node.content)
        found = self._known[digest]
        check_limits(found.entries, found.depth)
        return found

    def _added_up(self, nodes: Sequence[Node]) -> Extent:
        entries, data, depth, linked = 1 + len(nodes), 0, 0, False
        for node in nodes:
            if node.kind == DIRECTORY:
                below = self._known[node.content]
                # It is one of the nodes already.
                entries += below.entries - 1
                data += below.data
                depth = max(depth, below.depth)
                linked = linked or below.linked
            elif node.link:
                linked = self.link(node) or linked
            else:
                data += data_of(self._trees.reader, node)
        return Extent(min(entries, ENTRIES_MAX + 1), min(data, 2**63), depth + 1, linked)

    def link(self, node: Node) -> bool:
        """Note a node with a link number; tells whether it is to be made as one file with others.

        Raises:
            Corrupt: it does not agree with the others of its number.
        """
        first = self.linked.setdefault(node.link, node)
        if first is node:
            self.linked_data += data_of(self._trees.reader, node)
        elif msgspec.structs.replace(first, name=node.name) != node:
            reason = "is one file with others, and they do not agree"
            raise Corrupt(path=os.fsdecode(node.name), reason=reason)
        return is_shared(node)


def is_shared(node: Node) -> bool:
    """Tell whether a node is made as one file with others; links and sockets never are."""
    return node.link != 0 and (node.is_file or node.kind == FIFO)


def data_of(reader: Reader, node: Node) -> int:
    """Give the bytes that a file takes, holes not counted."""
    if node.kind == PARTS:
        return sum(part.length for part in read_parts(reader, node) if part.content)
    return node.size if node.is_file else 0
