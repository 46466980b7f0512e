"""What was changed in a directory since a moment, told by the times that the kernel keeps.

A file's ctime is set by every change of it and by every rename; nobody can set it back. A
directory's is set by a rename of it, and with its mtime by every change of the names in it. So a
name is known to be what it was if neither it nor a directory above it is younger, and what is
younger is told, when a directory is captured that somebody may have worked in meanwhile.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable
from typing import final

from sandboxsdk.model import MovedSince

from .level import Level
from .names import Names

# What is told goes into a journal; where there is more, whole directories count as younger.
_TOLD_MAX = 2_000
_ENTRIES_MAX = 1_000_000
_BYTES_MAX = 1 << 28


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
        self._bytes += len(path) + 64
        if len(self._entries) + len(self._directories) >= _ENTRIES_MAX or self._bytes > _BYTES_MAX:
            self._more = True
        elif stat.S_ISDIR(found.st_mode):
            self._directories.append((os.fsdecode(path), found.st_ino, listed))
        elif found.st_ctime_ns > self._since:
            # A file's mtime can be set to any time.
            self._entries.append(os.fsdecode(path))

    def told(self) -> MovedSince:
        entries, directories = _gathered(set(self._entries), set(self._directories))
        return MovedSince(
            entries=tuple(sorted(entries, key=os.fsencode)),
            directories=tuple(sorted(directories)),
            more=self._more or len(entries) + len(directories) > 2 * _TOLD_MAX,
        )


Told = tuple[set[str], set[tuple[str, int, bool]]]


def _gathered(entries: set[str], directories: set[tuple[str, int, bool]]) -> Told:
    """Let directories with much that is younger stand for all below them, told with a slash at
    their end, until little enough is left. (pure)
    """
    while len(entries) + len(directories) > _TOLD_MAX:
        counts = Counter(_above(path) for path in (*entries, *(d[0] for d in directories)))
        counts.pop("", None)
        if not counts:
            break
        # The deepest of the fullest first, several at once: each round makes paths shorter.
        half = max(counts.values()) / 2
        full = {path for path, count in counts.items() if count >= half}
        entries = {path for path in entries if not _lies_in(path, full)}
        directories = {d for d in directories if not _lies_in(d[0], full)}
        entries |= {f"{path}/" for path in full if not _lies_in(path, full)}
    return entries, directories


def _above(path: str) -> str:
    return path.rstrip("/").rpartition("/")[0]


def _lies_in(path: str, directories: set[str]) -> bool:
    above = _above(path)
    while above:
        if above in directories:
            return True
        above = _above(above)
    return False


@final
class Moved:
    """Says of a path whether what was captured of it is what it was at the moment. (pure)

    Args:
        since: what is younger.
        names: what was there at the moment, where that was noted.
        had: says whether the capture has a directory at a path.
    """

    def __init__(
        self,
        since: MovedSince,
        names: Names | None,
        had: Callable[[bytes], bool] = lambda _path: False,
    ) -> None:
        self._more, self._had = since.more, had
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
            if above + b"/" in self._entries:
                return True  # All below it counts as younger.
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
        """Say whether the nearest directory above that the capture has may have had this name, or
        the way to it.
        """
        above = path
        while above:
            above = above.rpartition(b"/")[0]
            found = self._directories.get(above)
            if found is not None and found[1]:
                return True
            if above and self._had(above):
                return False
        return False
