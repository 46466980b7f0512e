"""Checkpoints of a task without a box: taking, finding, restoring, and what interrupts that."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sandboxsdk import disk
from sandboxsdk.checkpoint import Checkpoint, History, Place
from sandboxsdk.checkpoint.checkpoint import owners_of
from sandboxsdk.errors import (
    CheckpointNotFound,
    Conflict,
    Corrupt,
    Denied,
    HostFull,
    SandboxError,
    TaskLocked,
    UsageError,
)
from sandboxsdk.home import Home
from sandboxsdk.model import Workspace
from sandboxsdk.task import Task

HERE = Place(mounted=-1)
ROOT = os.geteuid() == 0


class Stage:
    """A directory, a task that works on it directly, and its checkpoints."""

    def __init__(self, home: Home, place: Path) -> None:
        self.home, self.base = home, place
        place.mkdir()
        for name in ("a", "b", "sub/c", "sub/d"):
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_text(f"{name} at first\n")
        self.task = Task.create("t", workspace=Workspace.direct(place), home=home)

    @property
    def history(self) -> History:
        return self.task.checkpoint_history()

    def files(self) -> dict[str, str]:
        found = {}
        for path in sorted(self.base.rglob("*")):
            text = path.read_text("latin-1") if path.is_file() else "/"
            found[str(path.relative_to(self.base))] = text
        return found

    def change(self) -> None:
        (self.base / "a").write_text("a was changed\n")
        (self.base / "sub/c").unlink()
        (self.base / "new").mkdir()
        (self.base / "new/e").write_text("e is new\n")


@pytest.fixture
def stage(home: Home, tmp_path: Path) -> Stage:
    return Stage(home, tmp_path / "project")


@contextmanager
def failing(wanted: Callable[[str, tuple[Any, ...]], bool]) -> Iterator[None]:
    """Let the disk be full for the calls that are wanted."""

    def refuse(call: str, arguments: tuple[Any, ...]) -> None:
        if wanted(call, arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

    disk.watcher = refuse
    try:
        yield
    finally:
        disk.watcher = None


def test_a_checkpoint_is_a_record_in_the_journal(stage: Stage) -> None:
    """What is given is what the journal holds; nothing else says that it exists."""
    made = stage.history.take("n", description="d", labels={"k": "v"})
    assert stage.task.checkpoints() == [made]
    (found,) = stage.history.list()
    assert found.record == made.record
    assert (made.name, made.description, dict(made.labels)) == ("n", "d", {"k": "v"})
    assert (made.task, made.parent, made.stats.files) == (stage.task.id, None, 4)
    assert made.created_at > stage.task.created_at
    assert repr(made) == f"Checkpoint({made.id!r}, 'n')"
    assert hash(made) == hash(found)
    assert made != stage.history.take()
    assert made != "n"


def test_equal_files_have_equal_trees(stage: Stage) -> None:
    """Nothing new is stored for them, and the digest says that they are equal."""
    first, second = stage.history.take(), stage.history.take()
    assert first.tree == second.tree
    assert second.stats.new_bytes == 0
    stage.change()
    assert stage.history.take().tree != first.tree


def test_files_go_back_and_forth(stage: Stage) -> None:
    """Restoring gives the files of the checkpoint, and saves what was there."""
    before = stage.files()
    first = stage.history.take("first")
    stage.change()
    after = stage.files()
    report = stage.history.restore("first", HERE, save={"why": "test"})
    assert stage.files() == before
    assert (report.written, report.removed) == (2, 1)
    saved = stage.task.checkpoint_by(report.saved or "")
    assert dict(saved.labels) == {"why": "test"}
    assert stage.history.points().head == first.id
    assert stage.history.restore(saved, HERE, save=None).saved is None
    assert stage.files() == after


def test_only_a_boxs_own_checkpoint_is_a_block(stage: Stage) -> None:
    """One that was found, or made without a box, has nothing to roll back."""
    made = stage.history.take()
    for checkpoint in (made, stage.task.checkpoints()[0]):
        with pytest.raises(UsageError, match="no box to roll back"), checkpoint:
            pass


def test_a_block_tells_its_owner(stage: Stage) -> None:
    """It calls back when it raises, lets the error through, and says what could not be kept."""
    called: list[Checkpoint] = []

    def roll_back(checkpoint: Checkpoint) -> Any:
        called.append(checkpoint)
        return stage.history.restore(checkpoint, HERE, save=None, rollback=True)

    made = stage.history.take(roll_back=roll_back)
    with made:
        pass
    assert called == []
    with pytest.raises(KeyError) as caught, made:
        made.delete()
        raise KeyError
    assert called == [made]
    assert "could not be kept" in caught.value.__notes__[0]


def test_a_full_disk_makes_no_checkpoint(stage: Stage) -> None:
    """At whatever call it gets full: the error says so, nothing is there, the next one works."""
    stage.history.take().delete()
    for number in range(50):
        told: list[str] = []

        def full(call: str, _: tuple[Any, ...], told: list[str] = told, n: int = number) -> bool:
            told.append(call)
            # What a failed append wrote can be cut off on a full disk too.
            return len(told) > n and call != "truncate"

        (stage.base / "a").write_text(f"round {number}\n")
        with failing(full):
            try:
                stage.history.take("half")
            except HostFull:
                pass
            else:
                break
        assert stage.task.checkpoints() == []
    assert number >= 3
    made = stage.history.take("whole")
    assert made.read("a") == f"round {number}\n".encode()
    assert made.verify().ok
    assert stage.home.verify("content").ok


def test_an_interrupted_restore_is_finished_later(stage: Stage) -> None:
    """It stays open in the journal: comparing with now is refused, finishing gives the target."""
    before = stage.files()
    made = stage.history.take()
    stage.change()
    with failing(lambda call, arguments: call == "rename"), pytest.raises(HostFull):
        stage.history.restore(made, HERE, save={"x": "y"})
    assert stage.task.status == "restoring"
    assert stage.history.points().restoring is not None
    for look in (made.diff, stage.task.diff):
        with pytest.raises(Conflict, match="was interrupted"):
            look()
    assert stage.task.diff(made, made) == []
    report = stage.history.finish(HERE)
    assert report is not None
    assert (report.checkpoint, report.ok) == (made.id, True)
    assert report.saved == stage.task.checkpoints()[0].id
    assert stage.files() == before
    assert stage.history.finish(HERE) is None
    assert stage.task.status == "pending"
    assert made.diff() == []


def test_an_interrupted_restore_can_be_given_up(stage: Stage) -> None:
    """Another restore takes its place, and what it saves is the state in between."""
    first = stage.history.take("first")
    stage.change()
    second = stage.history.take("second")
    after = stage.files()
    with failing(lambda call, arguments: call == "rename"), pytest.raises(HostFull):
        stage.history.restore(first, HERE, save=None)
    report = stage.history.restore(second, HERE, save={})
    assert report.saved is not None
    assert stage.files() == after
    assert stage.history.points().restoring is None
    assert stage.history.points().head == second.id


def test_what_is_damaged_is_never_restored(stage: Stage) -> None:
    """The check names the checkpoint and the files; reading and restoring it are Corrupt."""
    (stage.base / "noise").write_bytes(os.urandom(200_000))
    made = stage.history.take()
    before = stage.files()
    (pack,) = Path(stage.home.path, "store/packs").glob("*.pack")
    data = bytearray(pack.read_bytes())
    data[100_000] ^= 4
    pack.write_bytes(data)
    history = Task.open(stage.task.id, home=Home(stage.home.path)).checkpoint_history()
    damaged = history.find(made.id)
    report = damaged.verify()
    assert not report.ok
    (problem,) = report.problems
    assert problem.checkpoints == (made.id,)
    assert "noise" in problem.files
    with pytest.raises(Corrupt):
        damaged.read("noise")
    with pytest.raises(Corrupt):
        damaged.restore_to(stage.base.parent / "out")
    assert not (stage.base.parent / "out").exists()
    (stage.base / "noise").write_text("other")
    with pytest.raises(Corrupt):
        history.restore(damaged, HERE, save=None)
    assert {**stage.files(), "noise": ""} == {**before, "noise": ""}


def test_a_missing_store_is_told(stage: Stage) -> None:
    """A pack that is gone is named by verify, and nothing is invented."""
    made = stage.history.take()
    for pack in Path(stage.home.path, "store/packs").glob("*.pack"):
        pack.unlink()
    history = Task.open(stage.task.id, home=Home(stage.home.path)).checkpoint_history()
    found = history.find(made.id)
    assert not found.verify().ok
    for call in (found.files, lambda: found.read("a")):
        with pytest.raises(Corrupt):
            call()


def test_tags_and_deletions_hold_the_task(stage: Stage) -> None:
    """They take the lease for the call, so they wait for another process; here they nest."""
    made = stage.history.take()
    with stage.task.attach():
        made.tag("x")
        assert stage.task.checkpoint_by("x") == made
        made.delete()
    with pytest.raises(CheckpointNotFound):
        made.tag("y")
    with pytest.raises(CheckpointNotFound):
        made.delete()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with stage.task.attach(timeout=0):
                status = 0
        except TaskLocked:
            status = 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(ROOT, reason="root may read everything")
def test_what_may_not_be_read_is_named(stage: Stage) -> None:
    """The checkpoint fails with the path, and nothing was made."""
    (stage.base / "sub/c").chmod(0)
    with pytest.raises(Denied, match="sub/c: may not be read") as caught:
        stage.history.take()
    assert "exclude" in caught.value.hint
    assert stage.task.checkpoints() == []


def test_owners_are_for_root_alone() -> None:
    """Only root restores owners, and only those that root captured."""
    keep = owners_of(0)
    if ROOT:
        assert keep is not None
        assert keep(5, 6) == (5, 6)
    else:
        assert keep is None
    assert owners_of(1000) is None


def test_every_error_has_a_hint(stage: Stage) -> None:
    """Whoever asks for what is not there is told what to do."""
    made = stage.history.take()
    other = Task.create("u", workspace=Workspace.direct(stage.base), home=stage.home)
    for call in (
        lambda: stage.history.find("nope"),
        lambda: stage.history.find(""),
        lambda: other.checkpoint_history().find(made),
        other.diff,
    ):
        with pytest.raises(SandboxError) as caught:
            call()
        assert caught.value.hint


def test_a_deleted_task_is_told(stage: Stage) -> None:
    """Its checkpoints went with it."""
    made = stage.history.take()
    stage.task.delete()
    for call in (stage.task.checkpoints, made.delete, lambda: stage.task.checkpoint_by("x")):
        with pytest.raises(SandboxError, match=stage.task.id):
            call()
    stage.home.gc()
    with pytest.raises(Corrupt):
        made.files()
