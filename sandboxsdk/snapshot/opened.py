"""Directories below a root, opened again and again, few at a time."""

from __future__ import annotations

import os
from collections import OrderedDict

from sandboxsdk import disk
from sandboxsdk.host import Opener

from .plan import Place

OPENED_MAX = 64
# So many levels are opened at once; the last of them is kept, for those that come after.
_STRIDE = 32


class OpenDirectories:
    """Descriptors of directories below a root, few of them; they stay this object's."""

    def __init__(self, opener: Opener, root: int) -> None:
        self._opener, self._root = opener, root
        self._opened: OrderedDict[Place, int] = OrderedDict()

    def open(self, place: Place) -> int:
        """Give a descriptor, good until many others were opened."""
        fd = self._opened.get(place)
        if fd is not None:
            self._opened.move_to_end(place)
            return fd
        chain = []
        start, at = self._root, place
        while at.parent is not None:
            if at in self._opened:
                start = self._opened[at]
                self._opened.move_to_end(at)
                break
            chain.append(at)
            at = at.parent
        chain.reverse()
        for first in range(0, len(chain), _STRIDE):
            steps = chain[first : first + _STRIDE]
            start = self._opener.directory(start, [step.name for step in steps])
            self._opened[steps[-1]] = start
            if len(self._opened) > OPENED_MAX:
                os.close(self._opened.popitem(last=False)[1])
        return start

    def forget(self, place: Place) -> None:
        """Close a directory that is to be removed."""
        fd = self._opened.pop(place, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        while self._opened:
            os.close(self._opened.popitem()[1])


def list_directory(fd: int) -> list[tuple[bytes, bool]]:
    """Give the names of a directory, and which of them are directories."""
    listed = disk.open_directory(".", dir_fd=fd)
    try:
        with os.scandir(listed) as entries:
            return [(os.fsencode(e.name), e.is_dir(follow_symlinks=False)) for e in entries]
    finally:
        os.close(listed)
