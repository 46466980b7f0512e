"""Whether a frozen layer still holds what its two trees say: by names, types, sizes, times, modes.

A layer is a cache that lies open on a disk: a cleaner, a careless user or another program may have
been there. What is found to differ is not used, and its files come from the store. Contents are not
read: only a change that leaves every time and size as it was goes unseen.
"""

from __future__ import annotations

import os
import stat
from typing import final

from sandboxsdk.host import Opener, has_openat2, owned
from sandboxsdk.snapshot import DIRECTORY, FIFO, SYMLINK, Node, Trees, read_attributes

_READABLE = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def agrees(trees: Trees, parent: bytes, tree: bytes, layer: int) -> bool:
    """Tell whether a layer makes one tree of another.

    Args:
        parent, tree: digests of what it lies over, and of what it shows then.
        layer: descriptor of its root.

    Raises:
        OSError: it cannot be read.
        Corrupt: a tree is missing.
    """
    return _Check(trees, layer).run(parent, tree)


@final
class _Check:
    def __init__(self, trees: Trees, layer: int) -> None:
        self._trees, self._layer = trees, layer
        self._opener = Opener(with_openat2=has_openat2())

    def run(self, parent: bytes, tree: bytes) -> bool:
        waiting: list[tuple[tuple[bytes, ...], bytes, bytes]] = [((), parent, tree)]
        while waiting:
            parts, below, above = waiting.pop()
            inner = self._look(parts, below, above)
            if inner is None:
                return False
            waiting += inner
        return True

    def _look(
        self, parts: tuple[bytes, ...], below: bytes, above: bytes
    ) -> list[tuple[tuple[bytes, ...], bytes, bytes]] | None:
        """Compare one directory; gives those below it that the layer has, None if it differs."""
        wanted = {node.name: node for node in self._trees.directory(above).nodes}
        old = {}
        if below:
            old = {node.name: node for node in self._trees.directory(below).nodes}
        place = self._opener.directory(self._layer, parts)
        with owned(place), owned(os.open(".", _READABLE, dir_fd=place)) as reader:
            if parts and read_attributes(reader, overlay=True).opaque == b"y":
                old = {}
            found = {
                os.fsencode(entry.name): entry.stat(follow_symlinks=False)
                for entry in os.scandir(reader)
            }
        inner = []
        for name, status in found.items():
            node = wanted.get(name)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                if node is not None:
                    return None
                continue
            if node is None or not _is_same(node, status):
                return None
            if node.kind == DIRECTORY:
                was = old.get(name)
                under = was.content if was is not None and was.kind == DIRECTORY else b""
                inner.append(((*parts, name), under, node.content))
        # What the layer does not name is what lies below it.
        for name in wanted.keys() | old.keys():
            if name not in found and wanted.get(name) != old.get(name):
                return None
        return inner


def _is_same(node: Node, found: os.stat_result) -> bool:
    kind = stat.S_IFMT(found.st_mode)
    if node.kind == DIRECTORY:
        return kind == stat.S_IFDIR
    if node.kind == SYMLINK:
        return kind == stat.S_IFLNK and found.st_mtime_ns == node.mtime
    if node.kind == FIFO:
        return kind == stat.S_IFIFO and stat.S_IMODE(found.st_mode) == node.mode
    return (
        kind == stat.S_IFREG
        and stat.S_IMODE(found.st_mode) == node.mode
        and (found.st_size, found.st_mtime_ns) == (node.size, node.mtime)
    )
