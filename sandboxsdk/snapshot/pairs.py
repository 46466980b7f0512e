"""The nodes of two directories, by name: what trees are compared by.

Most nodes of two states of a directory are equal, and looking at each of them in Python is what
comparing would cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import eq

from .tree import Node

Pair = tuple[bytes, Node | None, Node | None]


def differing(before: Sequence[Node], after: Sequence[Node]) -> Iterator[Pair]:
    """Give each name at which two sorted lists are not equal, in order, with what both have."""
    if len(before) == len(after):
        places = [place for place, same in enumerate(map(eq, before, after)) if not same]
        if all(before[place].name == after[place].name for place in places):
            return ((before[place].name, before[place], after[place]) for place in places)
    return (pair for pair in _paired(before, after) if pair[1] != pair[2])


def _paired(before: Sequence[Node], after: Sequence[Node]) -> Iterator[Pair]:
    one, two = iter(before), iter(after)
    old, new = next(one, None), next(two, None)
    while old is not None or new is not None:
        if new is None or (old is not None and old.name < new.name):
            assert old is not None
            yield old.name, old, None
            old = next(one, None)
        elif old is None or new.name < old.name:
            yield new.name, None, new
            new = next(two, None)
        else:
            yield new.name, old, new
            old, new = next(one, None), next(two, None)
