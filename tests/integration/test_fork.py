"""Forks: attempts that begin alike and see nothing of each other; the best is taken back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxsdk import Home, Limits, Sandbox, Task, Workspace
from sandboxsdk.errors import CheckpointNotFound, SandboxError, UsageError

from .marks import alive, until
from .workspaces import KINDS

everywhere = pytest.mark.parametrize(("kind", "runtime"), KINDS)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    made = tmp_path / "work"
    (made / "d").mkdir(parents=True)
    (made / "f.txt").write_text("f\n")
    (made / "d" / "g.txt").write_text("g\n")
    return made


def task_of(work: Path, home: Home, kind: str, runtime: str) -> Task:
    private = kind != "direct"
    workspace = Workspace.private(work, kind=kind) if private else Workspace.direct(work)
    return Task.create("t", workspace=workspace, runtime=runtime, home=home, labels={"a": "b"})


def text(box: Sandbox, path: str = "f.txt") -> str:
    return box.exec(["cat", path], check=True).stdout


@everywhere
def test_forks_begin_alike_and_go_their_own_ways(work, home, kind, runtime):
    """A fork has all that its box had, and neither sees what the other does after that."""
    task = task_of(work, home, kind, runtime)
    with Sandbox(task) as box:
        box.exec("echo one >> f.txt; rm d/g.txt; echo n > n.txt; chmod 750 n.txt", check=True)
        forks = box.fork(3)
        box.exec("echo parent >> f.txt", check=True)
        for number, fork in enumerate(forks):
            with fork:
                assert fork.exec("ls -A . d", check=True).stdout == box.exec("ls -A . d").stdout
                assert text(fork) == "f\none\n"
                assert fork.exec("stat -c %a n.txt").stdout == "750\n"
                fork.exec(f"echo fork {number} >> f.txt", check=True)
                assert text(fork) == f"f\none\nfork {number}\n"
                assert text(box) == "f\none\nparent\n"
    assert len(Task.list(home=home)) == 1
    assert home.stats().throwaway == 0


@everywhere
def test_the_best_fork_is_taken_back(work, home, kind, runtime):
    """A checkpoint of a fork is restored in the box that it was forked from."""
    task = task_of(work, home, kind, runtime)
    with Sandbox(task) as box:
        box.exec("echo one >> f.txt", check=True)
        box.checkpoint("start")
        attempts = []
        for number, fork in enumerate(box.fork(2)):
            fork.exec(f"echo {number} >> f.txt; echo {number} > made.txt", check=True)
            attempts.append(fork.checkpoint(f"attempt {number}"))
        report = box.restore(attempts[1])
        assert text(box) == "f\none\n1\n"
        assert text(box, "made.txt") == "1\n"
        assert report.saved is not None
        # By its id too, and what comes next has it for its parent.
        box.restore(attempts[0].id)
        assert text(box) == "f\none\n0\n"
        following = box.checkpoint("next")
        assert following.parent == attempts[0].id
        assert [c.path for c in attempts[1].diff(following)] == ["f.txt", "made.txt"]
        attempts[0].delete()
        with pytest.raises(CheckpointNotFound):
            box.restore(attempts[0])
    with Sandbox(task) as box:
        # The forks are gone with their block; what they kept is there until garbage is collected.
        box.restore(attempts[1])
        assert text(box) == "f\none\n1\n"


def test_a_checkpoint_of_a_fork_that_was_collected_is_told(work, home):
    """Its content may be gone with garbage: then nothing is touched."""
    with Sandbox(Task.create("t", workspace=work, home=home)) as box:
        with box.fork()[0] as fork:
            fork.exec("head -c 3000000 /dev/urandom > big; echo x > f.txt", check=True)
            kept = fork.checkpoint()
        home.gc()
        with pytest.raises(SandboxError):
            box.restore(kept, save_current=False)
        assert text(box) == "f\n"


def test_forks_of_now_and_of_checkpoints(work, home):
    """At a checkpoint a fork has what that holds, whatever came after; by object, id and name."""
    task = task_of(work, home, "overlay", "bubblewrap")
    with Sandbox(task) as box:
        box.exec("echo one >> f.txt", check=True)
        first = box.checkpoint("first")
        box.exec("echo two >> f.txt; echo later > later.txt", check=True)
        for at in (first, first.id, "first"):
            (fork,) = box.fork(at=at)
            assert text(fork) == "f\none\n"
            assert not fork.files.exists("later.txt")
        (now,) = box.fork()
        assert text(now) == "f\none\ntwo\n"
        # A fork of a fork.
        now.exec("echo three >> f.txt", check=True)
        (deeper,) = now.fork()
        assert text(deeper) == "f\none\ntwo\nthree\n"
        first.delete()
        with pytest.raises(CheckpointNotFound):
            box.fork(at=first)


def test_a_fork_runs_on_while_something_runs(work, home):
    """What runs stands still for the moment and goes on."""
    with Sandbox(work, home=home) as box, box.spawn("while :; do echo x; sleep 0.01; done") as busy:
        next(iter(busy))
        (fork,) = box.fork()
        assert text(fork) == "f\n"
        assert busy.poll() is None


def test_lasting_forks(work, home):
    """task.fork gives tasks that last, with names, settings, and their parent's name on them."""
    task = Task.create(
        "t",
        workspace=work,
        limits=Limits(pids=77),
        env={"A": "b"},
        labels={"x": "y"},
        home=home,
    )
    with Sandbox(task) as box:
        box.exec("echo one >> f.txt", check=True)
        kept = box.checkpoint("one")
        box.exec("echo two >> f.txt", check=True)
    one, two = task.fork(2, names=["left", "right"])
    (three,) = task.fork(at="one")
    assert {t.parent for t in (one, two, three)} == {task.id}
    assert Task.open("left", home=home).id == one.id
    assert one.record.spec == task.record.spec
    assert one.labels == {"x": "y"}
    assert [c.path for c in one.diff()] == ["f.txt"]
    assert task.fork(2)[0].status == "pending"
    with Sandbox(one) as box:
        assert text(box) == "f\none\ntwo\n"
        assert box.exec("echo $A").stdout == "b\n"
    with Sandbox(three) as box:
        assert text(box) == "f\none\n"
        box.exec("echo three >> f.txt", check=True)
        best = box.checkpoint("best")
    with Sandbox(task) as box:
        box.restore(best)
        assert text(box) == "f\none\nthree\n"
        with pytest.raises(UsageError, match="forked"):
            stranger = Task.create("other", workspace=work, home=home)
            with Sandbox(stranger) as other:
                other.restore(kept)
    with Sandbox(three):
        best.delete()
    with Sandbox(task) as box, pytest.raises(CheckpointNotFound):
        box.restore(best)


def test_a_fork_is_compared_patched_and_applied_before_it_was_opened(work, home):
    """Nothing of a fork is on disk until it is used, and all of it is there for who asks."""
    task = task_of(work, home, "overlay", "bubblewrap")
    with Sandbox(task) as box:
        box.exec("echo one >> f.txt; rm d/g.txt", check=True)
    (fork,) = task.fork()
    assert not (Path(fork.directory) / "upper").exists()
    assert fork.diff() == task.diff()
    assert fork.patch() == task.patch()
    (grandchild,) = fork.fork()
    fork.apply()
    assert (work / "f.txt").read_text() == "f\none\n"
    assert not (work / "d" / "g.txt").exists()
    with Sandbox(grandchild) as box:
        assert text(box) == "f\none\n"


def test_forks_of_a_direct_workspace_apply_to_its_directory(work, home):
    """A fork of what works on a directory itself has files of its own, and goes back there."""
    task = Task.create("t", workspace=Workspace.direct(work), home=home)
    with Sandbox(task) as box:
        box.exec("echo one >> f.txt", check=True)
        (fork,) = box.fork(keep=True)
        fork.exec("echo two >> f.txt; echo n > n.txt", check=True)
        assert text(box) == "f\none\n"
        assert (work / "f.txt").read_text() == "f\none\n"
    assert {c.path for c in fork.task.diff()} == {"f.txt", "n.txt"}
    fork.task.apply()
    assert (work / "f.txt").read_text() == "f\none\ntwo\n"


def test_what_is_excluded_is_absent_in_forks(work, home):
    """Files that no checkpoint has, no fork has."""
    workspace = Workspace.private(work, exclude=["cache/"])
    with Sandbox(Task.create("t", workspace=workspace, home=home)) as box:
        box.exec("mkdir cache; echo c > cache/c; echo n > n.txt", check=True)
        (fork,) = box.fork()
        assert fork.exec("ls", check=True).stdout == "d\nf.txt\nn.txt\n"


def test_the_end_of_forks(work, home):
    """A fork ends with its own block or its parent's, and is not to be entered again; kept ones
    stay.
    """
    with Sandbox(work, home=home) as box:
        first, second = box.fork(2)
        (kept,) = box.fork(keep=True)
        kept.exec("echo kept > kept.txt", check=True)
        with first:
            first.exec("true", check=True)
            with first.fork()[0] as nested:
                nested.exec("true", check=True)
        with pytest.raises(UsageError, match="not entered"):
            first.exec("true")
        with pytest.raises(UsageError, match="fork again"):
            first.__enter__()
        second.exec("true", check=True)
        directory = second.task.directory
        assert os.path.isdir(directory)
    assert not os.path.exists(directory)
    assert home.stats().throwaway == 0
    (record,) = Task.list(home=home)
    with Sandbox(Task.open(record.id, home=home)) as again:
        assert text(again, "kept.txt") == "kept\n"


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2", None, 10**9])
def test_wrong_numbers_are_refused(work, home, n):
    """No number of forks: refused, and nothing is made."""
    with Sandbox(work, home=home) as box, pytest.raises(UsageError):
        box.fork(n)
    task = Task.create("t", workspace=work, home=home)
    with pytest.raises(UsageError):
        task.fork(n)
    assert len(Task.list(home=home)) == 1


def test_wrong_names_and_checkpoints_are_refused(work, home):
    """Names that do not fit the number, or cannot be; checkpoints that are not there."""
    task = Task.create("t", workspace=work, home=home)
    for n, names in ((2, ["a"]), (3, ["a", "b"]), (1, "a"), (1, ["a\nb"]), (1, [3]), (1, [])):
        with pytest.raises(UsageError):
            task.fork(n, names=names)
    for at in ("none", "0123456789abcdef", ""):
        with pytest.raises((CheckpointNotFound, UsageError)):
            task.fork(at=at)
    assert len(Task.list(home=home)) == 1


def test_a_fork_that_cannot_end_keeps_nothing_running(work, home, mark):
    """An error while a fork ends is raised; the box and the other forks end all the same."""

    class Mine(Exception):
        pass

    def refuse(_facts):
        raise Mine

    with pytest.raises(Mine), Sandbox(work, home=home) as box:
        first, second = box.fork(2)
        for one in (box, first, second):
            one.exec("true", check=True)
        box.spawn(["sleep", mark])
        second.spawn(["sleep", mark])
        until(lambda: len(alive(mark)) >= 2)
        first.on("closed", refuse)
    until(lambda: not alive(mark))
    assert home.stats().throwaway == 0
