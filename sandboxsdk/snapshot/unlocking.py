"""Directories that their mode closes to us, opened up for as long as a walk is in them."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import final

from sandboxsdk.host import Cursor

from .level import Level
from .steady import set_all_bits


@final
class Unlocking:
    """The directories that a walk has opened up, the innermost last.

    Args:
        allowed: whether that may be done, to directories of ours.
    """

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self._levels: list[Level] = []

    def open_up(self, fd: int, level: Level) -> bool:
        """Give us all rights to a directory until `lock_again`; False if that is not to be done, or
        has not helped.
        """
        if not self._allowed or self._has_last(level) or level.found.st_uid != os.geteuid():
            return False
        self._levels.append(level)
        set_all_bits(fd, stat.S_IMODE(level.found.st_mode) | stat.S_IRWXU)
        return True

    def lock_again(self, fd: int, level: Level) -> None:
        """Give a directory its own mode, if it was opened up and nothing in it still is."""
        if self._has_last(level):
            self._levels.pop()
            with suppress(OSError):
                set_all_bits(fd, stat.S_IMODE(level.found.st_mode))

    def leave(self, cursor: Cursor, level: Level) -> None:
        """Go back to the directory above."""
        if not self._has_last(level):
            cursor.leave()
            return
        # The way back leads through the directory, so it is closed after that.
        fd = os.dup(cursor.fd)
        try:
            cursor.leave()
        finally:
            self.lock_again(fd, level)
            os.close(fd)

    def lock_all(self, cursor: Cursor, top: Level) -> None:
        """After an error: close again what lies below `top`, as far as it is still there."""
        with suppress(OSError, IndexError):
            while self._levels and self._levels[-1] is not top:
                while not os.path.samestat(os.fstat(cursor.fd), self._levels[-1].found):
                    cursor.leave()
                self.lock_again(cursor.fd, self._levels[-1])

    def _has_last(self, level: Level) -> bool:
        return bool(self._levels) and self._levels[-1] is level
