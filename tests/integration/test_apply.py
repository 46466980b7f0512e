"""Changes written back to the user's directory: all or nothing, and never over the user's own."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxsdk import Home, Sandbox, Task, Workspace, disk
from sandboxsdk.errors import (
    ApplyConflict,
    Conflict,
    Denied,
    FileConflict,
    HostFull,
    HostRefused,
    UsageError,
    WorkspaceInvalid,
)
from sandboxsdk.host import remove_tree

ROOT = os.geteuid() == 0
Edit = Callable[[Path, str], None]


def furnish(work: Path) -> Path:
    """Make a directory of the user."""
    (work / "d" / "deep").mkdir(parents=True)
    (work / "other").mkdir()
    (work / "f.txt").write_text("f\n")
    (work / "d" / "g.txt").write_text("g\n")
    (work / "d" / "h.txt").write_text("h\n")
    (work / "d" / "deep" / "x.txt").write_text("x\n")
    (work / "other" / "o.txt").write_text("o\n")
    (work / "run.sh").write_text("#!/bin/sh\n")
    (work / "run.sh").chmod(0o755)
    return work


def seen(work: Path) -> dict[str, tuple[object, ...]]:
    """Tell everything below a directory but times."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(work.rglob("*")):
        about = path.lstat()
        content: object = None
        if stat.S_ISLNK(about.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(about.st_mode):
            content = path.read_bytes()
        found[str(path.relative_to(work))] = (
            stat.S_IFMT(about.st_mode),
            stat.S_IMODE(about.st_mode),
            content,
        )
    return found


@pytest.fixture
def work(tmp_path):
    return furnish(tmp_path / "work")


@pytest.fixture(params=["overlay", "copy"])
def kind(request):
    return request.param


def task_on(work: Path, home, kind: str = "overlay", **settings) -> Task:
    return Task.create("t", workspace=Workspace.private(work, kind=kind), home=home, **settings)


# --- One side only --------------------------------------------------------------------------------

_AGENT = r"""
echo more >> f.txt
printf new > d/new.txt
rm d/h.txt
mkdir -p made/in && printf deep > made/in/file
chmod 700 run.sh
ln -s f.txt link
mv other/o.txt other/moved.txt
rm -r d/deep
"""


def test_changes_come_back_and_can_be_undone(work, home, kind):
    """Every sort of change is in the directory after apply, exactly, and none after undo."""
    before = seen(work)
    task = task_on(work, home, kind)
    with Sandbox(task) as box:
        box.exec(_AGENT, check=True)
        inside = {change.path for change in box.diff()}
    assert seen(work) == before
    report = task.apply()
    assert report.ok
    assert report.to == str(work)
    assert {change.path for change in report.changes} == inside
    after = seen(work)
    assert after["f.txt"][2] == b"f\nmore\n"
    assert after["d/new.txt"][2] == b"new"
    assert after["made/in/file"][2] == b"deep"
    assert after["run.sh"][1] == 0o700
    assert after["link"][2] == "f.txt"
    assert after["other/moved.txt"][2] == b"o\n"
    assert not {"d/h.txt", "d/deep", "d/deep/x.txt", "other/o.txt"} & set(after)
    assert "applied" in str(report)
    again = task.apply()
    assert again.changes == ()
    assert again.saved is None
    kept = task.checkpoint_by(report.saved)
    assert kept.read("f.txt") == b"f\n"
    undone = report.undo()
    assert seen(work) == before
    assert undone.ok
    # Undoing the undoing is applying once more.
    undone.undo()
    assert seen(work) == after
    assert home.verify("content").ok


def test_a_throwaway_box_is_applied_in_its_block(work, home):
    """What a throwaway box did is in the directory if its task was applied, and not otherwise."""
    before = seen(work)
    with Sandbox(work, home=home) as box:
        box.exec("echo more >> f.txt", check=True)
        report = box.task.apply()
        assert (work / "f.txt").read_text() == "f\nmore\n"
        report.undo()
    assert seen(work) == before


def test_apply_goes_on_from_the_last_time(work, home, kind):
    """A second apply brings what came since, and takes our own first one for no conflict."""
    task = task_on(work, home, kind)
    with Sandbox(task) as box:
        box.exec("echo one >> f.txt; echo n > n.txt", check=True)
    first = task.apply()
    with Sandbox(task) as box:
        box.exec("echo two >> f.txt; rm n.txt; echo three >> d/g.txt", check=True)
    second = task.apply()
    assert (work / "f.txt").read_text() == "f\none\ntwo\n"
    assert not (work / "n.txt").exists()
    with pytest.raises(Conflict, match="since"):
        first.undo()
    second.undo()
    assert (work / "f.txt").read_text() == "f\none\n"
    assert (work / "d/g.txt").read_text() == "g\n"


def test_unchanged_files_keep_their_inode_and_times(work, home):
    """Apply touches nothing but what changed."""
    before = {path: path.lstat() for path in work.rglob("*") if path.is_file()}
    task = task_on(work, home)
    with Sandbox(task) as box:
        box.exec("echo more >> d/g.txt", check=True)
    task.apply()
    for path, was in before.items():
        now = path.lstat()
        if path.name != "g.txt":
            assert (now.st_ino, now.st_mtime_ns) == (was.st_ino, was.st_mtime_ns)
    # Build tools look at times: what came is younger than what was there.
    assert (work / "d/g.txt").stat().st_mtime_ns > before[work / "d/g.txt"].st_mtime_ns


# --- Both sides -----------------------------------------------------------------------------------


def _append(work: Path, path: str) -> None:
    with open(work / path, "a") as file:
        file.write("user\n")


def _replace(work: Path, path: str) -> None:
    fresh = work / "fresh.tmp"
    fresh.write_text("user\n")
    fresh.rename(work / path)


def _remove(work: Path, path: str) -> None:
    (work / path).unlink()


def _link(work: Path, path: str) -> None:
    (work / path).unlink()
    (work / path).symlink_to("elsewhere")


def _mode(work: Path, path: str) -> None:
    (work / path).chmod(0o600)


def _directory(work: Path, path: str) -> None:
    (work / path).unlink()
    (work / path).mkdir()
    (work / path / "inner").write_text("user\n")


def _parent_gone(work: Path, path: str) -> None:
    shutil.rmtree((work / path).parent)


def _parent_replaced(work: Path, path: str) -> None:
    parent = (work / path).parent
    aside = work / "aside"
    aside.mkdir()
    (aside / Path(path).name).write_text("user\n")
    shutil.rmtree(parent)
    aside.rename(parent)


def _parent_link(work: Path, path: str) -> None:
    parent = (work / path).parent
    parent.rename(work / "real")
    parent.symlink_to("real")


USER: dict[str, Edit] = {
    "edits": _append,
    "replaces": _replace,
    "removes": _remove,
    "links": _link,
    "chmods": _mode,
    "makes a directory": _directory,
    "removes the directory": _parent_gone,
    "replaces the directory": _parent_replaced,
    "links the directory": _parent_link,
}
AGENT = {
    "edits": "echo agent >> d/g.txt",
    "replaces": "echo agent > t && mv t d/g.txt",
    "removes": "rm d/g.txt",
    "links": "ln -sf nowhere d/g.txt",
    "chmods": "chmod 711 d/g.txt",
    "makes a directory": "rm d/g.txt; mkdir d/g.txt; echo agent > d/g.txt/inner",
    "replaces the directory": "rm -r d; mkdir d; echo agent > d/g.txt",
}
# When the user does it: before the box is opened, while it is and nothing was captured yet, after a
# checkpoint, after the box.
MOMENTS = ["before", "while", "after a checkpoint", "at the end"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("users", USER)
@pytest.mark.parametrize("agents", AGENT)
def test_both_change_the_same_path(agents, users, moment, tmp_path, home):
    """Whatever user and agent do to one path, and whenever: a conflict, and then nothing is
    written; or both did the same. With force the agent's is there, and the user's is kept.
    """
    work = furnish(tmp_path / "work")
    task = task_on(work, home)

    def user(now: str) -> None:
        if now == moment:
            USER[users](work, "d/g.txt")

    user("before")
    with Sandbox(task) as box:
        box.exec("true", check=True)
        user("while")
        # What the user has taken away cannot be changed by the agent.
        box.exec(f"mkdir -p d; [ -e d/g.txt ] || echo agent > d/g.txt; {AGENT[agents]}")
        if moment == "after a checkpoint":
            box.checkpoint()
        user("after a checkpoint")
    user("at the end")
    theirs = seen(work)
    try:
        report = task.apply()
    except ApplyConflict:
        assert seen(work) == theirs
        forced = task.apply(force=True)
        assert forced.overridden
        kept = task.checkpoint_by(forced.saved)
        for path, (kind, _, content) in theirs.items():
            if kind == stat.S_IFREG:
                assert kept.read(path) == content
        forced.undo()
        assert seen(work) == theirs
    else:
        # Clean only where the agent came to the same, or to something beside it.
        assert {change.kind for change in report.changes} <= {"added"}
        now = seen(work)
        assert {path: now.get(path) for path in theirs} == theirs


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("users", USER)
def test_the_user_changes_another_path(users, moment, tmp_path, home):
    """What the user does elsewhere is no conflict and stays, whenever it is done."""
    work = furnish(tmp_path / "work")
    task = task_on(work, home)

    def user(now: str) -> None:
        if now == moment:
            USER[users](work, "other/o.txt")
            (work / "d" / "users.txt").write_text("a new one beside the agent's\n")
            (work / "users.txt").write_text("a new one\n")

    user("before")
    with Sandbox(task) as box:
        box.exec("true", check=True)
        user("while")
        box.exec("echo agent >> d/g.txt; echo agent > d/new.txt; rm d/h.txt", check=True)
        if moment == "after a checkpoint":
            box.checkpoint()
        user("after a checkpoint")
    user("at the end")
    theirs = seen(work)
    task.apply()
    expected = {
        **theirs,
        "d/g.txt": (stat.S_IFREG, 0o644 & ~_umask(), b"g\nagent\n"),
        "d/new.txt": (stat.S_IFREG, seen(work)["d/new.txt"][1], b"agent\n"),
    }
    del expected["d/h.txt"]
    assert seen(work) == expected


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_removed_directory_keeps_what_the_user_added(work, home):
    """The agent removes a directory in which the user made a file meanwhile: that stays."""
    task = task_on(work, home)
    with Sandbox(task) as box:
        box.exec("rm -r d", check=True)
        box.checkpoint()
    (work / "d" / "mine.txt").write_text("mine\n")
    task.apply()
    assert {path for path in seen(work) if path.startswith("d")} == {"d", "d/mine.txt"}


def test_both_made_the_same(work, home):
    """What both did alike is no conflict."""
    task = task_on(work, home)
    with Sandbox(task) as box:
        box.exec("echo same > n.txt; chmod 644 n.txt; rm d/h.txt", check=True)
        box.checkpoint()
    (work / "n.txt").write_text("same\n")
    (work / "n.txt").chmod(0o644)
    (work / "d/h.txt").unlink()
    assert task.apply().changes == ()


def test_a_conflict_names_its_paths_and_the_remedy(work, home):
    """The error says which paths, and what to do."""
    task = task_on(work, home)
    with Sandbox(task) as box:
        box.exec("echo a >> f.txt; echo a >> d/g.txt; echo a >> d/h.txt", check=True)
        box.checkpoint()
    _append(work, "f.txt")
    shutil.rmtree(work / "d")
    with pytest.raises(ApplyConflict, match="force=True") as caught:
        task.apply()
    assert caught.value.paths == ["d/g.txt", "d/h.txt", "f.txt"]
    assert "d/g.txt" in str(caught.value)
    assert not (work / "d").exists()


# --- What is held back ----------------------------------------------------------------------------


def test_what_runs_on_the_host_is_held_back(work, home):
    """Hooks and editor tasks do not come along unless they are named; the rest does."""
    task = task_on(work, home)
    with Sandbox(task) as box:
        box.exec(
            "mkdir -p .git/hooks .vscode sub/.vscode;"
            "echo evil > .git/hooks/post-checkout; echo evil > .git/config;"
            "echo '{}' > .vscode/tasks.json; echo '{}' > sub/.vscode/tasks.json;"
            "echo ref > .git/HEAD; echo fine > sub/code.py; echo evil > .envrc",
            check=True,
        )
    report = task.apply()
    assert not report.ok
    assert set(report.held) == {".envrc", ".git/config", ".git/hooks", ".vscode", "sub/.vscode"}
    assert (work / ".git" / "HEAD").exists()
    assert (work / "sub" / "code.py").exists()
    for path in report.held:
        assert not (work / path).exists()
    report = task.apply(allow=[".vscode"])
    assert (work / ".vscode" / "tasks.json").exists()
    assert (work / "sub" / ".vscode" / "tasks.json").exists()
    assert set(report.held) == {".envrc", ".git/config", ".git/hooks"}
    assert ".envrc" in str(report)


def test_set_id_bits_are_never_written(work, home):
    """A program that runs as somebody else does not come out of a box."""
    task = task_on(work, home)
    with Sandbox(task) as box:
        box.exec("cp run.sh new.sh; chmod 755 new.sh", check=True)
    upper = Path(task.directory) / "upper"
    (upper / "new.sh").chmod(0o6755)
    task.apply()
    assert stat.S_IMODE((work / "new.sh").stat().st_mode) == 0o755


@pytest.mark.skipif(not ROOT, reason="only root writes for others")
def test_root_leaves_files_with_their_owner(work, home):
    """What root writes into somebody's directory belongs to whom the directory belongs."""
    for path in (work, *work.rglob("*")):
        os.chown(path, 4711, 4712)
    task = task_on(work, home)
    with Sandbox(task) as box:
        box.exec("echo more >> f.txt; mkdir n; echo n > n/n.txt", check=True)
    task.apply()
    for path in ("f.txt", "n", "n/n.txt"):
        about = (work / path).lstat()
        assert (about.st_uid, about.st_gid) == (4711, 4712)


# --- Another directory, and none ------------------------------------------------------------------


def test_apply_to_another_directory(work, tmp_path, home):
    """A copy of the directory gets the changes; the directory itself does not."""
    task = task_on(work, home)
    copy = tmp_path / "copy"
    shutil.copytree(work, copy, symlinks=True)
    before = seen(work)
    with Sandbox(task) as box:
        box.exec(_AGENT, check=True)
    report = task.apply(to=copy)
    assert seen(work) == before
    assert (copy / "d/new.txt").exists()
    task.apply()
    assert seen(work) == seen(copy)
    report.undo()
    assert seen(copy) == before


def test_the_directory_itself_keeps_its_mode(work, home):
    """Neither a chmod of the workspace in the box nor one of the user's is a change."""
    task = task_on(work, home)
    with Sandbox(task) as box:
        box.exec("chmod 700 . ; echo more >> f.txt", check=True)
        work.chmod(0o750)
        box.checkpoint()
    work.chmod(0o711)
    task.apply()
    assert stat.S_IMODE(work.stat().st_mode) == 0o711
    assert (work / "f.txt").read_text() == "f\nmore\n"


def test_where_nothing_can_be_applied(work, tmp_path, home):
    """No directory, a direct one, one that is not there, the home: refused with the remedy."""
    empty = Task.create("t", home=home)
    with pytest.raises(UsageError, match=r"to=\.\.\."):
        empty.apply()
    direct = Task.create("t", workspace=Workspace.direct(work), home=home)
    with pytest.raises(UsageError, match="itself"):
        direct.apply()
    task = task_on(work, home)
    for path in (tmp_path / "none", work / "f.txt", home.path, "/"):
        with pytest.raises(WorkspaceInvalid):
            task.apply(to=path)
    for wrong in ("abc", [1], [""], ["../x"]):
        with pytest.raises(UsageError):
            task.apply(allow=wrong)
    with pytest.raises(UsageError):
        task.apply(to=3)
    shutil.rmtree(work)
    with pytest.raises(WorkspaceInvalid, match="not exist"):
        task.apply()


def test_a_workspace_that_began_empty_is_applied_to_a_directory(tmp_path, home):
    """All that was made goes there."""
    task = Task.create("t", home=home)
    with Sandbox(task) as box:
        box.exec("mkdir a; echo b > a/b", check=True)
    place = tmp_path / "place"
    place.mkdir()
    task.apply(to=place)
    assert (place / "a" / "b").read_text() == "b\n"


@pytest.mark.skipif(ROOT, reason="root may write everywhere")
def test_a_read_only_directory_is_refused_and_nothing_is_lost(work, home):
    """Denied, and the next call does it once it may."""
    task = task_on(work, home)
    with Sandbox(task) as box:
        box.exec("echo more >> d/g.txt; echo a > a.txt", check=True)
    work.chmod(0o500)
    try:
        with pytest.raises((Denied, HostRefused)):
            task.apply()
    finally:
        work.chmod(0o700)
    task.apply()
    assert (work / "a.txt").exists()
    assert (work / "d/g.txt").read_text() == "g\nmore\n"


def test_another_file_system(work, tmp_path):
    """The home may lie on another file system than the directory."""
    place = Path("/dev/shm")
    if not place.is_dir() or place.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    other = Path(os.path.realpath(place)) / f"sandboxsdk-test-{os.getpid()}-{tmp_path.name}"
    other.mkdir()
    try:
        task = task_on(work, Home(other / "home"))
        with Sandbox(task) as box:
            box.exec(_AGENT, check=True)
        before = seen(work)
        task.apply().undo()
        assert seen(work) == before
    finally:
        fd = os.open(place, os.O_PATH | os.O_DIRECTORY)
        remove_tree(fd, os.fsencode(other.name))  # The kernel leaves a directory that is closed.
        os.close(fd)


# --- Stopped in the middle ------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_stopped_at_any_call_the_next_one_ends_it(code, tmp_path, home):
    """Whichever call fails: a typed error, no file half written, and the next apply ends it. Undo
    then leads to what was there before the first.
    """
    work = furnish(tmp_path / "work")
    before = seen(work)
    number = failed = 0
    while True:
        number += 3
        task = task_on(work, home)
        with Sandbox(task) as box:
            box.exec(_AGENT, check=True)
        calls = 0

        def fail(call, _arguments, number=number):
            nonlocal calls
            calls += 1
            if calls == number and call not in ("remove", "remove_directory", "truncate"):
                raise OSError(code, os.strerror(code))

        disk.watcher = fail
        try:
            report = task.apply()
        except (HostFull, HostRefused):
            failed += 1
            disk.watcher = None
            for content in (row[2] for row in seen(work).values() if row[0] == stat.S_IFREG):
                assert content in {
                    b"f\n",
                    b"f\nmore\n",
                    b"g\n",
                    b"h\n",
                    b"x\n",
                    b"o\n",
                    b"new",
                    b"deep",
                    b"#!/bin/sh\n",
                }
            # The agent goes on meanwhile.
            with Sandbox(task) as box:
                box.exec("echo again >> f.txt", check=True)
            report = task.apply()
            assert (work / "f.txt").read_text() == "f\nmore\nagain\n"
        finally:
            disk.watcher = None
        assert (work / "made/in/file").read_text() == "deep"
        report.undo()
        assert seen(work) == before
        task.delete()
        if calls < number:
            break
    assert failed > 5


def test_an_edit_between_look_and_write_is_not_overwritten(work, home):
    """The user saves a file in the moment in which apply writes: it stays, and is named."""
    task = task_on(work, home)
    with Sandbox(task) as box:
        box.exec("echo agent >> f.txt; echo agent >> d/g.txt", check=True)
    done = threading.Event()

    def interfere(call, _arguments):
        # The first new file is made after everything was looked at.
        if call == "create" and not done.is_set() and _in_work(work):
            done.set()
            for path in ("f.txt", "d/g.txt"):
                (work / path).write_text("the user's own\n")

    disk.watcher = interfere
    try:
        with pytest.raises((FileConflict, ApplyConflict)):
            task.apply()
    finally:
        disk.watcher = None
    kept = [path for path in ("f.txt", "d/g.txt") if "own" in (work / path).read_text()]
    assert kept, "the user's bytes are gone"
    with pytest.raises(ApplyConflict):
        task.apply()


def _in_work(work: Path) -> bool:
    """Tell whether something is open in the directory: apply has begun to write."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith(str(work)):
                return True
        except OSError:
            continue
    return False


_TYPES = r"""
echo more >> f.txt
rm -r d; echo d > d
rm f2; mkdir f2; echo x > f2/x; echo y > f2/y
rm -r other; ln -s f.txt other
mkdir -p made/in && printf deep > made/in/file
rm -r gone
chmod 700 run.sh
mv moved1 moved2
"""


@pytest.mark.timeout(400)
@pytest.mark.parametrize("step", ["apply", "undo"])
def test_killed_at_any_call_the_next_one_ends_it(step, tmp_path, home):
    """Killed at whichever call: the next apply ends it, with no conflict and nothing left over, and
    its undo leads to what was there before the first.
    """
    number = 0
    while True:
        number += 1
        work = furnish(tmp_path / f"work{number}")
        (work / "f2").write_text("f2\n")
        (work / "gone").mkdir()
        (work / "gone" / "g").write_text("g\n")
        (work / "moved1").write_text("moved\n")
        before = seen(work)
        task = task_on(work, home)
        with Sandbox(task) as box:
            box.exec(_TYPES, check=True)
        if step == "undo":
            applied = task.apply()
        child = os.fork()
        if child == 0:
            calls = 0

            def kill(_call, _arguments, number=number):
                nonlocal calls
                calls += 1
                if calls == number:
                    os.kill(os.getpid(), 9)

            disk.watcher = kill
            try:
                if step == "apply":
                    task.apply()
                else:
                    applied.undo()
            finally:
                os._exit(0)
        survived = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        (work / "users.txt").write_text("made meanwhile\n")
        report = task.apply()
        after = seen(work)
        note = f"killed at call {number}"
        assert after.pop("users.txt")[2] == b"made meanwhile\n", note
        assert after["f.txt"][2] == b"f\nmore\n", note
        assert after["d"][0] == stat.S_IFREG, note
        assert after["other"][0] == stat.S_IFLNK, note
        assert {p for p in after if p.startswith("f2")} == {"f2", "f2/x", "f2/y"}, note
        assert "gone" not in after, note
        assert not [path for path in after if "sandboxsdk" in path], note
        assert after["made"][1] == after["made/in"][1] == before["d"][1], note
        # Killed in the very last call, it had ended: then there is nothing to take back.
        if step == "apply" and report.saved is not None:
            report.undo()
            (work / "users.txt").unlink()
            assert seen(work) == before, note
        task.delete()
        shutil.rmtree(work)
        if survived:
            break
    assert number > 20


def test_a_look_at_a_repository_is_no_conflict(tmp_path, home):
    """Git notes times of files in its index whenever somebody looks: what is staged counts."""
    git = shutil.which("git")
    assert git is not None
    work = tmp_path / "work"
    work.mkdir()
    environment = {**os.environ, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}

    def run(*words: str) -> None:
        named = ["-c", "user.name=n", "-c", "user.email=a@b", "-c", "safe.directory=*"]
        subprocess.run([git, *named, *words], cwd=work, env=environment, check=True)

    run("init", "-q")
    (work / "a").write_text("1\n")
    run("add", "a")
    run("commit", "-qm", "one")
    task = task_on(work, home)
    commit = "git -c safe.directory='*' -c user.name=n -c user.email=a@b commit -qam"
    with Sandbox(task) as box:
        box.exec(f"echo 2 > a; {commit} two", check=True)
        task.apply()
        os.utime(work / "a")
        run("status", "--short")
        box.exec(f"echo 3 > a; {commit} three", check=True)
    report = task.apply()
    assert (work / "a").read_text() == "3\n"
    run("fsck", "--strict")
    os.utime(work / "a", ns=(1, 1))
    run("status", "--short")
    report.undo().undo()
    assert (work / "a").read_text() == "3\n"
    run("fsck", "--strict")
    # What the user has staged is the user's.
    (work / "mine").write_text("mine\n")
    run("add", "mine")
    with Sandbox(task) as box:
        box.exec(f"echo 4 > a; {commit} four", check=True)
    with pytest.raises(ApplyConflict, match="index"):
        task.apply()


@pytest.mark.parametrize(
    "edits",
    [
        ["mkdir x; echo ref > x/HEAD; echo ../y > x/commondir"],
        ["mkdir x; echo > x/config", "mkdir x/objects x/refs; echo ref > x/HEAD"],
        ["mkdir x; echo ref > x/HEAD", "mkdir x/objects x/refs; echo > x/config"],
        ["mkdir -p x/objects x/refs x/hooks; echo ref > x/HEAD; echo > x/hooks/h"],
        ["mkdir -p 'X/objects' X/refs; echo ref > X/Head; echo > X/CONFIG"],
    ],
)
def test_no_repository_comes_out_that_runs_code(edits, work, home):
    """A directory that git takes for a repository, with a config of the sandbox, is never whole,
    neither at once nor bit by bit.
    """
    task = task_on(work, home)
    for edit in edits:
        with Sandbox(task) as box:
            box.exec(edit, check=True)
        report = task.apply()
    assert report.held
    there = {path.casefold() for path in seen(work)}
    head, config = "x/head" in there, bool(there & {"x/config", "x/hooks", "x/commondir"})
    assert not (head and config)


def test_many_new_files_before_the_first_look_are_no_conflict(work, home):
    """A build of the user's between the task's creation and its first use."""
    task = task_on(work, home)
    for folder in range(30):
        place = work / "build" / f"b{folder}"
        place.mkdir(parents=True)
        for number in range(100):
            (place / f"o{number}").touch()
    with Sandbox(task) as box:
        box.exec("echo agent >> f.txt; echo agent > build/b1/o1; echo n > new.txt", check=True)
    with pytest.raises(ApplyConflict) as caught:
        task.apply()
    assert caught.value.paths == ["build/b1/o1"]
    with Sandbox(task) as box:
        box.exec("rm build/b1/o1; : > build/b1/o1; cp -p f.txt f2.txt", check=True)
    task.apply()
    assert (work / "f.txt").read_text() == "f\nagent\n"


def test_an_excluded_file_in_the_way_stops_it_before_anything_is_written(tmp_path, home):
    """A directory that becomes a file holds something that is excluded: a conflict."""
    work = furnish(tmp_path / "work")
    (work / "d" / "y.log").write_text("excluded\n")
    before = seen(work)
    workspace = Workspace.private(work, exclude=["*.log"])
    task = Task.create("t", workspace=workspace, home=home)
    with Sandbox(task) as box:
        box.exec("echo more >> f.txt; rm -r d; echo d > d", check=True)
    with pytest.raises(ApplyConflict) as caught:
        task.apply(force=True)
    assert caught.value.paths == ["d"]
    assert seen(work) == before


def test_a_patch_leads_from_any_point_to_any_other(work, tmp_path, home):
    """Beginning, checkpoints and now, both ways: what git makes of the one is the other."""
    task = task_on(work, home)
    with Sandbox(task) as box:
        box.exec("echo one >> f.txt; mv d/g.txt d/moved; printf '\\0\\1' > bin", check=True)
        box.checkpoint("one")
        box.exec("rm f.txt; ln -s d link; chmod 644 run.sh; printf x > 'a b'", check=True)
        box.checkpoint("two")
        box.exec("rm link; mkdir link; echo now > link/x; rm -r other", check=True)
        points = {}
        for name in ("one", "two"):
            place = tmp_path / name
            task.checkpoint_by(name).restore_to(place)
            points[name] = seen(place)
        box.checkpoint("three").restore_to(tmp_path / "now")
    points["now"], points[None] = seen(tmp_path / "now"), seen(work)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    places = {None: work, "one": tmp_path / "one", "two": tmp_path / "two"}
    for a, b in [(None, "one"), (None, "two"), ("one", "two"), (None, "now"), ("two", "now")]:
        patch = task.patch(a, None if b == "now" else b)
        for words, start, end in (([], a, b), (["-R"], b, a)):
            copy = tmp_path / "copy"
            shutil.copytree(places.get(start, tmp_path / "now"), copy, symlinks=True)
            command = ["git", "apply", *words, "-"]
            subprocess.run(command, input=patch, text=True, cwd=copy, env=environment, check=True)
            # git knows no directories: those that became empty are gone, or are not made.
            found = {p: row for p, row in seen(copy).items() if row[0] != stat.S_IFDIR}
            wanted = {p: row for p, row in points[end].items() if row[0] != stat.S_IFDIR}
            assert found == wanted, (a, b, words)
            shutil.rmtree(copy)
