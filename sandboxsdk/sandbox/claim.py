"""Which box of this process has the files of a task mounted.

A private view is mounted once: what two mounts over one upper do is undefined, and the lease of a
task does not keep this process from itself.
"""

from __future__ import annotations

import os
import threading

from sandboxsdk.errors import Conflict

# By process, because a forked child has nothing mounted, and by place.
_boxes: dict[tuple[int, str], str] = {}
_guard = threading.Lock()


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
