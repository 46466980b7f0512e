"""Threads started where an interrupt may come."""

from __future__ import annotations

import _thread
import errno
from collections.abc import Callable


def start_thread(run: Callable[[], None]) -> None:
    """Run it in a thread of its own, which no exit of the process waits for.

    threading.Thread waits for the thread's beginning with locks that are lost when an exception
    comes just after one was taken (Ctrl-C): the new thread then waits for ever, and with it the
    exit of the process. This waits for nothing. Whether the thread runs when an exception came
    into the call, it must tell itself.

    Raises:
        OSError: EAGAIN, there is no thread left to have.
    """
    try:
        _thread.start_new_thread(run, ())
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, "there is no thread left to have") from error
