"""Errors of the disk at each call: typed, nothing lost, nothing left open; the retry succeeds."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxsdk.errors import HostFull, SandboxError

from .failing import failing, held_locks, open_files
from .stage import OPERATIONS, Stage, Told, check_all, clear, quick_place
from .tracing import environment

_TRIED = ["checkpoint", "checkpoints", "restore", "restore_to", "gc", "tag", "create", "delete"]
# How many things are acknowledged when all went well; of the first, leaving the session may fail.
_ACKNOWLEDGED = {"checkpoints": 3, "tag": 2}
_CODES = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)


@pytest.fixture
def room(tmp_path) -> Iterator[Path]:
    """Give a directory in memory, or elsewhere if there is none."""
    place = quick_place(tmp_path)
    yield place
    clear(place)


def _calls(stage: Stage, name: str) -> int:
    """Count the calls of an operation."""
    none = failing(1 << 40, errno.EIO, from_then_on=False)
    with none.active():
        OPERATIONS[name].run(stage, lambda *_: None)
    return none.calls


@pytest.mark.timeout(300)
@pytest.mark.parametrize("from_then_on", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("name", _TRIED)
def test_an_error_at_any_call_loses_nothing(name, from_then_on, tmp_path, room):
    """An error of the disk at any call gives a typed error that names a path, or does no harm;
    nothing half-made shows, no descriptor or lock stays, and the retry succeeds.
    """
    operation = OPERATIONS[name]
    stage = Stage(tmp_path, room).build(operation.kind)
    calls = _calls(stage, name)
    stage.reset(work=operation.touches_work)
    before = open_files()
    failed = 0
    for number in range(1, calls + 1):
        # Each call meets one of them; the next share of calls begins with another.
        for code in (_CODES[number % len(_CODES)], errno.ENOSPC):
            stage.reset(work=operation.touches_work)
            injected = failing(number, code, from_then_on=from_then_on)
            told: list[list[Any]] = []
            error = None
            try:
                with injected.active():
                    operation.run(stage, lambda *facts, t=told: t.append(list(facts)))
            except SandboxError as found:
                error = found
            try:
                _check_error(error, code, injected.hit, stage)
                assert not injected.synced_again, injected.synced_again
                assert open_files() <= before
                assert not held_locks(str(stage.home_path))
                if error is not None:
                    failed += 1
                    assert len(told) < _ACKNOWLEDGED.get(name, 1), "what failed was acknowledged"
                check_all(stage, Told(name, told))
                assert open_files() <= before
            except BaseException as problem:
                shown = f"{error!r}: {error}" if error else "no error"
                problem.add_note(
                    f"{name}: call {number} of {calls} {injected.hit[:1]} failed with"
                    f" {errno.errorcode[code]}; {shown}; told {told}"
                )
                raise
    print(f"{name}: {2 * calls} errors injected, {failed} told")
    assert failed


def _check_error(error: SandboxError | None, code: int, hit: list[Any], stage: Stage) -> None:
    if error is None:
        return
    assert hit
    named = str(error.fields.get("path", ""))
    # A user's directory is named as the box shows it.
    places = (str(stage.home_path), str(stage.work), str(stage.out), "/workspace")
    assert named.startswith(places), f"names no path: {error}"
    if code in (errno.ENOSPC, errno.EDQUOT):
        assert isinstance(error, HostFull), repr(error)


# --- A disk that is really full -------------------------------------------------------------------

_FULL = """
import errno, os, random, subprocess, sys
place, files = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", place], check=True)

from sandboxsdk import Home, Task, Workspace
from sandboxsdk.errors import HostFull

home = Home(place + "/home")
task = Task.create("full", workspace=Workspace.direct(files), home=home)
chance = random.Random(7)
made, full = [], None
with task.attach():
    history = task.checkpoint_history()
    for number in range(100):
        with open(files + "/data", "wb") as file:
            # What is kept must fit into the reserve: there is no other room to move it to.
            file.write(chance.randbytes(700_000 if number else 300_000))
        try:
            made.append(history.take(str(number)))
        except HostFull as error:
            full = error
            break
assert full is not None and full.path.startswith(place), full
assert len(made) >= 3, made
# Not one byte is left.
filler = place + "/filler"
def fill():
    with open(filler, "ab", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC
fill()
assert os.statvfs(place).f_bavail == 0
assert [found.id for found in task.checkpoints()] == [found.id for found in reversed(made)]
assert all(found.verify().ok for found in made)
with task.attach():
    try:
        history.take("still full")
    except HostFull:
        pass
    else:
        raise AssertionError("it is full")
    for found in made[1:]:
        try:
            found.delete()
        except HostFull:
            # Not even a line fits, and the journal is as it was: a little room is all it needs.
            assert found in task.checkpoints()
            os.truncate(filler, os.path.getsize(filler) - 8192)
            found.delete()
fill()
report = home.gc()
assert report.freed_bytes > 700_000, report
with task.attach():
    again = history.take("there is room")
assert again.verify().ok and made[0].verify().ok
assert home.verify("content").ok
assert [found.id for found in task.checkpoints()] == [again.id, made[0].id]
print("freed", report.freed_bytes, "with", len(made), "checkpoints")
"""


@pytest.mark.timeout(120)
def test_a_full_disk_says_so_and_can_be_freed(tmp_path):
    """On a file system without one free byte a checkpoint is refused as HostFull, what was made is
    whole, and deleting and collecting frees enough for the next one.
    """
    place, files = tmp_path / "small", tmp_path / "files"
    place.mkdir()
    files.mkdir()
    apart = ["unshare", "--mount"]
    if os.geteuid() != 0:
        apart += ["--user", "--map-root-user"]
    done = subprocess.run(
        [*apart, sys.executable, "-c", _FULL, str(place), str(files)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    print(done.stdout)
