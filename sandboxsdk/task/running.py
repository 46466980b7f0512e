"""Which boxes of this process have the files of a task mounted.

A private view is mounted once: what two mounts over one upper do is undefined, and the lease of a
task does not keep this process from itself. Of a directory itself there may be several: who wants
its files to stand still must know them all.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

from sandboxsdk.errors import Conflict
from sandboxsdk.workspace import Mounted


class Running(Mounted, Protocol):
    """What runs on the files of a task, as far as those who read them must know it."""

    @property
    def in_use(self) -> bool:
        """Whether some thread is in the midst of using its files, also after it was closed."""
        ...

    def alive(self) -> bool: ...

    def frozen(self) -> AbstractContextManager[object]:
        """Make it stand still for a block."""
        ...

    def clear(self) -> None:
        """End all its processes."""
        ...


# By process, because a forked child has nothing mounted, and by place.
_boxes: dict[tuple[int, str], str] = {}
_guard = threading.Lock()
_known: dict[tuple[int, str], list[Running]] = {}
# Those that are over, until no thread uses their files any more.
_ended: list[Running] = []


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


def note_running(directory: str, box: Running) -> None:
    """Remember that this works on the files in `directory`."""
    with _guard:
        _known.setdefault((os.getpid(), directory), []).append(box)


def note_ended(box: Running) -> None:
    """Forget it, as soon as nobody is in the midst of using its files."""
    with _guard:
        _ended.append(box)
        _forget_ended()


def _forget_ended() -> None:
    for box in [box for box in _ended if not box.in_use]:
        _ended.remove(box)
        for place, boxes in list(_known.items()):
            if box in boxes:
                boxes.remove(box)
                if not boxes:
                    del _known[place]


def running_on(directory: str) -> list[Running]:
    """Give what of this process works on the files in `directory`, oldest first."""
    with _guard:
        return [box for box in _known.get((os.getpid(), directory), []) if box.alive()]


@contextmanager
def still(directory: str) -> Iterator[list[Running]]:
    """Have all that this process runs on the files of a task stand still for a block.

    Gives also what is dead or ended and still used by some thread, which nothing can stop.
    """
    with ExitStack() as stack:
        for one in running_on(directory):
            stack.enter_context(one.frozen())
        with _guard:
            _forget_ended()
            found = list(_known.get((os.getpid(), directory), []))
        yield found
