"""Checkpoints from the command line: log, diff, restore, gc, verify."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from sandboxsdk.home import Home
from sandboxsdk.sandbox import Sandbox
from sandboxsdk.task import Task

from .conftest import Typed


@pytest.fixture
def place(home: Home) -> tuple[str, str]:
    return "--home", home.path


@pytest.fixture
def task(home: Home, tmp_path: Path) -> Task:
    """Give a task with two checkpoints and a change after them."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "f").write_text("one\n")
    worker = Home(home.path)
    task = Task.create("t", name="risky", workspace=tmp_path / "base", home=worker)
    with Sandbox(task) as box:
        box.checkpoint("start", labels={"team": "web"}).tag("good")
        box.exec("echo two > f; head -c 300000 /dev/urandom > big", check=True)
        box.checkpoint("works")
        box.exec("rm f", check=True)
    # Nobody collects what another process is about to append to.
    worker.store.close()
    return Task.open(task.id, home=home)


def _content(task: Task) -> str:
    with Sandbox(task) as box:
        return box.exec("cat f; ls").stdout


def test_the_log_shows_checkpoints(typed: Typed, task: Task, place) -> None:
    """A line for each, with its id, name, size and labels; --json gives the whole records."""
    text = typed("log", "risky", *place).stdout.decode()
    works, start = task.checkpoints()
    assert re.search(rf"checkpoint {start.id} 'start' \(1 files, .* new\) team=web\n", text)
    assert re.search(rf"checkpoint {works.id} 'works' \(2 files, 293\.. KiB new\)\n", text)
    assert f"tagged     tag=good checkpoint={start.id}\n" in text
    assert " base" not in text
    entries = json.loads(typed("log", "risky", "--json", *place).stdout)
    told = [entry["data"] for entry in entries if entry["kind"] == "checkpoint"]
    assert [data["tree"] for data in told] == [start.tree, works.tree]


def test_the_diff_is_between_any_two_points(typed: Typed, task: Task, place) -> None:
    """--from and --to take an id, a tag or a name; without them it is the beginning and now."""
    (_, start) = task.checkpoints()
    for arguments, lines in (
        ((), ["+ big  (293.0 KiB)", "- f"]),
        (("--from", "works"), ["- f"]),
        (("--to", "works"), ["+ big  (293.0 KiB)", "~ f  (4 B)"]),
        (("--from", "works", "--to", "good"), ["- big", "~ f  (4 B)"]),
        (("--from", start.id[:8], "--to", start.id), ["nothing changed"]),
    ):
        done = typed("diff", "risky", *arguments, *place)
        assert (done.returncode, done.stderr) == (0, b"")
        found = done.stdout.decode().splitlines()
        assert [re.sub(r"4 B -> ", "", line) for line in found] == lines, arguments
    changes = json.loads(typed("diff", "risky", "--from", "works", "--json", *place).stdout)
    assert [(change["kind"], change["path"]) for change in changes] == [("removed", "f")]


def test_files_are_put_back_in_place(typed: Typed, task: Task, place) -> None:
    """What is replaced is kept and named, unless --discard; --json gives the report."""
    done = typed("restore", "risky", "works", *place)
    assert (done.returncode, done.stderr) == (0, b"")
    assert f"what was there is checkpoint {task.checkpoints()[0].id}" in done.stdout.decode()
    assert _content(task) == "two\nbig\nf\n"
    count = len(task.checkpoints())
    report = json.loads(typed("restore", "risky", "good", "--discard", "--json", *place).stdout)
    assert (report["saved"], report["removed"]) == (None, 1)
    assert len(task.checkpoints()) == count
    assert _content(task) == "one\nf\n"


def test_files_are_put_elsewhere(typed: Typed, task: Task, place, tmp_path: Path) -> None:
    """--to leaves the task as it is; a directory that is not empty is an error."""
    target = tmp_path / "out"
    done = typed("restore", "risky", "start", "--to", target, *place)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (target / "f").read_text() == "one\n"
    assert len(task.checkpoints()) == 2
    again = typed("restore", "risky", "start", "--to", target, *place)
    assert (again.returncode, again.stdout) == (1, b"")
    assert b"is not empty" in again.stderr


def test_garbage_is_collected_only_when_told(typed: Typed, task: Task, home: Home, place) -> None:
    """Without --apply nothing goes, and the output says how it would."""
    task.checkpoint_by("works").delete()
    # The files of the task still lie over what was checkpointed.
    assert b"would free 0 B" in typed("gc", *place).stdout
    worker = Home(home.path)
    with Sandbox(Task.open(task.id, home=worker)) as box:
        box.restore("start", save_current=False)
    worker.store.close()
    before = home.stats().store_bytes
    done = typed("gc", *place)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert text.startswith("would free 29")
    assert "gc --apply" in text
    assert home.stats().store_bytes == before
    report = json.loads(typed("gc", "--json", *place).stdout)
    assert report["dry_run"]
    assert typed("gc", "--apply", *place).stdout.decode().startswith("freed 29")
    assert home.stats().store_bytes < before - 290_000
    assert b"would free 0 B" in typed("gc", *place).stdout
    assert task.checkpoint_by("start").verify().ok


def test_damage_is_found(typed: Typed, task: Task, home: Home, place) -> None:
    """Verify ends with 0 when all is whole, else with 1, and names checkpoints and files."""
    done = typed("verify", *place)
    assert (done.returncode, done.stdout[:3]) == (0, b"ok:")
    (pack,) = Path(home.path, "store", "packs").glob("*.pack")
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    done = typed("verify", *place)
    assert (done.returncode, done.stderr) == (1, b"")
    text = done.stdout.decode()
    assert text.startswith("DAMAGED:")
    assert task.checkpoint_by("works").id in text
    assert "big" in text
    report = json.loads(typed("verify", "--json", "--level", "objects", *place).stdout)
    assert report["problems"]
    assert typed("restore", "risky", "works", "--to", f"{home.path}-out", *place).returncode == 1
    assert not os.path.exists(f"{home.path}-out")


@pytest.mark.parametrize(
    "arguments",
    [
        ("restore", "risky", "no\033such"),
        ("diff", "risky", "--from", "no\033such"),
        ("restore", "nobody", "start"),
        ("restore", "risky", "start", "--to", "/proc/none/out"),
    ],
)
def test_mistakes_are_told(typed: Typed, task: Task, place, arguments: tuple[str, ...]) -> None:
    """What is not there is one error on standard error with a hint, and exit code 1."""
    done = typed(*arguments, *place)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: ")
    assert b"\n  hint: " in done.stderr
    assert b"\033" not in done.stderr
    assert b"Traceback" not in done.stderr
    assert len(task.checkpoints()) == 2


def test_a_task_in_use_is_told(typed: Typed, task: Task, place) -> None:
    """Another process that works on the task is named; listing needs nobody's leave."""
    with task.attach(agent="somebody"):
        assert typed("log", "risky", *place).returncode == 0
        assert typed("diff", "risky", "--from", "start", "--to", "works", *place).returncode == 0
