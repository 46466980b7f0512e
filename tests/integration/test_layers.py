"""Layers seen from outside: what they must never do, however they were left."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from sandboxsdk import Home, Sandbox, Task, Workspace
from sandboxsdk.layers import layers as module

from .marks import until

SHOWN = "find . -type f ! -path './many/*' | sort | xargs head -v"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work" / "d").mkdir(parents=True)
    for name in ("a", "b", "d/c"):
        (tmp_path / "work" / name).write_text(f"{name} at first\n")
    return tmp_path / "work"


def shown(box: Sandbox) -> str:
    return box.exec(SHOWN, check=True).stdout


def lying_on(home: Home) -> list[int]:
    """Count the layers that each task lies on."""
    return sorted(len(stack.layers) for stack in home.layers.stacks())


def test_a_checkpoint_leaves_a_layer_and_an_empty_upper(work: Path, home: Home) -> None:
    """What was written lies below the view then, and a checkpoint of nothing leaves nothing."""
    task = Task.create("t", workspace=work, home=home)
    with Sandbox(task) as box:
        box.checkpoint()
        assert lying_on(home) == []
        box.exec("echo 1 > a; rm -r d; ln -s a l; mkfifo p", check=True)
        before = shown(box)
        first = box.checkpoint()
        assert os.listdir(Path(task.directory, "upper")) == []
        assert lying_on(home) == [1]
        assert box.checkpoint().tree == first.tree
        assert lying_on(home) == [1]
        assert shown(box) == before


def test_what_a_restore_replaces_is_a_layer(work: Path, home: Home) -> None:
    """What is saved by a restore can be gone back to without writing a file, and no other upper is
    left of it.
    """
    task = Task.create("t", workspace=work, home=home)
    with Sandbox(task) as box:
        first = box.checkpoint()
        box.exec("echo 1 > a; rm -r d; ln -s a l", check=True)
        before = shown(box)
        saved = box.restore(first).saved
        assert saved is not None
        assert lying_on(home) == [0]
        assert shown(box) != before
        assert {name for name in os.listdir(task.directory) if name.startswith("upper")} == {
            "upper"
        }
        box.restore(saved)
        assert lying_on(home) == [1]
        assert os.listdir(Path(task.directory, "upper")) == []
        assert shown(box) == before


def test_layers_are_few_after_many_checkpoints(work: Path, home: Home) -> None:
    """They are merged as they come, and every point can be gone back to."""
    task = Task.create("t", workspace=work, home=home)
    with Sandbox(task) as box:
        made = []
        for number in range(70):
            box.files.write("a", f"{number}\n")
            box.files.write(f"n{number % 5}", f"{number}\n")
            if number % 3 == 0:
                box.exec(
                    f"rm -f n{(number + 2) % 5}; rm -rf d; mkdir d; echo {number} > d/{number}"
                )
            made.append((box.checkpoint(), shown(box)))
        assert lying_on(home)[-1] < 20
        for checkpoint, seen in made[::7]:
            box.restore(checkpoint, save_current=False)
            assert shown(box) == seen
            assert box.diff(checkpoint) == []


@pytest.mark.parametrize("how", ["content", "removed", "added", "mode", "layer", "about"])
def test_a_damaged_layer_is_not_used(how: str, work: Path, home: Home) -> None:
    """A cleaner, or anybody, was in the home: files come from the store."""
    task = Task.create("t", workspace=work, home=home)
    with Sandbox(task) as box:
        box.exec("echo good > a; echo more > d/new; rm b", check=True)
        first, seen = box.checkpoint(), shown(box)
        box.exec("echo later > a", check=True)
        box.checkpoint()
        later = shown(box)
    for layer in Path(home.path, "layers").glob("*.*"):
        file = layer / "files" / "a"
        if how == "content":
            file.write_text("BAD\n")
        elif how == "removed":
            file.unlink()
        elif how == "added":
            (layer / "files" / "d").mkdir(exist_ok=True)
            (layer / "files" / "d" / "planted").write_text("BAD\n")
        elif how == "mode":
            file.chmod(0o600)
        elif how == "layer":
            shutil.rmtree(layer)
        else:
            (layer / "about").write_bytes(b"")
    # As in a process that has not made them.
    module._sound.clear()
    module._abouts.clear()
    with Sandbox(task) as box:
        assert shown(box) == later
        box.restore(first)
        assert shown(box) == seen
    with Sandbox(task.fork(at=first)[0]) as fork:
        assert shown(fork) == seen


@pytest.mark.parametrize("how", ["cut", "gone", "of another"])
@pytest.mark.parametrize("next_use", ["box", "diff", "fork", "apply"])
def test_what_a_power_cut_tears_is_the_last_checkpoint_again(
    how: str, next_use: str, work: Path, home: Home
) -> None:
    """Where nobody knows any more what an upper lies over, it is laid over nothing else."""
    task = Task.create("t", workspace=work, home=home)
    with Sandbox(task) as box:
        box.exec("echo good > a; echo new > n", check=True)
        box.checkpoint()
        seen = shown(box)
        box.exec("echo uncommitted > b", check=True)
    stack = Path(task.directory, "stack")
    if how == "cut":
        stack.write_bytes(stack.read_bytes()[:-1])
    elif how == "gone":
        stack.unlink()
    else:
        with Sandbox(work, home=home) as other:
            other.exec("echo x > x", check=True)
            other.checkpoint()
            shutil.copy(Path(other.task.directory, "stack"), stack)
    if next_use == "diff":
        assert sorted(change.path for change in task.diff()) == ["a", "n"]
    elif next_use == "fork":
        with Sandbox(task.fork()[0]) as fork:
            assert shown(fork) == seen
    elif next_use == "apply":
        task.apply()
        assert (work / "a").read_text() == "good\n"
        assert (work / "b").read_text() == "b at first\n"
    with Sandbox(task) as box:
        assert shown(box) == seen


@pytest.mark.parametrize("many", [0, 2_100])
def test_going_back_after_applying_is_exact(many: int, work: Path, home: Home) -> None:
    """The directory has what was applied by then, and a checkpoint from before does not."""
    (work / "many").mkdir()
    for number in range(many):
        (work / "many" / f"f{number}").touch()
    task = Task.create("t", workspace=work, home=home)
    with Sandbox(task) as box:
        first, seen = box.checkpoint("first"), shown(box)
        box.exec("echo 2 > a; echo new > n; rm b", check=True)
        second, later = box.checkpoint("second"), shown(box)
        assert task.apply().ok
        for checkpoint, wanted in ((first, seen), (second, later), (first, seen)):
            box.restore(checkpoint)
            assert shown(box) == wanted
            assert box.diff(checkpoint) == []
    with Sandbox(task.fork(at=first)[0]) as fork:
        assert shown(fork) == seen


def test_a_fork_shows_its_files_whatever_the_user_edits(work: Path, home: Home) -> None:
    """The directory was changed between the fork and its first use."""
    task = Task.create("t", workspace=work, home=home)
    with Sandbox(task) as box:
        box.exec("echo 2 > a", check=True)
        box.checkpoint()
        seen = shown(box)
    (fork,) = task.fork()
    (work / "b").write_text("edited by the user\n")
    (work / "theirs").write_text("added by the user\n")
    with Sandbox(fork) as box:
        assert shown(box) == seen


def test_deleted_tasks_leave_no_files_behind(work: Path, home: Home) -> None:
    """Layers may hold secrets; when garbage is collected, those that nobody needs go at once."""
    task, kept = (Task.create(name, workspace=work, home=home) for name in ("t", "kept"))
    for one in (task, kept):
        with Sandbox(one) as box:
            for number in range(3):
                box.exec(f"echo {one.description} {number} > s", check=True)
                box.checkpoint()
    task.delete()
    home.gc()
    left = {path.read_text() for path in Path(home.path, "layers").glob("*.*/files/s")}
    assert left == {"kept 0\n", "kept 1\n", "kept 2\n"}


@pytest.mark.parametrize(
    "held",
    [
        "a large file",
        "a file changed again",
        "a hard link",
        "too many excluded paths",
        "another name of an excluded file",
        "a socket",
        "deep directories",
    ],
)
def test_what_cannot_be_a_layer_stays_above(held: str, work: Path, home: Home) -> None:
    """It is checkpointed and gone back to all the same."""
    made = {
        "a large file": "head -c 70000000 /dev/urandom > large",
        "a file changed again": "head -c 9000000 /dev/urandom > big",
        "a hard link": "ln a link",
        "too many excluded paths": "touch $(seq -f %g.log 1001)",
        "another name of an excluded file": "echo x > x; ln x x.log",
        "a socket": "python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('s')\"",
        "deep directories": "p=$(printf 'x/%.0s' $(seq 200)); mkdir -p $p; echo x > $p/f",
    }[held]
    (work / "big").write_bytes(bytes(100))
    workspace = Workspace.private(work, exclude=["*.log"])
    task = Task.create("t", workspace=workspace, home=home)
    with Sandbox(task) as box:
        box.checkpoint("start")
        box.exec(f"echo 1 > a; {made}", check=True)
        first = box.checkpoint()
        assert lying_on(home) == []
        box.exec("echo 2 > a; echo new > n", check=True)
        box.checkpoint()
        box.restore(first)
        assert box.exec("cat a; ls n", check=False).stdout == "1\n"
        box.restore("start")
        assert box.exec("cat a").stdout == "a at first\n"


def test_files_written_meanwhile_are_in_no_layer(work: Path, home: Home) -> None:
    """Another thread writes through box.files while checkpoints are made: what one shows is what it
    says.
    """
    task = Task.create("t", workspace=work, home=home)
    with Sandbox(task) as box:
        over = threading.Event()
        written = 0

        def write() -> None:
            nonlocal written
            while not over.is_set():
                box.files.write("racing", str(written))
                written += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            made = []
            for number in range(30):
                box.exec(f"echo {number} > a", check=True)
                made.append(box.checkpoint())
            until(lambda: written > 30)
        finally:
            over.set()
            writer.join()
        for checkpoint in made[::5]:
            fork = box.fork(at=checkpoint)[0]
            files = {file.path for file in checkpoint.files()}
            assert set(fork.exec("find . -type f | cut -c3-").stdout.split()) == {
                path for path in files if path not in {"d", "many"}
            }
            for name in files & {"racing", "a"}:
                assert fork.files.read_bytes(name) == checkpoint.read(name)


def test_programs_stand_still_for_as_long_as_it_says(work: Path, home: Home) -> None:
    """Where nothing runs nothing is stopped."""
    with Sandbox(work, home=home) as box:
        assert box.checkpoint().stats.paused == 0
        with box.spawn(["sleep", "60"]):
            stats = box.checkpoint().stats
            assert 0 < stats.paused < stats.seconds
