"""Directories that something is laid over: what changes in one is put together with what stays.

Of a directory that lists hundreds of names and has one of them changed, the others are neither
sorted nor encoded again.
"""

from __future__ import annotations

from bisect import bisect_left
from operator import attrgetter
from typing import final

import msgspec

from sandboxsdk.codec import encode_msgpack
from sandboxsdk.store import TREE

from .leaves import LEAVED_MIN, NO_LEAVES, Leaves, after
from .tree import (
    Directory,
    Node,
    Objects,
    Sink,
    one_page,
    read_leaved,
    write_directory,
    write_leaved,
)

_NAME_OF = attrgetter("name")
# So many changes of one directory are put in one by one; each moves what lies behind it.
_ONE_BY_ONE_MAX = 64
# Of a directory that shares all but its changes with another, so many nodes weigh as much as one
# of its own. The lists alone would be a twentieth; the other directory may be forgotten first.
_SHARED_PER_NODE = 4


@final
class Base:
    """A directory that can be laid over.

    Args:
        leaves: of a directory that was read, if it has some.
        kept: leaves that are stored already, of one that is not.
        ends: the names that end leaves, if `kept` is given.

    Attributes:
        names: what it lists, in order.
        weight: about how many nodes' worth of memory it takes.
        leaves: all of them, once it is stored.
    """

    __slots__ = ("_encoded", "_ends", "_kept", "directory", "leaves", "names", "weight")

    def __init__(
        self,
        directory: Directory,
        names: list[bytes] | None = None,
        encoded: list[bytes] | None = None,
        weight: int = 0,
        leaves: Leaves = NO_LEAVES,
        kept: Leaves = NO_LEAVES,
        ends: list[bytes] | None = None,
    ) -> None:
        self.directory: Directory = directory
        self.names: list[bytes] = (
            [node.name for node in directory.nodes] if names is None else names
        )
        self._encoded = encoded
        self.leaves: Leaves = leaves
        self._kept, self._ends = kept, ends
        self.weight: int = weight or len(self.names) + 1

    @classmethod
    def read(cls, reader: Objects, digest: bytes) -> Base:
        """Read a directory. Raises as `read_directory`."""
        directory, leaves = read_leaved(reader, digest)
        return cls(directory, leaves=leaves)

    def find(self, name: bytes) -> Node | None:
        """Give the node of a name."""
        place = bisect_left(self.names, name)
        if place < len(self.names) and self.names[place] == name:
            return self.directory.nodes[place]
        return None

    @property
    def encoded(self) -> list[bytes]:
        """Each node as it is in the page; made when something is first laid over it."""
        if self._encoded is None:
            self._encoded = [encode_msgpack(node) for node in self.directory.nodes]
        return self._encoded

    def store(self, sink: Sink) -> bytes:
        """Store the directory; gives its digest. Raises as `write_directory`."""
        if len(self.names) >= LEAVED_MIN:
            made = write_leaved(
                sink, self.directory, self.names, self.encoded, self._ends, self._kept
            )
            if made is not None:
                digest, self.leaves = made
                self._kept, self._ends = NO_LEAVES, None
                return digest
        page = None if self._encoded is None else one_page(self.directory, self._encoded)
        return write_directory(sink, self.directory) if page is None else sink.add(TREE, page)


@final
class Laid:
    """The nodes of a base, and what is laid over them: as much of a dict as a walk needs."""

    __slots__ = ("_base", "_changes", "_count")

    def __init__(self, base: Base) -> None:
        self._base = base
        # None is a name that is gone.
        self._changes: dict[bytes, Node | None] = {}
        self._count = len(base.names)

    def get(self, name: bytes) -> Node | None:
        if name in self._changes:
            return self._changes[name]
        return self._base.find(name)

    def __contains__(self, name: bytes) -> bool:
        return self.get(name) is not None

    def __getitem__(self, name: bytes) -> Node:
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def __setitem__(self, name: bytes, node: Node) -> None:
        self._count += name not in self
        self._changes[name] = node

    def pop(self, name: bytes, default: None) -> Node | None:
        found = self.get(name)
        if found is None:
            return default
        self._count -= 1
        self._changes[name] = None
        return found

    def __len__(self) -> int:
        return self._count

    def finished(self, own: Directory) -> Base:
        """Give it as a directory.

        Args:
            own: the metadata that it has; its nodes do not matter.
        """
        base = self._base
        if len(self._changes) > _ONE_BY_ONE_MAX:
            nodes = {node.name: node for node in base.directory.nodes}
            nodes.update({name: node for name, node in self._changes.items() if node is not None})
            for name, node in self._changes.items():
                if node is None:
                    nodes.pop(name, None)
            listed = sorted(nodes.values(), key=_NAME_OF)
            return Base(msgspec.structs.replace(own, nodes=listed))
        names, encoded, listed = base.names, list(base.encoded), list(base.directory.nodes)
        for name, node in self._changes.items():
            place = bisect_left(names, name)
            there = place < len(names) and names[place] == name
            if node is not None and there:
                listed[place], encoded[place] = node, encode_msgpack(node)
                continue
            if node is None and not there:
                continue
            # The base's own list is others' too.
            names = list(names) if names is base.names else names
            if node is None:
                del names[place], encoded[place], listed[place]
            else:
                names.insert(place, name)
                encoded.insert(place, encode_msgpack(node))
                listed.insert(place, node)
        own = msgspec.structs.replace(own, nodes=listed)
        ends, kept = None, NO_LEAVES
        if base.leaves:
            ends, kept = after(base.leaves, *self._moved())
        weight = len(names) // _SHARED_PER_NODE + len(self._changes) + 1
        return Base(own, names, encoded, weight, kept=kept, ends=ends)

    def _moved(self) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """Name what came, went and changed."""
        came: list[bytes] = []
        went: list[bytes] = []
        changed: list[bytes] = []
        for name, node in self._changes.items():
            there = self._base.find(name) is not None
            if node is not None:
                (changed if there else came).append(name)
            elif there:
                went.append(name)
        return came, went, changed
