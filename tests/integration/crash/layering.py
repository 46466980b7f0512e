"""Freezing, merging and exchanging layers, killed before each of their calls.

A program: it forks for each try, and has one thread. Uppers are written by hand, as an overlay
would write them, so nothing has to be mounted to look at what a view shows.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sandboxsdk import Home, Sandbox, Task, Workspace, disk
from sandboxsdk.checkpoint import Place
from sandboxsdk.errors import SandboxError

from .stage import clear

# With the times of the directories that they lie in.
EXCLUDED = (
    "find . -path '*.log' -o -path '*/cache*' | sort | while read f; do echo $f;"
    " stat -c %y $(dirname $f); test -d $f || cat $f; done"
)
_NOWHERE = Place(mounted=-1)
_KILLED = 9


class Stage:
    """A home with one task, which lies on some layers.

    Args:
        excluding: the task leaves paths out, and has some in each edit.
    """

    def __init__(self, place: Path, *, excluding: bool) -> None:
        self.home, self.base, self._saved = place / "home", place / "base", place / "saved"
        self.task = ""
        self._excluding = excluding

    def build(self, freezes: int) -> None:
        (self.base / "d" / "cache").mkdir(parents=True)
        for name in ("a", "b", "d/x", "d/y", "d/old.log", "d/cache/of-base"):
            (self.base / name).write_text(f"{name} of the base\n")
        home = Home(self.home)
        exclude = ["*.log", "cache/"] if self._excluding else []
        workspace = Workspace.private(self.base, exclude=exclude)
        task = Task.create("layers", workspace=workspace, home=home)
        self.task = task.id
        task.workspace().prepare()
        with task.attach():
            task.checkpoint_history().take("0")
            for number in range(1, freezes + 1):
                self.edit(number)
                task.checkpoint_history().take(str(number))
        self.edit(freezes + 1)
        _copy(self.home, self._saved)

    def edit(self, number: int) -> None:
        """Do in the upper what a guest's edits would leave there."""
        upper = self.home / "tasks" / self.task / "upper"
        (upper / "d").mkdir(exist_ok=True)
        (upper / "a").write_text(f"edit {number}\n")
        (upper / "d" / f"new{number}").write_text("new\n")
        gone = upper / "d" / ("x" if number % 2 else f"new{number - 1}")
        if number != 1 or gone.name == "x":
            gone.unlink(missing_ok=True)
            disk.make_whiteout(str(gone))
        if self._excluding:
            for name in ("top.log", "d/cache/inner", "d/new.log", f"made{number}/x.log"):
                (upper / name).parent.mkdir(exist_ok=True)
                with (upper / name).open("a") as file:
                    file.write(f"{number}\n")
            if not os.path.lexists(upper / "d" / "old.log"):
                disk.make_whiteout(str(upper / "d" / "old.log"))

    def reset(self) -> None:
        clear(self.home)
        _copy(self._saved, self.home)

    def opened(self) -> Task:
        return Task.open(self.task, home=Home(self.home))

    def shown(self) -> str:
        """Digest what the view shows now, as the next box would find it."""
        with Sandbox(self.opened()) as box:
            excluded = box.exec(EXCLUDED, check=True).stdout if self._excluding else ""
            return box.checkpoint("looked").tree + excluded


def _copy(source: Path, target: Path) -> None:
    # With the marks of uppers, and devices as they are.
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def checkpoint(task: Task) -> None:
    """Freeze what the upper holds."""
    task.checkpoint_history().take("made")


def restore(task: Task) -> None:
    """Go back to the beginning, keeping what is there."""
    task.checkpoint_history().restore("0", _NOWHERE, save={"kept": "yes"})


def drop(task: Task) -> None:
    """Go back to the first edit, keeping nothing."""
    task.checkpoint_history().restore("1", _NOWHERE, save=None)


OPERATIONS: dict[str, tuple[Callable[[Task], None], int]] = {
    "checkpoint": (checkpoint, 2),
    "checkpoint that merges": (checkpoint, 8),
    "restore": (restore, 3),
    "drop": (drop, 3),
}
LEAVING_OUT = "leaving paths out"


def main(name: str, place: str, leaving_out: str = "") -> None:
    """Kill an operation before each call in turn; say what was seen."""
    operation, freezes = OPERATIONS[name]
    stage = Stage(Path(place), excluding=leaving_out == LEAVING_OUT)
    stage.build(freezes)
    before = _in_child(stage.shown)
    stage.reset()
    assert _in_child(lambda: _run(stage, operation, 0)) == "done"
    after = _in_child(stage.shown)
    kills = 0
    for point in itertools.count(1):
        stage.reset()
        said = _in_child(lambda point=point: _run(stage, operation, point))
        found = _in_child(stage.shown)
        allowed = {before, after} if said != "done" else {after}
        assert found in allowed, f"{name} killed at {point}: {said}: {found} not in {allowed}"
        if said == "done":
            break
        kills += 1
    print(kills)


def _run(stage: Stage, operation: Callable[[Task], None], point: int) -> str:
    task = stage.opened()
    calls = 0

    def count(_call: str, _arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == point:
            os._exit(_KILLED)

    with task.attach():
        disk.watcher = count
        operation(task)
        disk.watcher = None
    return "done"


def _in_child(work: Callable[[], str]) -> str:
    """Do it in a process that knows nothing of what others did; "" if it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            os.write(writer, work().encode())
        except SandboxError as error:
            os.write(writer, f"error: {error!r}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        said = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (0 if said else _KILLED), f"ended with {status}: {said}"
    assert not said.startswith("error"), said
    return said


if __name__ == "__main__":
    main(*sys.argv[1:])
