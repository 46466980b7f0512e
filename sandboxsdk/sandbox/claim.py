"""Which boxes of this process have the files of a task mounted.

A private view is mounted once: what two mounts over one upper do is undefined, and the lease of a
task does not keep this process from itself. Of a directory itself there may be several: who wants
its files to stand still must know them all.
"""

from __future__ import annotations

import os
import threading

from sandboxsdk.errors import Conflict
from sandboxsdk.runtime import Instance

# By process, because a forked child has nothing mounted, and by place.
_boxes: dict[tuple[int, str], str] = {}
_guard = threading.Lock()
_running: dict[tuple[int, str], list[Instance]] = {}


def claim(directory: str, box: str) -> None:
    """Take the files in `directory` for a box, which may take them again.

    Raises:
        Conflict: another box of this process has them.
    """
    with _guard:
        owner = _boxes.setdefault((os.getpid(), directory), box)
    if owner != box:
        raise Conflict(
            reason=f"another Sandbox ({owner}) of this process runs on the files in {directory}",
            hint="use that one, or leave its block first; a Task may be attached many times",
        )


def let_go(box: str) -> None:
    """Give back what a box has."""
    with _guard:
        for place in [place for place, owner in _boxes.items() if owner == box]:
            del _boxes[place]


def note_running(directory: str, instance: Instance) -> None:
    """Remember that this instance works on the files in `directory`."""
    with _guard:
        _running.setdefault((os.getpid(), directory), []).append(instance)


def note_ended(instance: Instance) -> None:
    """Forget an instance."""
    with _guard:
        for place, instances in list(_running.items()):
            if instance in instances:
                instances.remove(instance)
                if not instances:
                    del _running[place]


def running_on(directory: str) -> list[Instance]:
    """Give the instances of this process that work on the files in `directory`, oldest first."""
    with _guard:
        return [i for i in _running.get((os.getpid(), directory), []) if i.alive()]
