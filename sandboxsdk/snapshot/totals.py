"""How much a tree holds, counted without visiting a directory twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from .tree import DIRECTORY, Node, Objects, read_directory


class Totals(NamedTuple):
    """Regular files and the bytes of their contents, holes included."""

    files: int = 0
    bytes: int = 0

    def __add__(self, other: object) -> Totals:
        assert isinstance(other, Totals)
        return Totals(self.files + other.files, self.bytes + other.bytes)

    def __sub__(self, other: Totals) -> Totals:
        return Totals(self.files - other.files, self.bytes - other.bytes)


def totals_of(reader: Objects, tree: bytes) -> Totals:
    """Count what a directory holds, all below it included; a shared directory counts each time.

    Raises:
        Corrupt: a directory is missing or damaged.
    """
    return counted(lambda digest: read_directory(reader, digest).nodes, tree)


def counted(listed: Callable[[bytes], Iterable[Node]], tree: bytes) -> Totals:
    """As `totals_of`; `listed` gives what is in the directory of a digest."""
    known: dict[bytes, Totals] = {}
    waiting = [tree]
    while waiting:
        here = waiting[-1]
        if here in known:
            waiting.pop()
            continue
        nodes = list(listed(here))
        below = [node.content for node in nodes if node.kind == DIRECTORY]
        missing = [digest for digest in below if digest not in known]
        if missing:
            waiting += missing
            continue
        total = Totals()
        for node in nodes:
            if node.kind == DIRECTORY:
                total += known[node.content]
            elif node.is_file:
                total += Totals(1, node.size)
        known[here] = total
        waiting.pop()
    return known[tree]


def totals_after(
    listed: Callable[[bytes], Iterable[Node]], old: bytes, totals: Totals, new: bytes
) -> Totals:
    """Count what a tree holds, from what another one does; costs what differs.

    Args:
        listed: gives what is in the directory of a digest.

    Raises:
        Corrupt: a directory is missing or damaged.
    """
    waiting = [(old, new)]
    while waiting:
        before, after = waiting.pop()
        was, now = ({node.name: node for node in listed(digest)} for digest in (before, after))
        for name in was.keys() | now.keys():
            one, two = was.get(name), now.get(name)
            if one == two:
                continue
            if one is not None and two is not None and one.kind == two.kind == DIRECTORY:
                waiting.append((one.content, two.content))
                continue
            if one is not None:
                totals -= _held(listed, one)
            if two is not None:
                totals += _held(listed, two)
    return totals


def _held(listed: Callable[[bytes], Iterable[Node]], node: Node) -> Totals:
    if node.kind == DIRECTORY:
        return counted(listed, node.content)
    return Totals(1, node.size) if node.is_file else Totals()
