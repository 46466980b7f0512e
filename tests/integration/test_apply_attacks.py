"""Somebody swaps directories of the target for links while changes are applied and taken back."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sandboxsdk import Home, Task, Workspace
from sandboxsdk.checkpoint import Place
from sandboxsdk.errors import SandboxError
from tests.swapping import compiled, fingerprint, swapping

# As many runs, and at least so long.
_RUNS = int(os.environ.get("SANDBOXSDK_RACED_APPLIES", "60"))


@pytest.mark.timeout(300)
def test_nothing_outside_is_touched(tmp_path: Path, home: Home) -> None:
    """Not one byte, name or time changes outside of the directory; what fails is typed; and when
    the attacker is gone, the next change comes through.
    """
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    for name in ("f", "inner/f", "new", "inner/new"):
        (outside / name).write_text("outside\n")
    work = tmp_path / "work"
    (work / "d" / "inner").mkdir(parents=True)
    (work / "e").symlink_to(outside)
    for number in range(30):
        (work / "d" / f"f{number}").write_text("base\n")
        (work / "d" / "inner" / f"f{number}").write_text("base\n")
    task = Task.create("t", workspace=Workspace.private(work, kind="copy"), home=home)
    history = task.checkpoint_history()
    with task.attach():
        history.begin()
    files = Path(task.directory) / "files"
    before = fingerprint(outside)
    program = compiled(tmp_path)
    outcomes: dict[str, int] = {}
    deadline = time.monotonic() + 60
    with swapping(program, [(work / "d", work / "e")]):
        for run in range(_RUNS):
            for number in range(0, 30, 3):
                (files / "d" / f"f{number}").write_text(f"run {run}\n")
                (files / "d" / "inner" / f"f{number}").write_text(f"run {run}\n")
            (files / "d" / "new").write_text(f"run {run}\n")
            for step in ("apply", "undo"):
                try:
                    if step == "apply":
                        report = task.apply(force=True)
                    else:
                        report.undo()
                    outcome = "done"
                except SandboxError as error:
                    outcome = error.code
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
                if outcome != "done":
                    break
            assert fingerprint(outside) == before
            if time.monotonic() > deadline:
                break
    print(outcomes)
    assert len(outcomes) > 1, "the attacker did nothing"
    if not (work / "d").is_dir() or (work / "d").is_symlink():
        (work / "d").rename(work / "x")
        (work / "e").rename(work / "d")
        (work / "x").rename(work / "e")
    (files / "d" / "new").write_text("after all\n")
    task.apply(force=True)
    assert (work / "d" / "new").read_text() == "after all\n"
    assert fingerprint(outside) == before
    with task.attach():
        history.finish(Place(mounted=-1))
