"""Tasks are found by id, name and prefix, and listed, whatever the registry's file says."""

from __future__ import annotations

import gc
import os
import random
import shutil
import sqlite3
import weakref
from contextlib import closing
from pathlib import Path

import pytest

from sandboxsdk.errors import AmbiguousId, Corrupt, TaskNotFound, UsageError
from sandboxsdk.home import Home
from sandboxsdk.journal import FILE
from sandboxsdk.model import TaskRecord
from sandboxsdk.task import Task
from sandboxsdk.task.finding import find_task, list_tasks
from sandboxsdk.task.making import begin_journal


def make(home: Home, task: str, **more) -> str:
    os.mkdir(home.directory(task))
    record = TaskRecord(id=task, description=f"task {task}", **more)
    begin_journal(home.directory(task), record, sync=False)
    return task


def damage(home: Home, task: str) -> None:
    Path(home.directory(task), FILE).write_bytes(b"{}\n")


def listed(home: Home, **more) -> list[str]:
    asked = {"status": None, "labels": None, "parent": None, "text": None, "limit": 9, "offset": 0}
    return [record.id for record in list_tasks(home, **{**asked, **more})]


A, AB, B, Z = "a" * 16, "ab" + "a" * 14, "b" * 16, "z" * 16


@pytest.fixture
def three(home):
    make(home, A, name="first", created_at=1)
    make(home, AB, name="a", created_at=2)
    make(home, B, name=A, created_at=3)
    return home


def test_id_then_name_then_prefix(three):
    """A whole id wins over a name, and a name over the beginning of an id."""
    for wanted, found in {A: A, "first": A, "a": AB, "b": B, "ab": AB, AB[:15]: AB, B: B}.items():
        assert find_task(three, wanted).id == found


def test_several_are_named_in_order(three):
    """Several of one name, or of one prefix, are ambiguous, and all are named."""
    make(three, Z, name="first", created_at=9)
    make(three, "z" * 15 + "0", created_at=8)
    for wanted, matches in {"first": [A, Z], "z": ["z" * 15 + "0", Z]}.items():
        with pytest.raises(AmbiguousId) as caught:
            find_task(three, wanted)
        assert caught.value.matches == ", ".join(matches)


@pytest.mark.parametrize("wanted", [None, "", b"a", 5, True, object(), ["a"], ("a",)])
def test_what_is_no_text_is_refused(three, wanted):
    """It is an error of the caller, with what to do."""
    with pytest.raises(UsageError) as caught:
        find_task(three, wanted)
    assert caught.value.hint


@pytest.mark.parametrize(
    "wanted",
    [
        "..",
        ".",
        "/",
        "../tasks",
        f"../tasks/{A}",
        f"{A}/",
        f"{A}\0",
        f"{A}a",
        "\0",
        "%",
        "_" * 16,
        "*",
        "A",
        "é",
        "\u0430",  # Cyrillic
        "\udc80",
        "\U0001f600",
        "i",  # in no id
        "c",
        "0" * 16,
        "x" * 5_000_000,
    ],
)
def test_what_fits_nothing_is_not_found(three, wanted):
    """However odd it is, it is a text that fits nothing."""
    with pytest.raises(TaskNotFound) as caught:
        find_task(three, wanted)
    assert caught.value.hint
    assert len(str(caught.value)) < 10_000


def test_a_damaged_journal_is_told_to_who_wants_the_task(three):
    """By id, by prefix, and by a prefix that fits others too; others are found and listed."""
    damage(three, AB)
    for wanted in (AB, "ab", AB[:15], "a"):
        with pytest.raises(Corrupt, match=AB):
            find_task(three, wanted)
    assert find_task(three, "first").id == A
    assert listed(three) == [B, A]


def test_what_is_found_is_what_the_journal_says(three):
    """A registry that is damaged or forged gives no work another directory or other settings."""
    find_task(three, "first")
    path = Path(three.path, "registry.sqlite")
    whole = path.read_bytes()
    chance = random.Random(5)
    for _ in range(200):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        assert find_task(Home(three.path), "first") == find_task(three, A)


def test_a_task_that_came_back_is_found(three, tmp_path):
    """What was taken out of a home by hand and put back is there again."""
    assert find_task(three, "first").id == A
    shutil.move(three.directory(A), tmp_path / "kept")
    with pytest.raises(TaskNotFound):
        find_task(three, "first")
    shutil.move(tmp_path / "kept", three.directory(A))
    assert find_task(three, "first").id == A


def test_list_narrows_and_pages(three):
    """Filters, order and pages."""
    make(three, Z, parent=A, labels={"k": "v"}, status="active", created_at=3)
    assert listed(three) == [B, Z, AB, A]
    assert listed(three, limit=2, offset=1) == [Z, AB]
    assert listed(three, limit=0) == listed(three, offset=10**30) == []
    assert listed(three, limit=10**30) == [B, Z, AB, A]
    for more in ({"parent": A}, {"labels": {"k": "v"}}, {"status": "active"}, {"text": "K ZZ"}):
        assert listed(three, **more) == [Z]
    assert listed(three, text="") == [B, Z, AB, A]
    assert listed(three, text="%") == listed(three, text="x" * 5_000_000) == []


@pytest.mark.parametrize(
    "more",
    [
        {"status": "odd"},
        {"status": []},
        {"labels": 5},
        {"labels": {"a": 5}},
        {"parent": 5},
        {"text": b"x"},
        {"limit": -1},
        {"limit": True},
        {"limit": None},
        {"offset": -1},
        {"offset": "1"},
    ],
)
def test_filters_that_cannot_be_are_refused(three, more):
    """Each is an error of the caller, with what to do."""
    with pytest.raises(UsageError) as caught:
        listed(three, **more)
    assert caught.value.hint


def test_read_only_home_is_left_as_it_is(three):
    """Nothing is made in it, and everything is found."""
    reader = Home(three.path, read_only=True)
    assert listed(reader) == [B, AB, A]
    assert find_task(reader, "first").id == A
    assert "registry.sqlite" not in os.listdir(three.path)


def test_every_change_is_seen_by_another_home_object(home):
    """What one does to a task, the next list of another tells."""
    other = Home(home.path)
    task = Task.create("t", name="n", home=home)
    assert listed(other) == [task.id]
    task.complete()
    assert listed(other, status="completed") == [task.id]
    assert listed(other, status="pending") == []
    task.delete()
    assert listed(other) == []


def test_registry_goes_with_its_home(home):
    """A home that nobody has any more keeps no file open."""
    make(home, A)
    own = Home(home.path)
    assert listed(own) == [A]
    assert any("registry.sqlite" in name for name in open_files())
    gone = weakref.ref(own)
    del own
    gc.collect()
    assert gone() is None
    assert not any("registry.sqlite" in name for name in open_files() if home.path in name)


def open_files():
    names = []
    for number in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    return names


def test_file_of_the_registry_is_a_cache(three):
    """Its tables may be emptied by anybody, and nothing is lost."""
    assert listed(three) == [B, AB, A]
    with closing(sqlite3.connect(Path(three.path, "registry.sqlite"))) as database, database:
        database.execute("DELETE FROM tasks")
    assert listed(three) == [B, AB, A]
