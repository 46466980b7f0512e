"""The demo on small directories with odd names, and whatever may happen to it meanwhile."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandboxsdk.cli.survey import Survey
from sandboxsdk.home import Home

from .conftest import Typed

ODD = [
    b"-rf",
    b"two words.txt",
    b"line\nbreak.py",
    b"\033[31mred.md",
    b"\xff\xfe.txt",
    "日本.py".encode(),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "work here"
    for folder, names in (("", ODD), ("big one\n", ODD), ("small", ODD[1:2])):
        (root / folder).mkdir()
        for name in names:
            (root / folder / os.fsdecode(name)).write_text("self\n")
    return root


def test_the_demo_shows_everything_and_leaves_nothing(typed: Typed, home: Home, tree: Path) -> None:
    """All steps run, the directory is the same to the last time stamp, and no task is left."""
    before = Survey(str(tree))
    done = typed("demo", tree, "--home", home.path)
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b""), text
    assert f"on {tree}\n" in text
    assert "rm -rf big one\\n" in text
    assert "nothing in it was written" in text
    assert "Fork 3 attempts" in text
    assert "the copy is as it was" in text
    assert "Undo" in text
    assert Survey(str(tree)).fingerprint == before.fingerprint
    assert home.task_ids() == []
    assert os.listdir(os.path.join(home.path, "trash")) == []


def test_the_demo_is_printable_and_fits(typed: Typed, home: Home, tree: Path) -> None:
    """No name reaches the terminal raw, and no line is wider than the terminal."""
    lines = typed("demo", tree, "--home", home.path).stdout.decode().split("\n")
    assert all(line.isprintable() for line in lines)
    assert max(len(line) for line in lines if str(tree) not in line) <= 80


def test_the_demo_needs_no_unicode(typed: Typed, home: Home, tree: Path) -> None:
    """On a terminal that knows ASCII alone, so does the demo."""
    done = typed("demo", tree, "--home", home.path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


@pytest.mark.parametrize("files", [0, 3])
def test_the_demo_makes_do_with_little(typed: Typed, home: Home, tmp_path: Path, files) -> None:
    """An empty directory, or one without folders, is as good as any."""
    (tmp_path / "little").mkdir()
    for number in range(files):
        (tmp_path / "little" / f"{number}.txt").write_text("x\n")
    done = typed("demo", tmp_path / "little", "--home", home.path)
    assert (done.returncode, done.stderr) == (0, b""), done.stdout


def test_a_kept_task_can_be_looked_at(typed: Typed, home: Home, tree: Path) -> None:
    """--keep keeps the task; the command that it prints names what can be gone back to."""
    done = typed("demo", tree, "--keep", "--home", home.path)
    assert done.returncode == 0, done.stderr
    (task,) = home.task_ids()
    assert f"python -m sandboxsdk log {task}" in done.stdout.decode()
    entries = json.loads(typed("log", task, "--json", "--home", home.path).stdout)
    kept = [entry["data"] for entry in entries if entry["kind"] == "checkpoint"]
    saved = next(one["id"] for one in kept if "before-restore" in one["labels"])
    told = json.loads(typed("diff", task, "--json", "--home", home.path).stdout)
    assert [change["path"] for change in told] == ["demo-build", "demo-build/attempt.gz"]
    command = ("diff", task, "--to", saved, "--json", "--home", home.path)
    changes = json.loads(typed(*command).stdout)
    kinds = {change["path"]: change["kind"] for change in changes}
    assert kinds["big one\n"] == "removed"
    assert kinds["demo-build/texts.gz"] == "added"
    assert kinds["two words.txt"] == "modified"


@pytest.mark.parametrize("name", ["missing", "file", "/"])
def test_what_cannot_be_a_workspace_is_told(typed: Typed, home: Home, tmp_path, name) -> None:
    """A directory that cannot be worked on is one error with exit code 1, and leaves no task."""
    (tmp_path / "file").touch()
    done = typed("demo", str(tmp_path / name), "--home", home.path)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
    assert b"Traceback" not in done.stderr
    assert home.task_ids() == []


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [b"sandboxsdk demo", b"Open a box"])
def test_an_ended_demo_leaves_nothing(
    home: Home, tmp_path: Path, environment: dict[str, str], ending: signal.Signals, moment: bytes
) -> None:
    """Ctrl-C and SIGTERM at any moment leave no task, no process and no traceback."""
    tree = tmp_path / "slow"
    tree.mkdir()
    noise = random.Random(0).randbytes(100_000).hex()
    for number in range(200):
        (tree / f"{number}.txt").write_text(noise)
    before = Survey(str(tree))
    program = subprocess.Popen(
        [sys.executable, "-m", "sandboxsdk", "demo", tree, "--home", home.path],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with program:
        assert program.stdout is not None
        assert any(moment in line for line in program.stdout)
        program.send_signal(ending)
        _, errors = program.communicate(timeout=100)
    assert program.returncode == 128 + ending
    assert errors == (b"interrupted\n" if ending == signal.SIGINT else b"")
    assert home.task_ids() == []
    assert Survey(str(tree)).fingerprint == before.fingerprint
    # They were killed; the kernel takes a moment, and the limit is pytest's.
    while _holders_of(home.path):
        time.sleep(0.01)


def _holders_of(path: str) -> list[str]:
    """Find processes that have something open or mounted below a path."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            held = [os.readlink(entry) for entry in Path(f"/proc/{process}/fd").iterdir()]
            held.append(Path(f"/proc/{process}/mountinfo").read_text(errors="replace"))
        except OSError:
            continue
        if any(path in text for text in held):
            found.append(process)
    return found
