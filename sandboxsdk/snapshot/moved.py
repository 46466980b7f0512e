"""What was changed in a directory since a moment, told by the times that the kernel keeps.

A file's ctime is set by every change of it and by every rename; nobody can set it back. A
directory's is set by a rename of it, and with its mtime by every change of the names in it. So a
name is known to be what it was if neither it nor a directory above it is younger, and what is
younger is told, when a directory is captured that somebody may have worked in meanwhile.
"""

from __future__ import annotations

import os
import stat
from typing import final

from sandboxsdk.model import MovedSince

from .level import Level
from .names import Names

_ENTRIES_MAX = 2_000
_BYTES_MAX = 1 << 18


@final
class Younger:
    """Collects what is younger than a moment, in UTC nanoseconds; None collects nothing."""

    def __init__(self, since: int | None) -> None:
        self._since = since
        self._entries: list[str] = []
        self._directories: list[tuple[str, int, bool]] = []
        self._bytes = 0
        self._more = False

    def see(self, level: Level, name: bytes, found: os.stat_result) -> None:
        """Look at an entry of a directory; without a name, at the directory itself."""
        if self._since is None or self._more:
            return
        listed = found.st_mtime_ns > self._since
        if found.st_ctime_ns <= self._since and not listed:
            return
        path = level.below(name) if name else level.path
        self._bytes += len(path) + 32
        if len(self._entries) + len(self._directories) >= _ENTRIES_MAX or self._bytes > _BYTES_MAX:
            self._more = True
        elif stat.S_ISDIR(found.st_mode):
            self._directories.append((os.fsdecode(path), found.st_ino, listed))
        elif found.st_ctime_ns > self._since:
            # A file's mtime can be set to any time.
            self._entries.append(os.fsdecode(path))

    def told(self) -> MovedSince:
        return MovedSince(
            entries=tuple(sorted(set(self._entries), key=os.fsencode)),
            directories=tuple(sorted(set(self._directories))),
            more=self._more,
        )


@final
class Moved:
    """Says of a path whether what was captured of it is what it was at the moment. (pure)

    Args:
        since: what is younger.
        names: what was there at the moment, where that was noted.
    """

    def __init__(self, since: MovedSince, names: Names | None) -> None:
        self._more = since.more
        self._names = names
        self._entries = {os.fsencode(path) for path in since.entries}
        self._directories = {
            os.fsencode(path): (inode, listed) for path, inode, listed in since.directories
        }

    def __call__(self, path: bytes, present: bool) -> bool:  # noqa: FBT001 - as a judge is called
        """Say whether it may be another than it was.

        Args:
            present: whether the capture has it.
        """
        if self._more or path in self._entries:
            return True
        found = self._directories.get(path)
        if found is not None and not found[1]:
            return True  # No name in it came or went: its own mode, or its place.
        above = path
        while above:
            if (above != path or present) and self._is_another(above):
                return True
            above = above.rpartition(b"/")[0]
        if present:
            return False
        if self._names is not None:
            # It was there and the user removed it, or it never was.
            return path in self._names
        return self._lost_names(path)

    def _is_another(self, directory: bytes) -> bool:
        """Say whether a directory may have been put into its place since."""
        found = self._directories.get(directory)
        if found is None:
            return False
        if self._names is not None:
            return not self._names.was_directory(directory, found[0])
        # Putting it there has changed the list of names in the one above.
        parent = self._directories.get(directory.rpartition(b"/")[0])
        return parent is not None and parent[1]

    def _lost_names(self, path: bytes) -> bool:
        """Say whether a directory above may have had this name, or the way to it."""
        above = path
        while above:
            above = above.rpartition(b"/")[0]
            found = self._directories.get(above)
            if found is not None and found[1]:
                return True
        return False
