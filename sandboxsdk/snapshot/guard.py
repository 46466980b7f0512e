"""Whether an entry is still what a tree says of it: asked before it is replaced or removed."""

from __future__ import annotations

import os
import stat
from typing import final

from sandboxsdk.errors import FileConflict
from sandboxsdk.host import Opener, has_openat2

from .measure import Trees
from .opened import OpenDirectories, list_directory
from .plan import Place, Plan
from .tree import DIRECTORY, FIFO, FILE, PARTS, SYMLINK, Node
from .writing import is_leftover

_KINDS = {
    FILE: stat.S_IFREG,
    PARTS: stat.S_IFREG,
    DIRECTORY: stat.S_IFDIR,
    SYMLINK: stat.S_IFLNK,
    FIFO: stat.S_IFIFO,
}


@final
class Guard:
    """Keeps a plan from replacing what somebody has changed since the tree was captured.

    Between the look and the step itself a moment remains.

    Args:
        root: digest of the tree that describes what is there.
        shown: what error messages put before a path.
    """

    def __init__(self, trees: Trees, root: bytes, shown: str) -> None:
        self._trees, self._root, self._shown = trees, root, shown
        self._known: dict[Place, dict[bytes, Node]] = {}

    def check(self, fd: int, place: Place, name: bytes) -> None:
        """Look at an entry of an open directory; one that is gone is nobody's loss.

        Raises:
            FileConflict: it is not what the tree says, or the tree has nothing there.
        """
        try:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        node = self._nodes(place).get(name)
        if node is None or not _is_same(node, found):
            self.refuse(place, name)

    def refuse(self, place: Place, name: bytes) -> None:
        """Say that something else is there.

        Raises:
            FileConflict: always.
        """
        raise FileConflict(
            path=self._shown + os.fsdecode(place.path(name)),
            reason="was changed while this was being done; what is there was kept",
            hint="do the same once more: what is done already stays so, and the rest is looked at",
        )

    def _nodes(self, place: Place) -> dict[bytes, Node]:
        known = self._known.get(place)
        if known is None:
            if place.parent is None:
                digest = self._root
            else:
                above = self._nodes(place.parent).get(place.name)
                digest = above.content if above is not None and above.kind == DIRECTORY else b""
            nodes = self._trees.directory(digest).nodes if digest else ()
            known = self._known[place] = {node.name: node for node in nodes}
        return known


def check_replaced(trees: Trees, root: int, made: Plan, shown: str) -> None:
    """Look whether a directory that is to become something else holds what its tree does not know.

    Raises:
        FileConflict: it does; `place` is its path.
    """
    taken = {(place, node.name) for place, node in made.entries}
    directories = OpenDirectories(Opener(with_openat2=has_openat2()), root)
    try:
        for place, node in made.removals:
            if node.kind == DIRECTORY and (place, node.name) in taken:
                top = Place(place, node.name)
                if not _is_known(trees, directories, top, node.content):
                    raise FileConflict(
                        path=shown + os.fsdecode(top.path()),
                        place=os.fsdecode(top.path()),
                        reason="holds something that is excluded, and is to become another thing",
                    )
    finally:
        directories.close()


def _is_known(trees: Trees, directories: OpenDirectories, top: Place, digest: bytes) -> bool:
    stack = [(top, digest)]
    while stack:
        at, now = stack.pop()
        known = {node.name: node for node in trees.directory(now).nodes}
        try:
            listed = list_directory(directories.open(at))
        except OSError:
            continue  # Gone, or something else by now: that is seen when it is its turn.
        for name, is_directory in listed:
            node = known.get(name)
            if node is None and not is_leftover(name):
                return False
            if node is not None and is_directory and node.kind == DIRECTORY:
                stack.append((Place(at, name), node.content))
    return True


def _is_same(node: Node, found: os.stat_result) -> bool:
    if _KINDS.get(node.kind) != stat.S_IFMT(found.st_mode):
        return False
    if node.kind == DIRECTORY:
        return True
    sized = found.st_size == node.size if node.is_file else True
    return sized and found.st_mtime_ns == node.mtime
