"""What a full disk, or something in the way, does to checkpoints and restores of an open task."""

from __future__ import annotations

import errno
import os

import pytest

from sandboxsdk import disk
from sandboxsdk.checkpoint import Place
from sandboxsdk.errors import FileConflict, HostFull
from sandboxsdk.model import Workspace
from sandboxsdk.snapshot import restore
from sandboxsdk.task import Task


@pytest.fixture
def work(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a").write_text("one")
    return tmp_path / "work"


def _task(work, home, **more):
    return Task.create("full", workspace=Workspace.direct(work, **more), home=home)


def test_a_full_disk_is_told_as_such(work, home, monkeypatch):
    """It is the host that is full, not a limit of the caller; nothing was made."""
    task = _task(work, home)

    def full(call, arguments):
        if call == "write" and "packs" in os.readlink(f"/proc/self/fd/{arguments[0]}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (work / "large").write_bytes(os.urandom(3 << 20))
    with task.attach():
        monkeypatch.setattr(disk, "watcher", full)
        with pytest.raises(HostFull):
            task.checkpoint_history().take("no")
        monkeypatch.setattr(disk, "watcher", None)
        assert task.checkpoints() == []
        task.checkpoint_history().take("yes")
    assert home.verify("content").ok


def test_a_restore_that_does_not_fit_touches_nothing(work, home, monkeypatch):
    """It is refused before it has begun: the task is as it was, and not in the middle of it."""
    task = _task(work, home)
    with task.attach():
        history = task.checkpoint_history()
        history.take("first")
        (work / "a").write_text("two")

        def no_room(*_):
            raise HostFull(path="/workspace", reason="No space left on device")

        monkeypatch.setattr(restore, "_check_growth", no_room)
        with pytest.raises(HostFull):
            history.restore("first", Place(mounted=-1), save=None)
    assert task.status == "active"
    assert (work / "a").read_text() == "two"


def test_a_restore_that_meets_what_is_excluded_is_given_up(work, home):
    """The conflict is told once; then the task is usable, and says where the old state is."""
    task = _task(work, home, exclude=["*.log"])
    with task.attach():
        history = task.checkpoint_history()
        history.take("first")
        (work / "a").unlink()
        (work / "a").mkdir()
        (work / "a" / "q.log").write_text("kept")
        with pytest.raises(FileConflict) as caught:
            history.restore("first", Place(mounted=-1), save={})
        assert task.checkpoints()[0].id in caught.value.hint
        assert task.status == "active"
        assert history.finish(Place(mounted=-1)) is None
        assert (work / "a" / "q.log").read_text() == "kept"
        (work / "a" / "q.log").unlink()
        history.restore("first", Place(mounted=-1), save=None)
    assert (work / "a").read_text() == "one"
