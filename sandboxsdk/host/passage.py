"""A way that many threads take at once, and that one may close for a moment."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator


class _Pass:
    """Somebody on the way; gone with whoever has it, also if an exception came at a bad moment."""


class Passage:
    """Counts who goes through, so that somebody can tell whether anybody has since a moment.

    An exception may come at any moment (Ctrl-C), so there is nothing that has to be counted back:
    the lock is a plain one, and who is on the way is whose pass is alive.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: weakref.WeakSet[_Pass] = weakref.WeakSet()
        self._passed = 0

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Go through during the block; waits while it is closed."""
        me = _Pass()
        with self._lock:
            self._inside.add(me)
            self._passed += 1
        try:
            yield
        finally:
            self._inside.discard(me)

    @property
    def in_use(self) -> bool:
        """Whether somebody is on the way."""
        return len(self._inside) > 0

    def mark(self) -> int:
        """Give a number that stands for this moment; -1 while somebody is on the way."""
        with self._lock:
            return -1 if self.in_use else self._passed

    @contextlib.contextmanager
    def closed(self, since: int) -> Iterator[bool]:
        """Close it for the block, unless somebody went through since a mark; says whether.

        To be called where no KeyboardInterrupt comes between: a closed passage stops everybody.
        """
        with self._lock:
            yield not self.in_use and self._passed == since
