"""Checkpoints of an open box: its processes stand still while the files are read, and are gone
while they are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sandboxsdk import clock
from sandboxsdk.checkpoint import Checkpoint, Place
from sandboxsdk.errors import BoxBusy
from sandboxsdk.model import RestoreReport
from sandboxsdk.runtime import Instance
from sandboxsdk.task import Task, running_on, still

Tell = Callable[[str, Mapping[str, Any]], None]
_PROGRESS_SECONDS = 0.2


def place_of(instance: Instance) -> Place:
    """Say where a box has its files, and with which ids they are given to whom."""
    return Place(mounted=instance.workspace, owners=instance.seen_ids, boxes=(instance,))


def take(
    task: Task,
    *,
    name: str | None,
    description: str,
    labels: Mapping[str, str] | None,
    tell: Tell,
    roll_back: Callable[[Checkpoint], RestoreReport],
) -> Checkpoint:
    """Make a checkpoint of what is in the box now."""
    made = task.checkpoint_history().take(
        name,
        description=description,
        labels=labels,
        progress=_progress(tell),
        roll_back=roll_back,
    )
    tell("checkpoint", {"checkpoint": made})
    return made


def restore(
    task: Task,
    instance: Instance,
    wanted: Checkpoint | str,
    *,
    save: Mapping[str, str] | None,
    kill: bool,
    tell: Tell,
    rollback: bool = False,
) -> RestoreReport:
    """Make what is in the box what a checkpoint holds.

    Args:
        rollback: as `History.restore`.

    Raises:
        BoxBusy: processes run in it, and they are not to be killed.
    """
    checkpoints = task.checkpoint_history()
    if not rollback:
        wanted = checkpoints.find(wanted)  # Before anything is killed for what is not there.
    with checkpoints.alone(), _empty(task, kill=kill):
        report = checkpoints.restore(
            wanted, place_of(instance), save=save, rollback=rollback, progress=_progress(tell)
        )
    tell("restore", {"report": report})
    return report


@contextmanager
def _empty(task: Task, *, kill: bool) -> Iterator[None]:
    """Have no process on the files during a block; what other threads start waits for its end."""
    while True:
        for box in running_on(task.directory):
            if box.busy():
                if not kill:
                    raise BoxBusy(box=task.id, what="its files cannot be replaced")
                box.clear()
        with still(task.directory) as boxes:
            # Another thread may have started something in between.
            if not any(box.busy() for box in boxes):
                yield
                return


def _progress(tell: Tell) -> Callable[[int, int], None]:
    """Tell how far a long walk is, a few times per second."""
    told = clock.monotonic()

    def progress(files: int, size: int) -> None:
        nonlocal told
        now = clock.monotonic()
        if now - told >= _PROGRESS_SECONDS:
            told = now
            tell("progress", {"files": files, "bytes": size})

    return progress
