"""Hard links: which names of a tree are one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar, final

import msgspec

from sandboxsdk.codec import checksum

from .tree import Node


class Place(Protocol):
    """A directory that names lie in."""

    def below(self, name: bytes, /) -> bytes: ...


P = TypeVar("P", bound=Place)


@final
class LinkGroups(Generic[P]):
    """Names by inode, and the number of each group of two or more.

    The number comes from the first path of the group, so that it is the same next time. `salt`
    keeps groups of an upper apart from those of the base below it: a name may move from one to the
    other.
    """

    def __init__(self, *, salt: bytes) -> None:
        self._salt = salt
        # Each name once, although a directory that changes may list it twice.
        self._groups: dict[tuple[int, int], dict[tuple[P, bytes], None]] = {}

    @property
    def is_needed(self) -> bool:
        """Whether anything that was seen has several names, wherever they are."""
        return bool(self._groups)

    def add(self, place: P, name: bytes, found: os.stat_result) -> None:
        """Note a name of an inode that has several."""
        self._groups.setdefault((found.st_dev, found.st_ino), {})[place, name] = None

    def found(
        self, node_of: Callable[[P, bytes], Node | None]
    ) -> Iterator[tuple[int, list[tuple[P, bytes]]]]:
        """Give the number and the names of every group.

        A file whose other names lie outside of the tree is a file of one name. Names that were
        found to differ are not one file: it changed between them, or its inode was used again.

        Args:
            node_of: gives what was stored under a name; None if nothing was.
        """
        for members in self._groups.values():
            equal: dict[Node, list[tuple[P, bytes]]] = {}
            for place, name in members:
                node = node_of(place, name)
                if node is not None:
                    plain = msgspec.structs.replace(node, name=b"")
                    equal.setdefault(plain, []).append((place, name))
            for names in equal.values():
                if len(names) > 1:
                    first = min(place.below(name) for place, name in names)
                    number = int.from_bytes(checksum(self._salt, b"\0", first)[:8], "little")
                    yield number >> 1 or 1, names
