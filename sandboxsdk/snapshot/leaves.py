"""Where a large directory is cut into leaves. (pure)

A leaf ends with a name of which the checksum says so, and with no other: where it is cut depends on
the names alone, so that equal directories have equal leaves, whatever was done to them before, and
one name that comes, goes or changes makes one leaf new, or two. 64 names make a leaf on average.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from zlib import crc32

# Directories of so many names have leaves.
LEAVED_MIN = 129
_MEAN = 64

# Digest of each leaf by the name that ends it; of one that ends with the directory by none.
Leaves = Mapping[bytes, bytes]
NO_LEAVES: Leaves = MappingProxyType({})
LAST = b""


def is_end(name: bytes) -> bool:
    """Tell whether a leaf ends with this name."""
    return crc32(name) % _MEAN == 0


def ends_of(names: Sequence[bytes]) -> list[bytes]:
    """Give the names that end leaves."""
    return [name for name in names if crc32(name) % _MEAN == 0]


def cut(names: Sequence[bytes], ends: Sequence[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Give each leaf: its key, and from where to where it goes."""
    start = 0
    for end in ends:
        stop = bisect_right(names, end, start)
        yield end, start, stop
        start = stop
    if start < len(names):
        yield LAST, start, len(names)


def after(
    leaves: Leaves, came: Collection[bytes], went: Collection[bytes], changed: Collection[bytes]
) -> tuple[list[bytes], Leaves]:
    """Say what becomes of the leaves of a directory.

    Args:
        came, went, changed: names, each in one of them at most.

    Returns:
        The names that end leaves afterwards, and the leaves that stay what they are.
    """
    new, old = set(filter(is_end, came)), set(filter(is_end, went))
    ends = sorted((leaves.keys() - {LAST} - old) | new)
    # What a new end cuts off, and what loses its end, is in the leaf behind it too.
    touched = {_leaf_of(ends, name) for names in (came, went, changed) for name in names}
    touched |= {_behind(ends, name) for name in new | old}
    return ends, {key: digest for key, digest in leaves.items() if key not in touched}


def _leaf_of(ends: Sequence[bytes], name: bytes) -> bytes:
    place = bisect_left(ends, name)
    return ends[place] if place < len(ends) else LAST


def _behind(ends: Sequence[bytes], name: bytes) -> bytes:
    place = bisect_right(ends, name)
    return ends[place] if place < len(ends) else LAST
