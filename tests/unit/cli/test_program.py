"""What is typed and what comes back: text, JSON, exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxsdk.home import Home
from sandboxsdk.sandbox import Sandbox
from sandboxsdk.task import Task

from .conftest import Typed

NASTY = "\033[31mred\r\n\u202eback\udcff"


@pytest.fixture
def place(home: Home) -> tuple[str, str]:
    return "--home", home.path


@pytest.mark.parametrize(
    "arguments", [(), ("frobnicate",), ("ls", "--nonsense"), ("diff",), ("demo", "a", "b")]
)
def test_what_cannot_be_understood_is_a_usage_error(typed: Typed, arguments: list[str]) -> None:
    """A wrong command line ends with 2 and shows on standard error how it is used."""
    done = typed(*arguments)
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.startswith(b"usage: python -m sandboxsdk")


def test_typed_control_characters_are_not_echoed(typed: Typed) -> None:
    """A usage error shows what was typed with its control characters escaped."""
    done = typed("ls", "--\033[31m")
    assert done.returncode == 2
    assert b"\033" not in done.stderr
    assert rb"--\x1b[31m" in done.stderr


def test_every_command_explains_itself(typed: Typed) -> None:
    """--help ends with 0 and lists the commands."""
    done = typed("--help")
    assert done.returncode == 0
    for command in (b"demo", b"doctor", b"ls", b"log", b"diff"):
        assert command in done.stdout


def test_an_empty_home_is_said_in_a_friendly_line(typed: Typed, home: Home, place) -> None:
    """No tasks is no error, and no empty table."""
    done = typed("ls", *place)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"no tasks in {home.path}\n"


def test_a_home_that_was_named_wrongly_is_not_made(typed: Typed, tmp_path: Path) -> None:
    """A typing error in --home is told, and makes no directory."""
    done = typed("ls", "--home", tmp_path / "typo")
    assert done.returncode == 1
    assert b"error: " in done.stderr
    assert b"typo" in done.stderr
    assert not (tmp_path / "typo").exists()


def test_tasks_are_listed_newest_first(typed: Typed, home: Home, place) -> None:
    """A line per task, with a prefix of its id by which it can be opened."""
    first = Task.create("the first one", home=home)
    second = Task.create("the second", name="two", home=home)
    done = typed("ls", *place)
    assert done.returncode == 0
    heading, *lines = done.stdout.decode().splitlines()
    assert heading.split() == ["ID", "NAME", "STATUS", "CREATED", "DESCRIPTION"]
    assert [line.split()[1] for line in lines] == ["two", "-"]
    assert [Task.open(line.split()[0], home=home).id for line in lines] == [second.id, first.id]
    assert lines[1].endswith("the first one")


def test_tasks_are_listed_as_json(typed: Typed, home: Home, place) -> None:
    """--json gives an array of records, and an empty one when there is none."""
    assert json.loads(typed("ls", "--json", *place).stdout) == []
    task = Task.create("one", name="uno", home=home, labels={"team": "red"})
    (record,) = json.loads(typed("ls", "--json", *place).stdout)
    assert record["id"] == task.id
    assert record["created_at"] == task.created_at
    assert (record["name"], record["status"]) == ("uno", "pending")
    assert record["labels"] == {"team": "red"}


def test_tasks_are_listed_by_status(typed: Typed, home: Home, place) -> None:
    """--status keeps those that have it, and refuses a status that does not exist."""
    Task.create("one", home=home)
    assert len(json.loads(typed("ls", "--json", "--status", "pending", *place).stdout)) == 1
    assert b"no failed tasks" in typed("ls", "--status", "failed", *place).stdout
    refused = typed("ls", "--status", "happy", *place)
    assert refused.returncode == 1
    assert b"one of: pending" in refused.stderr


def test_a_task_is_found_by_name_and_by_prefix(typed: Typed, home: Home, place) -> None:
    """Both log and diff take an id, the beginning of one, or a name."""
    task = Task.create("one", name="uno", home=home)
    for wanted in (task.id, task.id[:8], "uno"):
        assert typed("log", wanted, *place).returncode == 0
        assert typed("diff", wanted, *place).stdout == b"nothing changed\n"


def test_an_unknown_task_is_told_with_a_hint(typed: Typed, place) -> None:
    """What goes wrong is text on standard error, exit code 1, and no traceback."""
    for command in ("log", "diff"):
        done = typed(command, "nobody\033[31m", *place)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"error: no task nobody\\x1b[31m")
        assert b"\n  hint: " in done.stderr


def test_the_log_begins_with_the_creation(typed: Typed, home: Home, place, tmp_path: Path) -> None:
    """The log says when the task was made and on what; --json gives an array of entries."""
    (tmp_path / "base").mkdir()
    task = Task.create("fix it", workspace=tmp_path / "base", home=home)
    text = typed("log", task.id, *place).stdout.decode()
    assert "created" in text
    assert "fix it" in text
    assert str(tmp_path / "base") in text
    entry = json.loads(typed("log", "--json", task.id, *place).stdout)[0]
    assert (entry["kind"], entry["data"]["record"]["id"]) == ("created", task.id)
    assert isinstance(entry["at"], int)


def test_changes_are_listed(typed: Typed, home: Home, place, tmp_path: Path) -> None:
    """The command diff prints a line per change with its sign; --json gives an array of them."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "old.txt").write_text("old\n")
    task = Task.create("change it", workspace=base, home=home)
    with Sandbox(task) as box:
        box.exec("rm old.txt; printf 12 > new.txt; printf 1 > \"$(printf 'a\\033b\\377')\"")
    assert typed("diff", task.id, *place).stdout.decode().splitlines() == [
        r"+ a\x1bb\udcff  (1 B)",
        "+ new.txt  (2 B)",
        "- old.txt",
    ]
    changes = json.loads(typed("diff", "--json", task.id, *place).stdout)
    assert [change["path"] for change in changes] == ["a\x1bb\udcff", "new.txt", "old.txt"]
    assert set(changes[0]) == {"kind", "path", "size", "old_size", "mode", "old_path"}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_nothing_stored_reaches_the_terminal_raw(typed: Typed, home: Home, place, encoding) -> None:
    """Control characters of a description are escaped, whatever the terminal understands."""
    task = Task.create("日本 " + NASTY.replace("\udcff", ""), home=home)
    for command in (("ls",), ("ls", "--json"), ("log", task.id), ("log", task.id, "--json")):
        done = typed(*command, *place, PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        assert not set(done.stdout.decode(encoding)) & set("\033\r\u202e")


def test_a_reader_that_leaves_is_no_error(
    home: Home, place, environment: dict[str, str], tmp_path: Path
) -> None:
    """`| head` ends the program without a word."""
    for number in range(3):
        Task.create(f"task {number}", home=home)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "sandboxsdk", "ls", *place],
            cwd=tmp_path,
            env=environment,
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=100,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("plain", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_only_terminals_get_colours(
    home: Home, place, environment: dict[str, str], tmp_path: Path, plain: dict[str, str]
) -> None:
    """A terminal gets colours and shortened lines, one that does not want them gets plain text."""
    Task.create("long " * 100, home=home)
    keyboard, terminal = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-m", "sandboxsdk", "ls", *place],
            cwd=tmp_path,
            env=environment | {"TERM": "xterm"} | plain,
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            check=True,
            timeout=100,
        )
        shown = os.read(keyboard, 65536).decode()
    finally:
        os.close(keyboard)
        os.close(terminal)
    assert ("\033[" in shown) == (not plain)
    if plain:
        assert max(map(len, shown.splitlines())) <= 80


def test_the_doctor_reports(typed: Typed, home: Home, place) -> None:
    """The report has a line per finding; the exit code is 0 where boxes can be made."""
    done = typed("doctor", *place)
    assert done.returncode == 0, done.stdout
    text = done.stdout.decode()
    assert f"ok   home        {home.path}\n" in text
    assert "bubblewrap" in text
    assert "\033" not in text
