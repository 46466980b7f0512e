"""Killing what has no pid namespace to die with: the children of a reaper, until none is left."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection


def kill_children(spared: Collection[int] = ()) -> bool:
    """Kill every child of this process but the spared; True if there was one.

    What a killed child had started becomes a child of the reaper, so the caller comes again.
    """
    found = False
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        children = [int(word) for word in file.read().split()]
    for child in children:
        if child not in spared:
            found = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    return found


def end_all() -> None:
    """Kill and reap until this process has no child left."""
    while kill_children():
        with contextlib.suppress(ChildProcessError):
            os.wait()
