"""How much a tree holds, counted without visiting a directory twice."""

from __future__ import annotations

from typing import NamedTuple

from .tree import DIRECTORY, Objects, read_directory


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
    known: dict[bytes, Totals] = {}
    waiting = [tree]
    while waiting:
        here = waiting[-1]
        if here in known:
            waiting.pop()
            continue
        nodes = read_directory(reader, here).nodes
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
