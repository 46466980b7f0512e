"""A restore of a box that does not end: the next use ends it, or another one takes its place."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandboxsdk import Home, Sandbox, Task, disk
from sandboxsdk.errors import HostFull

from .workspaces import KINDS, Stage, look, mess_up


@contextmanager
def full_at_rename() -> Iterator[None]:
    """Let no file get its name."""

    def refuse(call: str, _: object) -> None:
        if call == "rename":
            raise OSError(errno.ENOSPC, "No space left on device")

    disk.watcher = refuse
    try:
        yield
    finally:
        disk.watcher = None


@pytest.mark.parametrize("way", ["exec", "diff", "restore", "reopened", "block"])
@pytest.mark.parametrize(("kind", "runtime"), KINDS)
def test_the_next_use_ends_it(
    tmp_path: Path, home: Home, kind: str, runtime: str, way: str
) -> None:
    """Whatever is done next works on whole files."""
    stage = Stage(tmp_path, home, kind, runtime)
    with stage.box() as box:
        start = look(box)
        first = box.checkpoint("first")
        mess_up(box)
        messed = look(box)
        second = box.checkpoint("second")
        with full_at_rename(), pytest.raises(HostFull):
            box.restore(first, save_current=False)
        assert stage.task.status == "restoring"
        if way == "exec":
            assert look(box) == start
        elif way == "diff":
            assert box.diff(first) == []
            assert look(box) == start
        elif way == "restore":
            box.restore(second, save_current=False)
            assert look(box) == messed
        elif way == "block":
            with pytest.raises(KeyError), box.checkpoint():
                raise KeyError
            assert look(box) == start
    if way == "reopened":
        with stage.reopened() as box:
            assert look(box) == start
    assert Task.open(stage.task.id, home=home).status == "active"
    with Sandbox(stage.task) as box:
        box.restore(first, save_current=False)
        assert look(box) == start
