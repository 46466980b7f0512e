"""One contract for every kind of workspace: what is written stays, and can be gone back to."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sandboxsdk import Home, Sandbox, Task, Workspace
from sandboxsdk.errors import (
    AmbiguousId,
    BoxBusy,
    CapabilityError,
    CheckpointNotFound,
    Denied,
    FileConflict,
    FileMissing,
    LimitExceeded,
    TaskLocked,
    UsageError,
    WorkspaceInvalid,
)

from .marks import until
from .workspaces import (
    DEEP,
    KINDS,
    ODD,
    PRIVATE,
    Stage,
    furnish,
    kinds_of,
    look,
    mess_up,
    outside,
    without,
)

ROOT = os.geteuid() == 0
everywhere = pytest.mark.parametrize(("kind", "runtime"), KINDS)
privately = pytest.mark.parametrize(("kind", "runtime"), PRIVATE)


@pytest.fixture
def stage(tmp_path: Path, home: Home, kind: str, runtime: str) -> Stage:
    return Stage(tmp_path, home, kind, runtime)


# --- Files ----------------------------------------------------------------------------------------


@everywhere
def test_what_a_box_writes_is_there_when_it_is_opened_again(stage: Stage) -> None:
    """Every sort of edit is seen by the next box of the task, in another Home object too."""
    with stage.box() as box:
        mess_up(box)
        seen = look(box)
    with stage.reopened() as box:
        assert look(box) == seen


@everywhere
def test_a_box_shows_the_directory_as_it_is(stage: Stage) -> None:
    """Whatever the kind, everything is there, with content, mode, target and time."""
    with stage.box() as box:
        seen = look(box)
    assert seen["README"][1] == 0o644 & ~_umask()
    assert seen["one.txt"][6] == 1_000_000_000_123_456_789
    assert bytes.fromhex(seen["absolute"][4]) == b"/etc/passwd"
    assert stat.S_ISFIFO(seen["pipe"][0])
    assert seen["sticky"][1] == 0o1777
    assert seen["hard-a"][5] == seen["hard-b"][5]
    assert f"{DEEP}/leaf" in seen
    assert all(os.fsdecode(name) in seen for name in ODD)


@privately
def test_the_directory_itself_is_not_touched(stage: Stage) -> None:
    """A private workspace writes nothing there: not by edits, checkpoints or restores."""
    before = outside(stage.base)
    with stage.box() as box:
        mess_up(box)
        checkpoint = box.checkpoint("messed up")
        box.exec("rm -rf * .[!.]*")
        box.restore(checkpoint)
        box.diff()
    assert outside(stage.base) == before


def test_a_direct_workspace_is_the_directory(tmp_path: Path, home: Home) -> None:
    """What a box writes is written there, and a restore puts it back there."""
    stage = Stage(tmp_path, home, "direct", "bubblewrap")
    before = outside(stage.base)
    with stage.box() as box:
        checkpoint = box.checkpoint()
        box.exec("echo changed > README; rm -r src")
        assert (stage.base / "README").read_text() == "changed\n"
        box.restore(checkpoint)
    after = outside(stage.base)
    assert before.keys() == after.keys()
    assert (stage.base / "README").read_text() == "read me\n"
    for path, facts in before.items():
        if stat.S_ISREG(facts[0]):
            assert after[path] == facts


# --- Going back -----------------------------------------------------------------------------------


@everywhere
def test_restore_gives_exactly_the_files_of_the_checkpoint(stage: Stage) -> None:
    """After every sort of edit all is as it was, forwards and backwards, again and again."""
    with stage.box() as box:
        first_seen = look(box)
        first = box.checkpoint("first")
        mess_up(box)
        second_seen = look(box)
        second = box.checkpoint("second")
        assert first_seen != second_seen
        for checkpoint, seen in ((first, first_seen), (second, second_seen)) * 2:
            report = box.restore(checkpoint, save_current=False)
            assert report.ok
            assert report.checkpoint == checkpoint.id
            assert look(box) == seen
            assert box.diff(checkpoint) == []
    with stage.reopened() as box:
        assert look(box) == second_seen
        assert box.restore(first.id).checkpoint == first.id
        assert look(box) == first_seen
    assert stage.home.verify("content").ok


@everywhere
def test_restore_of_everything_from_nothing(stage: Stage) -> None:
    """All files gone, or replaced by other things, come back."""
    with stage.box() as box:
        seen = look(box)
        checkpoint = box.checkpoint()
        box.exec("find . -mindepth 1 -delete", check=True)
        assert look(box) == {}
        box.restore(checkpoint)
        assert look(box) == seen
        box.exec("find . -mindepth 1 -delete; mkdir README large pipe; echo x > src", check=True)
        box.restore(checkpoint)
        assert look(box) == seen


@everywhere
def test_a_restore_that_changes_nothing_touches_nothing(stage: Stage) -> None:
    """Nothing is written where nothing differs, so builds stay up to date."""
    with stage.box() as box:
        checkpoint = box.checkpoint()
        report = box.restore(checkpoint, save_current=False)
    assert (report.written, report.removed, report.touched, report.saved) == (0, 0, 0, None)


@everywhere
def test_a_block_that_raises_is_rolled_back(stage: Stage) -> None:
    """Whatever ends it, the files are as before, and what failed is kept under a label."""
    with stage.box() as box:
        seen = look(box)
        for error in (ValueError, KeyboardInterrupt, SystemExit, GeneratorExit):
            with pytest.raises(error), box.checkpoint(error.__name__) as checkpoint:
                mess_up(box)
                messed = look(box)
                raise error
            assert look(box) == seen
            failed = stage.task.checkpoints()[0]
            assert failed.labels == {"rolled-back": checkpoint.id}
            assert failed.parent == checkpoint.id
        box.restore(failed)
        assert look(box) == messed


@everywhere
def test_a_block_that_does_not_raise_is_kept(stage: Stage) -> None:
    """Its changes stay, and only its own checkpoint was made."""
    with stage.box() as box:
        with box.checkpoint("before"):
            mess_up(box)
            messed = look(box)
        assert look(box) == messed
    assert [checkpoint.name for checkpoint in stage.task.checkpoints()] == ["before"]


@everywhere
def test_blocks_nest(stage: Stage) -> None:
    """Each rolls back to its own checkpoint, whatever was restored or deleted inside."""
    with stage.box() as box:
        seen = look(box)
        with pytest.raises(KeyError), box.checkpoint("outer") as outer:
            box.exec("echo outer > made-outside", check=True)
            between = look(box)
            with pytest.raises(ValueError, match="inner"), box.checkpoint("inner"):
                mess_up(box)
                raise ValueError("inner")
            assert look(box) == between
            outer.delete()
            raise KeyError
        assert look(box) == seen
        assert box.diff("inner") != []


@everywhere
def test_rolling_back_after_the_box_was_lost(stage: Stage) -> None:
    """A box whose processes were killed from outside is started anew to be rolled back."""
    with stage.box() as box:
        seen = look(box)
        with pytest.raises(RuntimeError), box.checkpoint():
            mess_up(box)
            instance = box._opening.instance(stage.task)
            signal.pidfd_send_signal(instance._pidfd, signal.SIGKILL)
            until(lambda: not instance.alive())
            raise RuntimeError
        assert look(box) == seen


@everywhere
def test_what_lies_outside_of_the_workspace_stays(stage: Stage) -> None:
    """A restore touches neither /tmp nor the home directory."""
    with stage.box() as box:
        checkpoint = box.checkpoint()
        box.exec('echo t > "$TMPDIR/kept"; echo h > "$HOME/kept"; rm README', check=True)
        box.restore(checkpoint)
        assert box.exec('cat "$TMPDIR/kept" "$HOME/kept" README').stdout == "t\nh\nread me\n"


@everywhere
def test_running_processes_are_in_the_way_of_a_restore(stage: Stage) -> None:
    """BoxBusy, and nothing happened; with kill=True they are gone first."""
    with stage.box() as box:
        checkpoint = box.checkpoint()
        with box.spawn("while :; do echo x >> written; sleep 0.01; done") as process:
            until(lambda: box.files.exists("written"))
            with pytest.raises(BoxBusy) as caught:
                box.restore(checkpoint)
            assert caught.value.retryable
            assert process.poll() is None
            assert len(stage.task.checkpoints()) == 1
            with pytest.raises(CheckpointNotFound):
                box.restore("no such", kill=True)
            assert process.poll() is None
            box.restore(checkpoint, kill=True)
            assert process.wait(30).reason in ("killed", "signal")
            assert not box.files.exists("written")
        assert box.exec("cat README").stdout == "read me\n"


@everywhere
def test_a_checkpoint_of_a_busy_box_is_of_one_moment(stage: Stage) -> None:
    """While it is made nothing moves: two files that are written in turn are never apart."""
    script = """
import os
a, b = os.open("first", os.O_CREAT | os.O_RDWR), os.open("second", os.O_CREAT | os.O_RDWR)
number = 0
while True:
    number += 1
    os.pwrite(a, b"%09d" % number, 0)
    os.pwrite(b, b"%09d" % number, 0)
"""
    with stage.box() as box, box.spawn(["python3", "-c", script]) as process:
        until(lambda: box.files.exists("second") and box.files.read_text("second"))
        last = 0
        for _ in range(5):
            checkpoint = box.checkpoint()
            first, second = (int(checkpoint.read(name)) for name in ("first", "second"))
            assert 0 <= first - second <= 1
            assert first > last
            last = first
            # It goes on; when it is its turn, is up to the kernel.
            until(lambda seen=last: int(box.files.read_text("second")) > seen)
        assert process.poll() is None


@everywhere
def test_what_is_written_through_a_mapping_is_not_missed(stage: Stage) -> None:
    """A program may change a mapped file without any time of it changing."""
    script = """
import mmap, sys
with open("mapped", "w+b") as file:
    file.truncate(8192)
    view = mmap.mmap(file.fileno(), 8192)
    for number, _ in enumerate(sys.stdin, 1):
        view[0] = number
        print(number, flush=True)
"""
    with stage.box() as box, box.spawn(["python3", "-c", script]) as process:
        read = []
        for number in range(1, 6):
            process.write("go\n")
            process.wait_for(pattern=f"{number}\n")
            read.append(box.checkpoint().read("mapped")[0])
    assert read == [1, 2, 3, 4, 5]


@everywhere
def test_the_replaced_state_is_saved(stage: Stage) -> None:
    """The report names a checkpoint of it, which can be restored; not if that is not wanted."""
    with stage.box() as box:
        first = box.checkpoint("first")
        mess_up(box)
        messed = look(box)
        report = box.restore("first")
        assert report.saved is not None
        saved = stage.task.checkpoint_by(report.saved)
        assert dict(saved.labels) == {"before-restore": "yes"}
        assert (saved.parent, saved.name) == (first.id, "before restoring first")
        box.restore(saved)
        assert look(box) == messed
        assert box.restore(first, save_current=False).saved is None


# --- The history ----------------------------------------------------------------------------------


@everywhere
def test_the_history_is_a_tree(stage: Stage) -> None:
    """A checkpoint's parent is the one that the files came from; None is the beginning."""
    with stage.box() as box:
        one = box.checkpoint("one")
        two = box.checkpoint("two")
        box.restore(one, save_current=False)
        three = box.checkpoint("three")
    assert [one.parent, two.parent, three.parent] == [None, one.id, one.id]
    with stage.reopened() as box:
        four = box.checkpoint("four")
    assert four.parent == three.id
    assert [c.name for c in stage.task.checkpoints()] == ["four", "three", "two", "one"]
    one.delete()
    parents = {c.name: c.parent for c in stage.task.checkpoints()}
    assert parents == {"four": three.id, "three": None, "two": None}
    three.delete()
    assert stage.task.checkpoint_by("four").parent is None
    four.delete()
    with pytest.raises(CheckpointNotFound):
        four.delete()
    with stage.box() as box:
        assert box.checkpoint().parent is None
    assert one.tree == two.tree


@everywhere
def test_checkpoints_are_found_by_id_tag_name_and_prefix(stage: Stage) -> None:
    """Ids win, then tags, then the newest of a name, then the beginning of an id."""
    with stage.box() as box:
        old = box.checkpoint("same")
        new = box.checkpoint("same")
        named = box.checkpoint(old.id)
    find = stage.task.checkpoint_by
    assert find("same") == new
    assert find(old.id) == old
    assert find(new.id[:10]) == new
    old.tag("good")
    assert find("good") == old
    new.tag("good")
    assert find("good") == new
    old.tag("same")
    assert find("same") == old
    old.delete()
    assert find("same") == new
    assert find(old.id) == named
    for wrong in ("nothing", "zzz"):
        with pytest.raises(CheckpointNotFound):
            find(wrong)
    for wrong in ("", 5, None):
        with pytest.raises(UsageError):
            find(wrong)
    with pytest.raises(UsageError):
        new.tag("a/b")


@everywhere
def test_words_that_cannot_be_are_refused(stage: Stage) -> None:
    """Names, descriptions and labels are checked before anything is made."""
    with stage.box() as box:
        for wrong in (
            {"name": ""},
            {"name": "a/b"},
            {"name": 5},
            {"description": 5},
            {"description": "a\0"},
            {"labels": ["x"]},
            {"labels": {"a": 1}},
        ):
            with pytest.raises(UsageError):
                box.checkpoint(**wrong)
        made = box.checkpoint("n", description="words\n\x1b", labels={"team": "web"})
    assert stage.task.checkpoints() == [made]
    found = stage.task.checkpoint_by("n")
    assert (found.description, dict(found.labels)) == ("words\n\x1b", {"team": "web"})


@everywhere
def test_checkpoints_of_another_task_are_refused(stage: Stage) -> None:
    """UsageError for an object of an unrelated task; its id is just not found."""
    other = stage.another()
    with stage.box(other) as box:
        foreign = box.checkpoint("foreign")
    with stage.box() as box:
        box.checkpoint("own")
        for call in (box.restore, box.diff, stage.task.diff):
            with pytest.raises(UsageError, match="belongs to task"):
                call(foreign)
        with pytest.raises(CheckpointNotFound):
            box.restore(foreign.id)
        assert len(stage.task.checkpoints()) == 1


# --- Telling what changed -------------------------------------------------------------------------


@everywhere
def test_diff_from_the_beginning_a_checkpoint_and_between_two(stage: Stage) -> None:
    """All tell the same change in the same words, and backwards the opposite."""
    with stage.box() as box:
        start = box.checkpoint("start")
        mess_up(box)
        now = box.diff(start)
        end = box.checkpoint("end")
        assert box.diff() == now
        assert box.diff(end) == []
    words = list(kinds_of(now))
    for expected in (
        "modified README",
        "removed src/b.py",
        "added made/in/depth/file",
        "renamed two.txt",
        "mode run.sh",
        "type dangling",
        "type becomes-file",
        "added pipe-new",
        "removed -rf",
        f"modified {DEEP}/leaf",
        "mode modes",
    ):
        assert expected in words
    assert not any(" touched" in word or " hard-a" in word for word in words)
    assert stage.task.diff() == now
    assert stage.task.diff("start", "end") == now == start.diff(end)
    assert stage.task.diff(None, end) == now
    assert stage.task.diff(start) == now == start.diff()
    assert len(end.diff(start)) == len(now)
    assert [change.path for change in now] == sorted(
        (change.path for change in now), key=os.fsencode
    )


def test_a_direct_workspace_knows_no_beginning_before_its_first_checkpoint(
    tmp_path: Path, home: Home
) -> None:
    """Nobody kept what the directory held, and that is said."""
    stage = Stage(tmp_path, home, "direct", "bubblewrap")
    with stage.box() as box:
        with pytest.raises(CapabilityError) as caught:
            box.diff()
        assert "box.checkpoint()" in caught.value.hint
        box.checkpoint()
        assert box.diff() == []


# --- Looking into a checkpoint --------------------------------------------------------------------


@everywhere
def test_a_checkpoint_can_be_looked_into(stage: Stage) -> None:
    """Its files are listed and read without a box, and verified; links are not followed."""
    with stage.box() as box:
        seen = look(box)
        checkpoint = box.checkpoint()
    listed = checkpoint.files()
    assert {each.path for each in listed} == set(seen)
    paths = [each.path for each in listed]
    assert paths == sorted(paths, key=os.fsencode)
    for each in listed:
        kind, mode, _, size, target, _, time, _ = seen[each.path]
        assert each.mode == mode
        if each.kind == "file":
            assert (each.size, each.mtime_ns) == (size, time)
        if each.kind == "symlink":
            assert each.target is not None
            assert os.fsencode(each.target).hex() == target
        assert (each.kind == "directory") == stat.S_ISDIR(kind)
    assert checkpoint.stats.files == sum(each.kind == "file" for each in listed)
    assert checkpoint.stats.bytes == sum(e.size for e in listed if e.kind == "file")
    assert checkpoint.read("README") == b"read me\n"
    assert checkpoint.read("large") == (stage.base / "large").read_bytes()
    assert checkpoint.read("sparse") == (stage.base / "sparse").read_bytes()
    assert checkpoint.read("empty") == b""
    assert checkpoint.read(os.fsdecode(ODD[4])) == b"odd"
    for path, error in (
        ("no", FileMissing),
        ("README/x", FileMissing),
        ("src", FileConflict),
        ("pipe", FileConflict),
        ("link", Denied),
        ("link/x", Denied),
        ("/etc/passwd", Denied),
        ("../x", Denied),
        ("a\0b", Denied),
    ):
        with pytest.raises(error):
            checkpoint.read(path)
    with pytest.raises(LimitExceeded):
        checkpoint.read("large", limit=1000)
    report = checkpoint.verify()
    assert report.ok
    assert report.bytes > 3 << 20


@everywhere
def test_a_checkpoint_is_restored_elsewhere(stage: Stage, tmp_path: Path) -> None:
    """A new or empty directory gets all files; one that is not empty is refused and kept."""
    with stage.box() as box:
        seen = look(box)
        checkpoint = box.checkpoint()
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "new", tmp_path / "empty"):
        report = checkpoint.restore_to(target, durable=target.name == "new")
        assert (report.ok, report.skipped) == (True, ())
        overlay = stage.kind == "overlay"
        shown = Workspace.private(target) if overlay else Workspace.direct(target)
        with Sandbox(Task.create("c", workspace=shown, home=stage.home)) as box:
            assert look(box) == seen
        with pytest.raises(FileConflict, match="not empty"):
            checkpoint.restore_to(target)
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(Denied):
        checkpoint.restore_to(tmp_path / "link")
    with pytest.raises(UsageError):
        checkpoint.restore_to(tmp_path / "no" / "where")
    assert sorted(os.listdir(tmp_path)) == ["empty", "home", "link", "new", "project"]


# --- What is left out -----------------------------------------------------------------------------


@everywhere
def test_what_is_excluded(tmp_path: Path, home: Home, kind: str, runtime: str) -> None:
    """It is in the view, in no checkpoint and no diff, and no restore touches it."""
    stage = Stage(tmp_path, home, kind, runtime, exclude=["*.log", "cache/", "!keep.log", "/top"])
    for name in ("a.log", "keep.log", "top"):
        (stage.base / name).write_text(name)
    (stage.base / "src/cache").mkdir()
    (stage.base / "src/cache/big").write_text("big")
    task = stage.another()
    with stage.box(task) as box:
        seen = look(box)
        assert {"a.log", "src/cache/big", "top", "keep.log"} <= set(seen)
        checkpoint = box.checkpoint()
        left_out = ("a.log", "src/cache", "top")
        assert {each.path for each in checkpoint.files()} == set(without(seen, *left_out))
        box.exec(
            "echo new > a.log; echo new > src/b.log; rm top; echo more > src/cache/more;"
            "echo changed > keep.log; rm README; mkdir fresh; echo x > fresh/c.log",
            check=True,
        )
        expected = ["added fresh", "modified keep.log", "removed README"]
        assert sorted(kinds_of(box.diff(checkpoint))) == expected
        assert sorted(kinds_of(box.diff())) == expected
        box.restore(checkpoint)
        after = look(box)
        assert without(after, *left_out, "src/b.log", "fresh") == without(seen, *left_out)
        done = box.exec("cat a.log src/b.log src/cache/more fresh/c.log; ls top").stdout
        assert done == "new\nnew\nmore\nx\n"


@everywhere
def test_what_is_excluded_comes_through_a_rollback(
    tmp_path: Path, home: Home, kind: str, runtime: str
) -> None:
    """A directory that a checkpoint did not have stays as far as it holds something excluded."""
    stage = Stage(tmp_path, home, kind, runtime, exclude=["*.log"])
    with stage.box() as box:
        with pytest.raises(ValueError, match="x"), box.checkpoint():
            box.exec("mkdir -p made/here; echo l > made/here/x.log; echo f > made/f", check=True)
            raise ValueError("x")
        assert box.exec("cat made/here/x.log; ls made").stdout == "l\nhere\n"


# --- Hostile and awkward files --------------------------------------------------------------------


@everywhere
def test_files_that_a_guest_closed_to_everybody(stage: Stage) -> None:
    """Mode 000 is no hiding place: they are in checkpoints, come back, and stay closed."""
    with stage.box() as box:
        box.exec(
            "echo hidden > closed; mkdir vault; echo inner > vault/f; chmod 000 closed vault",
            check=True,
        )
        if stage.kind == "direct" and not ROOT:
            # The user's own files are not opened up by force.
            with pytest.raises(Denied, match=r"project/(closed|vault): may not be read"):
                box.checkpoint()
            assert stage.task.checkpoints() == []
            box.exec("chmod 700 vault closed; rm -r vault closed", check=True)
            with pytest.raises(ValueError, match="x") as caught, box.checkpoint():
                box.exec("echo x > closed; chmod 000 closed", check=True)
                raise ValueError("x")
            assert "rolled back; what they were could not be kept" in caught.value.__notes__[0]
            assert not box.files.exists("closed")
            assert len(stage.task.checkpoints()) == 1
            return
        checkpoint = box.checkpoint()
        assert checkpoint.read("closed") == b"hidden\n"
        assert checkpoint.read("vault/f") == b"inner\n"
        assert [box.files.stat(name).mode for name in ("closed", "vault")] == [0, 0]
        box.exec("chmod 700 vault; rm -rf closed vault", check=True)
        box.restore(checkpoint)
        assert [box.files.stat(name).mode for name in ("closed", "vault")] == [0, 0]
        box.exec("chmod 700 closed vault", check=True)
        assert box.exec("cat closed vault/f").stdout == "hidden\ninner\n"


@everywhere
def test_set_id_bits_are_recorded_and_never_written(stage: Stage) -> None:
    """The checkpoint says what was there. Who writes a file again, in a restore or a copy, does
    so without them; what shows through from the directory is as it is there.
    """
    (stage.base / "run.sh").chmod(0o4755)
    (stage.base / "modes").chmod(0o2775)
    with stage.box() as box:
        checkpoint = box.checkpoint()
        modes = {each.path: each.mode for each in checkpoint.files()}
        bits = (0o755, 0o775) if stage.kind == "copy" else (0o4755, 0o2775)
        assert (modes["run.sh"], modes["modes"]) == bits
        box.exec("rm -r run.sh modes", check=True)
        box.restore(checkpoint)
        shown = (0o4755, 0o2775) if stage.kind == "overlay" else (0o755, 0o775)
        assert (box.files.stat("run.sh").mode, box.files.stat("modes").mode) == shown


@everywhere
def test_sockets_are_named_and_not_restored(stage: Stage) -> None:
    """A checkpoint passes over what has no content, and the report says so."""
    bind = "import socket; socket.socket(socket.AF_UNIX).bind('sock')"
    with stage.box() as box:
        box.exec(["python3", "-c", bind], check=True)
        checkpoint = box.checkpoint()
        assert checkpoint.record.skipped == ("sock",)
        box.exec("rm sock", check=True)
        assert box.restore(checkpoint).skipped == ("sock",)
        assert not box.files.exists("sock")


@pytest.mark.skipif(not ROOT, reason="only root has files of several owners")
@everywhere
def test_owners_come_back(stage: Stage) -> None:
    """Files of several owners are those owners' again after a restore, on disk."""
    os.chown(stage.base, 4242, 4243)
    for name, owner in (("README", 4242), ("src/a.py", 1234), ("src", 4242), ("one.txt", 0)):
        os.chown(stage.base / name, owner, owner)
    os.chown(stage.base / "link", 1234, 1234, follow_symlinks=False)
    with stage.box() as box:
        checkpoint = box.checkpoint()
        instance = box._opening.instance(stage.task)

        def owners() -> list[tuple[int, int]]:
            found = []
            for name in ("README", "src/a.py", "src", "one.txt", "link"):
                s = os.stat(name, dir_fd=instance.workspace, follow_symlinks=False)
                found.append(instance.seen_ids(s.st_uid, s.st_gid))
            return found

        before = owners()
        assert before == [(o, o) for o in (4242, 1234, 4242, 0, 1234)]
        mounted = f"/proc/self/fd/{instance.workspace}"
        for name in ("README", "src/a.py", "one.txt", "link"):
            os.unlink(f"{mounted}/{name}")
        box.restore(checkpoint)
        assert owners() == before
    elsewhere = stage.base.parent / "elsewhere"
    checkpoint.restore_to(elsewhere)
    assert (elsewhere / "src/a.py").stat().st_uid == 1234
    assert (elsewhere / "README").stat().st_gid == 4242


# --- Trouble --------------------------------------------------------------------------------------


@everywhere
def test_a_directory_that_disappears(stage: Stage) -> None:
    """Nothing is lost: the error names it, checkpoints can be read, and it works again later."""
    with stage.box() as box:
        seen = look(box)
        checkpoint = box.checkpoint("kept")
    away = stage.base.with_name("away")
    stage.base.rename(away)
    if stage.kind != "copy":
        with stage.reopened() as box:
            for call in (lambda: box.exec("true"), box.checkpoint, lambda: box.restore("kept")):
                with pytest.raises(WorkspaceInvalid, match="project"):
                    call()
    assert checkpoint.read("README") == b"read me\n"
    assert checkpoint.verify().ok
    checkpoint.restore_to(stage.base.with_name("rescued"))
    away.rename(stage.base)
    with stage.reopened() as box:
        assert look(box) == seen
        assert box.restore("kept").ok


_HOLD = """
import sys
from sandboxsdk import Home, Sandbox, Task
with Sandbox(Task.open(sys.argv[2], home=Home(sys.argv[1]))) as box:
    box.exec("true")
    print("held", flush=True)
    sys.stdin.read()
"""


@everywhere
def test_two_processes_at_once(stage: Stage) -> None:
    """One works, the other is told who; what needs no files can be had meanwhile."""
    with stage.box() as box:
        checkpoint = box.checkpoint("first")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)]),
    }
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, stage.home.path, stage.task.id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(TaskLocked, match=str(process.pid)), stage.task.attach(timeout=0):
                pass
            assert stage.task.checkpoint_by("first").read("README") == b"read me\n"
            assert stage.task.diff("first", checkpoint) == []
        finally:
            process.stdin.close()
        assert process.wait(60) == 0
    with stage.box() as box:
        assert box.restore("first").ok


@everywhere
def test_a_home_that_may_only_be_read(stage: Stage) -> None:
    """Checkpoints are listed, compared, read and verified there; nothing is changed."""
    with stage.box() as box:
        box.checkpoint("one")
        mess_up(box)
        box.checkpoint("two")
    reader = Home(stage.home.path, read_only=True)
    task = Task.open(stage.task.id, home=reader)
    before = outside(Path(stage.home.path))
    two, one = task.checkpoints()
    assert one.read("README") == b"read me\n"
    assert len(two.files()) > 20
    assert two.verify().ok
    assert reader.verify("content").ok
    assert task.diff("one", "two")
    assert reader.gc(dry_run=True).ok
    for call in (one.delete, lambda: one.tag("x"), reader.gc, task.attach):
        with pytest.raises(Denied):
            call()
    with pytest.raises(Denied), Sandbox(task):
        pass
    after = outside(Path(stage.home.path))
    assert {k: v[:4] for k, v in after.items()} == {k: v[:4] for k, v in before.items()}


@everywhere
def test_threads_make_checkpoints_at_once(stage: Stage) -> None:
    """Threads of one process share the box; each gets its own checkpoint, all are whole."""
    made, errors = [], []

    def work(box: Sandbox, number: int) -> None:
        try:
            box.exec(f"echo {number} > file{number}", check=True)
            made.append((number, box.checkpoint(f"c{number}")))
        except BaseException as error:
            errors.append(error)

    with stage.box() as box:
        threads = [threading.Thread(target=work, args=(box, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    for number, checkpoint in made:
        assert checkpoint.read(f"file{number}") == f"{number}\n".encode()
        assert checkpoint.verify().ok
    assert len(stage.task.checkpoints()) == 4


@everywhere
def test_events_tell_of_checkpoints_and_restores(stage: Stage) -> None:
    """Callbacks get the checkpoint and the report."""
    told = []
    with stage.box() as box:
        for event in ("checkpoint", "restore"):
            box.on(event, lambda facts: told.append(dict(facts)))
        made = box.checkpoint()
        report = box.restore(made)
    assert told == [{"checkpoint": made}, {"report": report}]


# --- Throwaway ------------------------------------------------------------------------------------


def test_a_throwaway_box_leaves_only_packs_which_gc_frees(tmp_path: Path, home: Home) -> None:
    """Its checkpoints work inside the block and are gone with it."""
    (tmp_path / "project").mkdir()
    furnish(tmp_path / "project")
    with Sandbox(tmp_path / "project", home=home) as box:
        seen = look(box)
        with pytest.raises(ValueError, match="x"), box.checkpoint("before") as checkpoint:
            mess_up(box)
            raise ValueError("x")
        assert look(box) == seen
        kept = home.gc()
        assert kept.kept_bytes > 3 << 20
        assert checkpoint.verify().ok
    assert os.listdir(f"{home.path}/throwaway") == []
    assert os.listdir(f"{home.path}/trash") == []
    assert home.task_ids() == []
    held = home.stats().store_bytes
    assert held > 3 << 20
    assert home.gc(dry_run=True).freed_bytes > 3 << 20
    assert home.stats().store_bytes == held
    home.gc()
    assert home.stats().store_bytes < held - (3 << 20)
    assert home.verify("content").objects == 0


def test_an_empty_workspace(home: Home) -> None:
    """A box of nothing has checkpoints as any other."""
    for kind in ("overlay", "copy"):
        task = Task.create("t", workspace=Workspace.private(None, kind=kind), home=home)
        with Sandbox(task) as box:
            empty = box.checkpoint()
            box.exec("mkdir d; echo x > d/f", check=True)
            assert sorted(kinds_of(box.diff(empty))) == ["added d", "added d/f"]
            box.restore(empty)
            assert look(box) == {}
            assert empty.files() == []


def test_ambiguous_prefixes_are_told(home: Home) -> None:
    """With very many checkpoints two begin alike; a prefix of both is no answer."""
    task = Task.create("t", home=home)
    with Sandbox(task) as box:
        made = [box.checkpoint().id for _ in range(3)]
    history = task.checkpoint_history()
    points = history.points()
    record = points.records[made[0]]
    twin = made[0][:6] + "".join(reversed(made[0][6:]))
    points.records[twin] = record
    with pytest.raises(AmbiguousId):
        history.find(made[0][:6], points)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
