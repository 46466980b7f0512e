"""What a task costs on a tree of any size: create, first command, diff after changes, undo."""

from __future__ import annotations

import itertools
import os
import tempfile
import time

from sandboxsdk.home import Home
from sandboxsdk.sandbox import Sandbox
from sandboxsdk.task import Task

from .measuring import Figure, in_turns


def create(base: str, home: Home, *, rounds: int) -> list[Figure]:
    """Time Task.create against the bare directory, file, syncs and rename that it needs."""
    made: list[Task] = []

    def floor() -> None:
        with tempfile.TemporaryDirectory(dir=home.path) as scratch:
            new = f"{scratch}/new"
            os.mkdir(new)
            descriptor = os.open(f"{new}/journal", os.O_CREAT | os.O_WRONLY, 0o600)
            os.write(descriptor, b"x" * 900)
            os.fdatasync(descriptor)
            os.close(descriptor)
            os.rename(new, f"{scratch}/made")
            directory = os.open(scratch, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)

    figures = in_turns(
        {
            "Task.create": lambda: made.append(Task.create("bench", workspace=base, home=home)),
            "mkdir, write, fdatasync, rename, fsync": floor,
        },
        rounds=rounds,
    )
    for task in made:
        task.delete()
    return figures


def whole_run(base: str, home: Home, *, rounds: int) -> list[Figure]:
    """Time the steps of a run that changes 20 files: enter, change, diff, leave, undo."""
    times: dict[str, list[float]] = {}
    names = [entry.name for entry in os.scandir(base) if entry.is_file(follow_symlinks=False)][:20]
    script = "; ".join(f"echo x >> '{name}'" for name in names) or "touch new"

    def once() -> None:
        marks = [time.perf_counter()]
        task = Task.create("bench", workspace=base, home=home)
        marks.append(time.perf_counter())
        with Sandbox(task) as box:
            box.exec(["true"], check=True)
            marks.append(time.perf_counter())
            box.exec(script, check=True)
            marks.append(time.perf_counter())
            box.diff()
            marks.append(time.perf_counter())
        marks.append(time.perf_counter())
        task.delete()
        marks.append(time.perf_counter())
        for step, (start, end) in zip(_STEPS, itertools.pairwise(marks), strict=True):
            times.setdefault(step, []).append((end - start) * 1000)

    for _turn in range(rounds + 2):
        once()
    return [Figure.of(step, taken[2:]) for step, taken in times.items()]


_STEPS = (
    "create the task",
    "enter the box, first command",
    "a command that changes 20 files",
    "diff",
    "leave the box",
    "undo: delete the task",
)
