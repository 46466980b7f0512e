"""The index as a file: opened, made, replaced when it is bad, done without when it must be."""

from __future__ import annotations

import contextlib
import os

from sandboxsdk import disk
from sandboxsdk.disk import translated
from sandboxsdk.errors import Corrupt, HostFull, HostRefused, SandboxError

from .files import StoreFiles, check_file
from .index import Index

_INDEX = "index.sqlite"
_BESIDE = ("-journal", "-wal", "-shm")
Identity = tuple[int, int]


class IndexFile:
    """Where the index is kept.

    Args:
        files: of the store.
        read_only: write nothing.
    """

    def __init__(self, files: StoreFiles, *, read_only: bool) -> None:
        self._files, self._read_only = files, read_only
        self._identity: Identity | None = None
        self.path: str = files.shown(_INDEX)

    def open(self, *, held: bool = False) -> Index:
        """Open the index, make it, or do without.

        Args:
            held: the caller holds the store.

        Raises:
            Corrupt: something else than a file stands in its place.
        """
        for end in ("", *_BESIDE):
            check_file(self.path + end)
        try:
            if self._read_only:
                if not os.path.lexists(self.path):
                    return Index(None)
                return self._noted(read_only=True)
            with contextlib.nullcontext() if held else self._files.hold():
                return self._noted(read_only=False)
        except Corrupt:
            return Index(None) if self._read_only else self.replaced()
        except (HostFull, HostRefused):
            return Index(None)

    def replaced(self) -> Index:
        """Make a new index in place of a bad one; in memory while others may be writing."""
        try:
            with self._files.hold(exclusive=True, wait=False) as had:
                if not had:
                    return Index(None)
                self.remove()
                return self._noted(read_only=False)
        except SandboxError:
            return Index(None)

    def remove(self) -> None:
        """Under an exclusive hold: remove the file and what SQLite keeps beside it."""
        # The journal goes first: it would be applied to the new index.
        with translated("remove", self.path):
            for end in (*_BESIDE, ""):
                with contextlib.suppress(FileNotFoundError):
                    disk.remove(_INDEX + end, dir_fd=self._files.directory.fd)

    def _noted(self, *, read_only: bool) -> Index:
        before = self._there()
        index = Index(self.path, read_only=read_only)
        # As it was before: if it is replaced just now, that is noticed later.
        self._identity = before or self._there()
        return index

    def is_there(self) -> bool:
        """Tell whether there is a file."""
        return self._there() is not None

    def is_the_same(self) -> bool:
        """Tell whether the file is the one that was opened last."""
        return self._there() == self._identity

    def _there(self) -> Identity | None:
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return None
        return found.st_dev, found.st_ino
