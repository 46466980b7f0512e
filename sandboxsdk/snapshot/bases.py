"""Directories of trees that uppers are laid over, remembered so that they are not read each time.

A checkpoint of an overlay reads each directory of the base that the upper names, and the next one
reads the same ones. What is remembered here was checked when it was read, or comes from a walk. It
serves what the layers on disk show, and nothing else: whoever restores a tree from the store, looks
into it or verifies it reads it from there, and notices what is damaged.
"""

from __future__ import annotations

import os
import threading
from typing import final

from .laying import Base
from .tree import Objects

# In nodes: about 40 MB. Four times that if all are forgotten that the others share with.
_WEIGHT_MAX = 160_000


@final
class Bases:
    """Some directories by digest; may be used from several threads. Nobody changes what it gives.

    When there are too many, those that were not asked for lately are forgotten.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._guard = threading.Lock()
        # What was asked for or came lately, and what did so before.
        self._recent: dict[bytes, Base] = {}
        self._former: dict[bytes, Base] = {}
        self._recent_weight = 0

    def _here(self) -> None:
        """In a forked child, where another thread of the parent may seem to be at work: anew."""
        if os.getpid() != self._pid:
            self._start()

    def keep(self, digest: bytes, base: Base) -> None:
        """Remember a directory that was stored under this digest."""
        if digest in self._recent:
            return
        self._here()
        if base.weight > _WEIGHT_MAX // 2:
            return
        with self._guard:
            if digest in self._recent:
                return
            if self._recent_weight + base.weight > _WEIGHT_MAX // 2:
                self._former, self._recent, self._recent_weight = self._recent, {}, 0
            self._recent[digest] = base
            self._recent_weight += base.weight

    def read(self, reader: Objects, digest: bytes) -> Base:
        """Give a directory, from the reader if it is not remembered.

        Raises:
            Corrupt: it is missing, damaged, or not what a directory can be.
        """
        found = self._recent.get(digest)
        if found is None:
            found = self._former.get(digest)
            if found is None:
                found = Base.read(reader, digest)
            self.keep(digest, found)
        return found


# Those of this process: what a digest names is the same in every store.
BASES = Bases()
