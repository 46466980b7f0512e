"""Who may start a command when: everybody, until somebody needs the box to hold still."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from sandboxsdk.errors import UsageError


class Gate:
    """Open for starts; shut by one thread at a time, while the starts of the others wait.

    Args:
        box: its id, for errors.
        settle: called under the lock each time the gate opens, and after a change while it is open.
    """

    def __init__(self, box: str, settle: Callable[[], None]) -> None:
        self._box = box
        self._settle = settle
        self._changed = threading.Condition()
        self._shut_by = 0
        self._depth = 0

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Wait until the gate is open, and keep it so inside the block.

        Raises:
            UsageError: this thread has shut it itself, and would wait for ever.
        """
        with self._changed:
            self._refuse_own()
            self._changed.wait_for(lambda: not self._depth)
            yield

    @contextlib.contextmanager
    def shut(self, *, again: bool = True) -> Iterator[None]:
        """Keep the gate shut inside the block; blocks of one thread may lie in each other.

        Raises:
            UsageError: this thread has shut it, and may not do it `again`.
        """
        with self._changed:
            if not again:
                self._refuse_own()
            me = threading.get_ident()
            self._changed.wait_for(lambda: not self._depth or self._shut_by == me)
            self._shut_by = me
            self._depth += 1
        try:
            yield
        finally:
            with self._changed:
                try:
                    if self._depth == 1:
                        self._settle()
                finally:
                    self._depth -= 1
                    self._changed.notify_all()

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Change what `settle` looks at, without waiting for anybody."""
        with self._changed:
            yield
            if not self._depth:
                self._settle()

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Look at what starts change, while nothing starts."""
        with self._changed:
            yield

    def _refuse_own(self) -> None:
        if self._depth and self._shut_by == threading.get_ident():
            hint = "leave the block first"
            reason = "is frozen by this very thread"
            raise UsageError(what="box", value=self._box, reason=reason, hint=hint)
