"""The registry answers what reading all journals would, whatever happens to its file."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from sandboxsdk import ids
from sandboxsdk.codec import decode_json, encode_json
from sandboxsdk.errors import Corrupt
from sandboxsdk.model import TaskRecord
from sandboxsdk.registry import Registry

STATUSES = ["pending", "active", "completed"]


class Tasks:
    """A directory of tasks whose journals are their records."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.records: dict[str, TaskRecord] = {}
        self.reads = 0
        (root / "tasks").mkdir(parents=True)

    def put(self, record: TaskRecord) -> None:
        place = self.root / "tasks" / record.id
        place.mkdir(exist_ok=True)
        (place / "journal.jsonl").write_bytes(encode_json(record) + b" " * len(self.records))
        self.records[record.id] = record

    def drop(self, task: str) -> None:
        place = self.root / "tasks" / task
        (place / "journal.jsonl").unlink()
        place.rmdir()
        del self.records[task]

    def read(self, directory: str) -> TaskRecord:
        self.reads += 1
        path = Path(directory, "journal.jsonl")
        return decode_json(path.read_bytes(), TaskRecord, path=str(path))

    def registry(self, *, read_only: bool = False) -> Registry:
        path = str(self.root / "registry.sqlite")
        tasks = str(self.root / "tasks")
        return Registry(
            path, tasks=tasks, journal="journal.jsonl", read=self.read, read_only=read_only
        )

    def all(self) -> list[TaskRecord]:
        return sorted(self.records.values(), key=lambda r: (-r.created_at, r.id))


def made(number: int, **more) -> TaskRecord:
    return TaskRecord(id=ids.new_id(), description=f"task {number}", created_at=number, **more)


@pytest.fixture
def tasks(tmp_path):
    found = Tasks(tmp_path / "home")
    for number in range(5):
        found.put(made(number, name=f"n{number % 2}", labels={"k": str(number % 2)}))
    return found


def everything(registry: Registry) -> list[TaskRecord]:
    return registry.select(labels={}, limit=1000)


TEXT = st.text(st.sampled_from("aB%_'\\ä\udc80\0"), max_size=4)
RECORDS = st.builds(
    lambda name, description, status, created, labels, parent: TaskRecord(
        id=ids.new_id(),
        name=name,
        description=description,
        status=status,
        created_at=created,
        labels=labels,
        parent=parent,
    ),
    st.none() | TEXT,
    TEXT,
    st.sampled_from(STATUSES),
    st.integers(0, 3),
    st.dictionaries(st.sampled_from("kl"), st.sampled_from("xy")),
    st.none() | st.just("0" * 16),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(RECORDS, max_size=8),
    st.lists(st.integers(0, 7), max_size=4),
    st.none() | st.sampled_from(STATUSES),
    st.dictionaries(st.sampled_from("kl"), st.sampled_from("xy"), max_size=2),
    st.none() | st.just("0" * 16),
    st.none() | TEXT,
    st.integers(0, 4),
    st.integers(0, 3),
)
def test_every_question_is_answered_as_a_list_would(
    tmp_path_factory, records, gone, status, labels, parent, text, limit, offset
):
    """Filters, order and pages are those of the plain list of records, also after deletions."""
    tasks = Tasks(tmp_path_factory.mktemp("home"))
    registry = tasks.registry()
    for record in records:
        tasks.put(record)
    assert everything(registry) == tasks.all()
    for index in gone:
        if index < len(records) and records[index].id in tasks.records:
            tasks.drop(records[index].id)
    fitting = [
        r
        for r in tasks.all()
        if (status is None or r.status == status)
        and (parent is None or r.parent == parent)
        and all(r.labels.get(key) == value for key, value in labels.items())
        and (not text or text.lower() in f"{r.name or ''} {r.description}".lower())
    ]
    found = registry.select(
        status=status, labels=labels, parent=parent, text=text, limit=limit, offset=offset
    )
    assert found == fitting[offset : offset + limit]
    for name in {r.name for r in records if r.name is not None}:
        assert registry.named(name) == [r for r in tasks.all() if r.name == name]
    for record in records:
        prefix = record.id[:3]
        assert registry.prefixed(prefix) == [r for r in tasks.all() if r.id.startswith(prefix)]
    registry.close()


def test_only_what_changed_is_read(tasks):
    """A journal is read once for each of its states, also by another object on the same file."""
    registry = tasks.registry()
    everything(registry)
    assert tasks.reads == 5
    everything(registry)
    everything(tasks.registry())
    assert tasks.reads == 5
    changed = tasks.all()[0]
    tasks.put(TaskRecord(id=changed.id, description="longer than before", created_at=99))
    tasks.put(made(7))
    assert everything(registry) == tasks.all()
    assert tasks.reads == 7


def test_many_tasks_are_read_once(tmp_path):
    """Ten thousand tasks: each is read once, and a page of them decodes no other."""
    tasks = Tasks(tmp_path / "home")
    for number in range(10_000):
        tasks.put(made(number))
    registry = tasks.registry()
    assert len(registry.select(labels={}, limit=100)) == 100
    assert registry.select(labels={}, text="TASK 9999", limit=5) == tasks.all()[:1]
    assert tasks.reads == 10_000


def test_a_damaged_journal_is_left_out_and_tried_again(tasks):
    """It is no obstacle for the others, and is there as soon as it can be read."""
    registry = tasks.registry()
    broken = tasks.all()[2]
    path = tasks.root / "tasks" / broken.id / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"{")
    assert everything(registry) == [r for r in tasks.all() if r.id != broken.id]
    path.write_bytes(whole)
    assert everything(registry) == tasks.all()


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    chance = random.Random(7)
    for _ in range(40):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def _forge(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE tasks SET record = '{}', created = 'x'")
    database.close()


def _swap(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE tasks SET record = (SELECT record FROM tasks LIMIT 1)")
    database.close()


def _other(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE tasks (a)")
        database.execute("PRAGMA user_version = 1")
    database.close()


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "no database": lambda path: path.write_bytes(b"x" * 10_000),
    "flipped": _flip,
    "forged rows": _forge,
    "swapped rows": _swap,
    "another schema": _other,
    "a later version": lambda path: path.write_bytes(
        path.read_bytes()[:60] + b"\0\0\0\x09" + path.read_bytes()[64:]
    ),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_costs_nothing_but_time(tasks, damage):
    """Whatever happened to the file, the answers are right."""
    registry = tasks.registry()
    everything(registry)
    registry.close()
    DAMAGE[damage](tasks.root / "registry.sqlite")
    again = tasks.registry()
    assert everything(again) == tasks.all()
    assert again.named("n1") == [r for r in tasks.all() if r.name == "n1"]
    again.close()


@pytest.mark.parametrize("at", range(0, 16384, 97))
def test_no_single_byte_matters(tasks, at):
    """A wrong byte anywhere is found, or changes no answer."""
    registry = tasks.registry()
    everything(registry)
    registry.close()
    path = tasks.root / "registry.sqlite"
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 0xFF
    path.write_bytes(data)
    again = tasks.registry()
    told = {record.id for record in everything(again)}
    assert told <= set(tasks.records)
    again.close()


def test_something_else_in_its_place(tasks):
    """A directory where the file should be: memory answers."""
    (tasks.root / "registry.sqlite").mkdir()
    assert everything(tasks.registry()) == tasks.all()


def test_read_only_writes_nothing(tasks):
    """Nothing is made, and the answers are the same."""
    assert everything(tasks.registry(read_only=True)) == tasks.all()
    assert not (tasks.root / "registry.sqlite").exists()


def test_a_forked_child_asks_for_itself(tasks):
    """A child opens the file anew and the parent's goes on."""
    registry = tasks.registry()
    everything(registry)
    child = os.fork()
    if child == 0:
        os._exit(0 if everything(registry) == tasks.all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert everything(registry) == tasks.all()


def test_processes_at_once(home):
    """Several processes that make and list tasks at once all see every task of their own."""
    script = """
import sys
from sandboxsdk import Home, Task
home = Home(sys.argv[1])
for number in range(15):
    made = Task.create(f"{sys.argv[2]} {number}", name=sys.argv[2], home=home)
    assert made.id in {r.id for r in Task.list(limit=1000, home=home)}
"""
    path = os.pathsep.join([os.getcwd(), *filter(None, sys.path)])
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, home.path, f"p{number}"],
            env={**os.environ, "PYTHONPATH": path},
        )
        for number in range(3)
    ]
    assert [child.wait() for child in children] == [0, 0, 0]
    from sandboxsdk import Task

    assert len(Task.list(limit=1000, home=home)) == 45


def test_corrupt_is_what_a_reader_may_raise(tasks):
    """A reader that refuses everything leaves an empty answer, not an error."""

    def refuse(directory: str) -> TaskRecord:
        raise Corrupt(path=directory, reason="is damaged")

    path = str(tasks.root / "registry.sqlite")
    registry = Registry(
        path,
        tasks=str(tasks.root / "tasks"),
        journal="journal.jsonl",
        read=refuse,
        read_only=False,
    )
    assert everything(registry) == []
