"""One walk through a directory: what lies there, and what a box of ours may change in it."""

from __future__ import annotations

import os
import stat
from typing import final

from sandboxsdk.clock import rfc3339
from sandboxsdk.errors import WorkspaceInvalid
from sandboxsdk.units import format_size

_TEXTS = (".c", ".cfg", ".css", ".h", ".html", ".js", ".md", ".py", ".rs", ".rst", ".toml", ".txt")
_TEXT_BYTES_MAX = 256 * 1024


@final
class Survey:
    """What a walk found; links are not followed, and other file systems not entered.

    Attributes:
        entries: files, directories and everything else below the directory.
        size: bytes of the files' contents.
        newest: the latest change of any entry, in UTC nanoseconds. The kernel sets it whenever an
            entry is written, renamed, or gets another mode, and nobody can set it back.
        texts: paths of text files that a box may rewrite, those at the top first.
        fixed: directories at the top with something in them that a box may not remove.
        folders: the other directories at the top and how many entries go with each.

    Raises:
        WorkspaceInvalid: the directory cannot be read.
    """

    def __init__(self, root: str) -> None:
        try:
            found = os.stat(root)
            os.listdir(root)
        except OSError as error:
            raise WorkspaceInvalid(path=root, reason=os.strerror(error.errno or 0)) from error
        self.entries: int = 0
        self.size: int = 0
        self.newest: int = found.st_ctime_ns
        self.texts: list[str] = []
        self.folders: dict[str, int] = {}
        self._root, self._device = root, found.st_dev
        # In a box we are the owner of what is ours; root's boxes take the directory's owner.
        self._owner = os.geteuid() or found.st_uid
        self.fixed: set[str] = set()
        waiting = [("", True)]
        while waiting:
            waiting += self._visit(*waiting.pop())
        self.texts.sort(key=lambda path: (path.count("/"), path))
        for top in self.fixed:
            self.folders.pop(top, None)

    def __str__(self) -> str:
        newest = rfc3339(self.newest)
        return f"{self.entries:,} entries, {format_size(self.size)}, newest change {newest}"

    @property
    def fingerprint(self) -> tuple[int, int, int]:
        """What another walk finds again, as long as nobody changed anything."""
        return self.entries, self.size, self.newest

    def _visit(self, folder: str, writable: bool) -> list[tuple[str, bool]]:  # noqa: FBT001
        """Count what lies in one directory; give the directories in it."""
        inner = []
        top = folder.partition("/")[0]
        try:
            entries = list(os.scandir(os.path.join(self._root, folder)))
        except OSError:
            self.fixed.add(top)  # What cannot be read cannot be removed either.
            return []
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # Somebody removed it just now.
            path = f"{folder}/{entry.name}" if folder else entry.name
            self.entries += 1
            self.newest = max(self.newest, found.st_ctime_ns)
            mine = found.st_uid == self._owner
            if folder:
                self.folders[top] += 1
            if stat.S_ISDIR(found.st_mode):
                here = top or entry.name
                self.folders.setdefault(here, 1)
                open_to_us = mine and found.st_mode & 0o700 == 0o700
                same_device = found.st_dev == self._device
                if not open_to_us or not same_device:
                    self.fixed.add(here)
                if same_device:
                    inner.append((path, writable and open_to_us))
            elif stat.S_ISREG(found.st_mode):
                self.size += found.st_size
                readable = found.st_mode & (0o400 if mine else 0o004)
                small = 0 < found.st_size <= _TEXT_BYTES_MAX
                if writable and readable and small and entry.name.endswith(_TEXTS):
                    self.texts.append(path)
        return inner
