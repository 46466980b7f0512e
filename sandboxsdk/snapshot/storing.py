"""The directories of a walk, stored from the deepest up."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .bases import Bases
from .cache import StatCache
from .level import Level
from .links import LinkGroups
from .tree import DIRECTORY, Node, Sink


def number_links(links: LinkGroups[Level]) -> bool:
    """Give the names of each file that has several the number of their group; False if none has."""
    linked = False
    for number, names in links.found(lambda level, name: level.nodes.get(name)):
        linked = True
        for level, name in names:
            level.nodes[name] = msgspec.structs.replace(level.nodes[name], link=number)
    return linked


def store_levels(
    sink: Sink,
    levels: Sequence[Level],
    known: StatCache,
    learned: StatCache | None,
    bases: Bases | None,
) -> bytes:
    """Store directories, each after the one above it; gives the digest of the first.

    Args:
        known: what the walk knew; a directory of which all is as it was is in the store.
        learned: takes what is worth to be remembered.
        bases: takes what was put together.

    Raises:
        LimitExceeded: more than a tree may hold.
        HostFull, HostRefused: the store cannot be written.
    """
    digest = b""
    for level in reversed(levels):
        digest = _stored(sink, level, known, bases)
        if learned is not None:
            _remember(level, digest, known, learned)
        above = level.above
        if above is not None:
            above.nodes[level.name] = Node(level.name, DIRECTORY, content=digest)
            if above.seen is not None and known.digest(level.path) != digest:
                above.moved = True
    return digest


def _stored(sink: Sink, level: Level, known: StatCache, bases: Bases | None) -> bytes:
    if level.seen is not None:
        if not level.moved:
            return level.seen.digest
        assert isinstance(level.nodes, dict)
        level.nodes = known.nodes(level.path) | level.nodes
    base = level.finished()
    digest = base.store(sink)
    if bases is not None:
        bases.keep(digest, base)
    return digest


def _remember(level: Level, digest: bytes, known: StatCache, learned: StatCache) -> None:
    if level.is_far or level.inner is None:
        return
    if level.seen is not None:
        learned.carry(level.path, known, digest)
    elif not level.attributes and not level.marked:
        learned.see(level.path, level.found, digest, level.inner, level.others)
