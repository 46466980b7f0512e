"""Threads that an interrupt of whoever starts them, or waits for them, leaves in order."""

from __future__ import annotations

import _thread
import errno
import os
import threading
from collections.abc import Callable
from typing import final

from sandboxsdk import clock

_LOOK_SECONDS = 1.0


def _nothing() -> None:
    return None


@final
class Worker:
    """One thread, which no exit of the process waits for.

    threading.Thread waits for the thread's beginning with locks that are lost when an exception
    comes just after one was taken (Ctrl-C): the new thread then waits for ever, and with it the
    exit of the process. Here nothing is waited for. Whoever sees an exception come out of `start`
    calls `give_up`; the thread then is over once, sooner or later, whether it had begun or not.

    Args:
        run: what it does; raises nothing.
        at_end: called when that is over, or when it will never begin; raises nothing.

    Attributes:
        is_over: whether that was called.
    """

    def __init__(self, run: Callable[[], None], at_end: Callable[[], None] = _nothing) -> None:
        self._run, self._at_end = run, at_end
        self._pid = os.getpid()
        # Taken by the thread when it begins, or by us, so that it never does.
        self._begun = threading.Lock()
        self._over = threading.Lock()
        self._over.acquire()
        self.is_over: bool = False

    def start(self) -> None:
        """Have it run.

        Raises:
            OSError: EAGAIN, there is no thread left to have.
        """
        try:
            _thread.start_new_thread(self._work, ())
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, "there is no thread left to have") from error

    def give_up(self) -> None:
        """Let it not begin any more; what has begun goes on."""
        if self._begun.acquire(blocking=False):
            self._end()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over, for so many seconds at most; gives whether it is.

        In a forked child it is, as the thread is the parent's.
        """
        end = None if timeout is None else clock.monotonic() + timeout
        while not self.is_over and os.getpid() == self._pid:
            left = _LOOK_SECONDS if end is None else end - clock.monotonic()
            if left <= 0:
                return False
            # Who was interrupted just after taking the lock keeps it: the flag tells, the lock
            # only wakes.
            if self._over.acquire(timeout=min(left, _LOOK_SECONDS)):
                self._over.release()
        return True

    def _work(self) -> None:
        if self._begun.acquire(blocking=False):
            try:
                self._run()
            finally:
                self._end()

    def _end(self) -> None:
        try:
            self._at_end()
        finally:
            self.is_over = True
            self._over.release()
