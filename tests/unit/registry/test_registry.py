"""The registry answers what reading all journals would, whatever happens to its file."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from sandboxsdk import ids
from sandboxsdk.codec import decode_json, encode_json
from sandboxsdk.errors import Corrupt, HostRefused, NotFound
from sandboxsdk.model import Spec, TaskRecord
from sandboxsdk.registry import Registry, table

STATUSES = ["pending", "active", "completed"]


class Tasks:
    """A directory of tasks whose journals are their records."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.records: dict[str, TaskRecord] = {}
        self.reads = 0
        self.lines = 0
        (root / "tasks").mkdir(parents=True)

    def put(self, record: TaskRecord) -> None:
        place = self.root / "tasks" / record.id
        place.mkdir(exist_ok=True)
        self.lines += 1  # As a journal, it has another size whenever it says something else.
        (place / "journal.jsonl").write_bytes(encode_json(record) + b" " * self.lines)
        self.records[record.id] = record

    def drop(self, task: str) -> None:
        place = self.root / "tasks" / task
        (place / "journal.jsonl").unlink()
        place.rmdir()
        del self.records[task]

    def read(self, directory: str) -> TaskRecord:
        self.reads += 1
        path = Path(directory, "journal.jsonl")
        try:
            return decode_json(path.read_bytes(), TaskRecord, path=str(path))
        except FileNotFoundError:
            raise NotFound(reason="gone") from None

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


TEXT = st.text(st.sampled_from("aBİß%_'\\\\\n\",]ä\ud83d\ude00\0"), max_size=4)
LABELS = st.dictionaries(TEXT, TEXT, max_size=2)
# Some that are too long for their columns or for a row.
LONG = st.sampled_from(["", "", "", "x" * 5_000, "ä" * 40_000])
PARENTS = st.sampled_from([None, "0" * 16, "\udc80", "-"])


def _record(task, name, description, more, status, created, labels, parent):
    return TaskRecord(
        id=task,
        name=name,
        description=more + description,
        status=status,
        created_at=created,
        labels=labels,
        parent=parent,
    )


RECORDS = st.builds(
    _record,
    st.sampled_from([character * 16 for character in "0123ab"] + ["a" * 15 + "b"]),
    st.none() | TEXT,
    TEXT,
    LONG,
    st.sampled_from(STATUSES),
    st.integers(0, 3) | st.integers(-(2**65), 2**65),
    LABELS,
    PARENTS,
)
QUESTIONS = st.fixed_dictionaries(
    {
        "status": st.none() | st.sampled_from(STATUSES),
        "labels": LABELS,
        "parent": PARENTS,
        "text": st.none() | TEXT,
        "limit": st.integers(0, 4) | st.just(2**70),
        "offset": st.integers(0, 3) | st.just(2**70),
    }
)
STEPS = st.lists(RECORDS | st.integers(0, 7) | QUESTIONS | st.just("reopen"), max_size=12)


def _answer(tasks, asked):
    fitting = [
        r
        for r in tasks.all()
        if (asked["status"] is None or r.status == asked["status"])
        and (asked["parent"] is None or r.parent == asked["parent"])
        and all(r.labels.get(key) == value for key, value in asked["labels"].items())
        and (asked["text"] or "").lower() in f"{r.name or ''} {r.description}".lower()
    ]
    return fitting[asked["offset"] :][: asked["limit"]]


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_every_question_is_answered_as_a_list_would(tmp_path_factory, steps):
    """Whatever is made, changed and deleted: filters, order and pages are those of the plain list
    of records.
    """
    tasks = Tasks(tmp_path_factory.mktemp("home"))
    registry = tasks.registry()
    for step in steps:
        if isinstance(step, TaskRecord):
            tasks.put(step)
        elif isinstance(step, dict):
            assert registry.select(**step) == _answer(tasks, step)
        elif step == "reopen":
            registry.close()
            registry = tasks.registry()
        elif step < len(tasks.records):
            tasks.drop(sorted(tasks.records)[step])
    assert everything(registry) == tasks.all()
    for record in tasks.all():
        if record.name is not None:
            assert registry.named(record.name) == [r for r in tasks.all() if r.name == record.name]
        for length in (1, 15, 16):
            prefix = record.id[:length]
            assert registry.prefixed(prefix) == [r for r in tasks.all() if r.id.startswith(prefix)]
    registry.close()


@pytest.mark.parametrize(
    "odd", ["..", "/", "a/b", "a\0", "%", "_", "é", "\udc80", "A", "z" * 17, "x" * 2_000_000]
)
def test_what_is_no_prefix_fits_nothing(tasks, odd):
    """No text, however odd or long, is more than a text that no task has."""
    registry = tasks.registry()
    assert registry.prefixed(odd) == registry.named(odd) == []
    assert registry.select(labels={odd: odd}, text=odd, parent=odd, limit=5) == []
    many = {str(number): "x" for number in range(5_000)}
    assert registry.select(labels=many, limit=5) == []
    assert everything(registry) == tasks.all()
    assert tasks.reads == 5
    registry.close()


def test_what_is_too_large_for_a_row_is_found_all_the_same(tasks):
    """A task with a long description, many settings and a time beyond all, is in nobody's way."""
    env = {f"A{number}": "x" * 10_000 for number in range(100)}
    for time in (2**63, 10**300, -(2**63) - 1):
        tasks.put(made(time, name="big", spec=Spec(env=env)))
    tasks.put(made(6, name="wordy", labels={"k": "Ä"}, parent="\udc80"))
    wordy = TaskRecord(id="0" * 16, description="\U0001f600" * 99_990 + "END", labels={"k": "v"})
    tasks.put(wordy)
    registry = tasks.registry()
    assert everything(registry) == tasks.all()
    assert registry.select(labels={"k": "v"}, text="\U0001f600end", limit=5) == [wordy]
    assert [r.created_at for r in registry.named("big")] == [10**300, 2**63, -(2**63) - 1]
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
        tasks.put(made(number, name=f"n{number}"))
    registry = tasks.registry()
    assert len(registry.select(labels={}, limit=100)) == 100
    assert registry.select(labels={}, text="TASK 9999", limit=5) == tasks.all()[:1]
    assert registry.named("n777")[0].created_at == 777
    assert len(registry.select(labels={}, limit=100, offset=9_950)) == 50
    tasks.put(made(10_000))
    assert everything(registry) == tasks.all()[:1000]
    assert tasks.reads == 10_001
    registry.close()


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


@contextlib.contextmanager
def opened(path: Path):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        yield database


def _run(*statements):
    def run(path: Path) -> None:
        with opened(path) as database:
            for statement in statements:
                database.execute(statement)

    return run


def _instead(*statements):
    def run(path: Path) -> None:
        path.unlink()
        _run(*statements, "PRAGMA user_version = 2")(path)

    return run


_ENDLESS = (
    "CREATE VIEW tasks AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n)"
    " SELECT id, '' stamp, x'' made, x'' marks, x'' words, x'' sum, x'' record FROM n"
)


def _signed(path: Path) -> None:
    """Put another record into each row, with right checksums."""
    with opened(path) as database:
        for task, stamp in database.execute("SELECT id, stamp FROM tasks").fetchall():
            head = table.Head(task, stamp, b"\xff" * 16, b"\n", b"forged")
            body = encode_json(made(5, name="forged"))
            database.execute(
                "REPLACE INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*head, head.sum(), head.sum(body) + body),
            )


def _signed_nonsense(path: Path) -> None:
    with opened(path) as database:
        for number, task in enumerate(["x", b"0" * 16, "ä" * 16, "\0" * 16, "y" * 900_000]):
            head = table.Head(task, str(number), b"", None, None)
            database.execute(
                "REPLACE INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?)", (*head, head.sum(), number)
            )


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "no database": lambda path: path.write_bytes(b"x" * 10_000),
    "flipped": _flip,
    "forged rows": _run("UPDATE tasks SET record = '{}', made = 'x'"),
    "swapped rows": _run("UPDATE tasks SET record = (SELECT record FROM tasks LIMIT 1)"),
    "lost rows": _run("DELETE FROM tasks WHERE id > '8'"),
    "rows of nobody": _run("UPDATE tasks SET id = 'zzzz' || substr(id, 5)"),
    "large values": _run("UPDATE tasks SET words = zeroblob(900000)"),
    "not text": _run("UPDATE tasks SET stamp = CAST(x'ff' AS TEXT)"),
    "signed forgery": _signed,
    "signed nonsense": _signed_nonsense,
    "an endless view": _instead(_ENDLESS),
    "a trigger": _run(
        "CREATE TRIGGER t AFTER INSERT ON tasks BEGIN DELETE FROM tasks; END", "DELETE FROM tasks"
    ),
    "a journal of another file": lambda path: Path(f"{path}-journal").write_bytes(
        bytes.fromhex("d9d505f920a163d7") + b"\xff" * 5_000
    ),
    "another schema": _instead("CREATE TABLE tasks (a)"),
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
    # It is a good file again.
    reads = tasks.reads
    assert everything(tasks.registry()) == tasks.all()
    assert tasks.reads == reads


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_under_way_costs_nothing_but_time(tasks, damage):
    """The same while the file is open."""
    registry = tasks.registry()
    everything(registry)
    DAMAGE[damage](tasks.root / "registry.sqlite")
    tasks.put(made(9))
    assert everything(registry) == tasks.all()
    assert everything(tasks.registry()) == tasks.all()
    registry.close()


@pytest.mark.parametrize("seed", range(40))
def test_no_bit_matters(tasks, seed):
    """A wrong bit anywhere is found, or changes no answer."""
    registry = tasks.registry()
    everything(registry)
    registry.close()
    path = tasks.root / "registry.sqlite"
    whole = path.read_bytes()
    chance = random.Random(seed)
    for _ in range(10):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        again = tasks.registry()
        assert everything(again) == tasks.all()
        for name in ("n0", "n1"):
            assert again.named(name) == [r for r in tasks.all() if r.name == name]
        again.close()


@pytest.mark.parametrize("kind", ["directory", "fifo", "link", "nowhere"])
def test_something_else_in_its_place(tasks, tmp_path, kind):
    """What is no file is left as it is, and memory answers."""
    path = tasks.root / "registry.sqlite"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "other").write_bytes(b"untouched")
        path.symlink_to(tmp_path / "other")
    else:
        path.symlink_to(tmp_path / "nowhere")
    registry = tasks.registry()
    assert everything(registry) == everything(registry) == tasks.all()
    assert tasks.reads == 5
    assert not path.is_file() or path.read_bytes() == b"untouched"
    assert not (tmp_path / "nowhere").exists()
    registry.close()


def test_a_file_that_nobody_may_use_is_replaced(tasks):
    """Its owner may have taken the rights away, or another user may have made it."""
    if os.geteuid() == 0:
        pytest.skip("root may use everything")
    everything(tasks.registry())
    (tasks.root / "registry.sqlite").chmod(0)
    assert everything(tasks.registry()) == everything(tasks.registry()) == tasks.all()
    assert tasks.reads == 10


def test_a_home_that_cannot_be_written(tasks):
    """Memory answers, and what a file has already is not read again."""
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tasks.root.chmod(0o500)
    try:
        assert everything(tasks.registry()) == tasks.all()
        tasks.root.chmod(0o700)
        everything(tasks.registry())
        tasks.root.chmod(0o500)
        tasks.reads = 0
        assert everything(tasks.registry()) == tasks.all()
        assert tasks.reads == 0
        tasks.put(made(9))
        assert everything(tasks.registry()) == tasks.all()
    finally:
        tasks.root.chmod(0o700)


def test_a_place_that_is_not_there(tasks):
    """Where no file can be made, memory answers, and each journal is read once."""
    registry = Registry(
        str(tasks.root / "nowhere" / "registry.sqlite"),
        tasks=str(tasks.root / "tasks"),
        journal="journal.jsonl",
        read=tasks.read,
        read_only=False,
    )
    assert everything(registry) == everything(registry) == tasks.all()
    assert tasks.reads == 5
    registry.close()


def test_a_full_disk(tasks):
    """Where the file cannot grow, memory answers."""
    script = """
import resource, sys
from sandboxsdk.home import Home
from sandboxsdk.task import Task
home = Home(sys.argv[1])
made = {Task.create("d" * 3000, home=home).id for _ in range(20)}
resource.setrlimit(resource.RLIMIT_FSIZE, (12288, resource.RLIM_INFINITY))
assert {r.id for r in Task.list(home=home)} == made
assert {r.id for r in Task.list(home=home)} == made
"""
    run_python(script, str(tasks.root / "new"))


def run_python(script, *arguments):
    path = os.pathsep.join([os.getcwd(), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_who_keeps_it_is_waited_for_and_not_forever(tasks, monkeypatch):
    """A process that was stopped in the middle of writing is in nobody's way."""
    monkeypatch.setattr("sandboxsdk.registry.registry._WAIT_SECONDS", 0.05)
    everything(tasks.registry())
    with opened(tasks.root / "registry.sqlite") as database:
        for how in ("IMMEDIATE", "EXCLUSIVE"):
            tasks.put(made(9))
            database.execute(f"BEGIN {how}")
            registry = tasks.registry()
            assert everything(registry) == everything(registry) == tasks.all()
            registry.close()
            database.execute("ROLLBACK")
    assert (tasks.root / "registry.sqlite").exists()


def test_a_file_that_was_removed_is_not_used_any_more(tasks):
    """What one process finds is there for all, also after another one has made the file anew."""
    registry = tasks.registry()
    everything(registry)
    (tasks.root / "registry.sqlite").unlink()
    tasks.put(made(9))
    everything(registry)
    reads = tasks.reads
    assert everything(tasks.registry()) == tasks.all()
    assert tasks.reads == reads
    registry.close()


def test_nothing_old_replaces_something_new(tasks):
    """What is slow to be noted down, and was overtaken by another process, is looked at again."""
    fast, slow = tasks.registry(), tasks.registry()
    everything(fast)
    task = made(9, name="old")
    tasks.put(task)
    gone = tasks.all()[-1]

    def read(directory):
        found = tasks.read(directory)
        if found.name == "old":
            tasks.put(TaskRecord(id=task.id, description="d", name="new", created_at=9))
            tasks.drop(gone.id)
            assert len(fast.named("new")) == 1
        return found

    slow._read = read
    assert everything(slow) == tasks.all()
    with opened(tasks.root / "registry.sqlite") as database:
        rows = dict(database.execute("SELECT id, words FROM tasks"))
    assert rows.keys() == tasks.records.keys()
    assert rows[task.id] == b"new d"
    slow.close()
    fast.close()


def test_trouble_that_is_no_task_s_own_is_told(tasks):
    """A reader that cannot read for want of descriptors is an error, and no task is dropped."""
    registry = tasks.registry()

    def read(directory):
        if tasks.reads == 3:
            raise HostRefused(what="read", path=directory, reason="Too many open files")
        return tasks.read(directory)

    registry._read = read
    with pytest.raises(HostRefused, match="Too many"):
        everything(registry)
    registry._read = tasks.read
    assert everything(registry) == tasks.all()
    registry.close()


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


def test_a_forked_child_waits_for_no_thread_of_its_parent(tasks):
    """A child that was forked while a thread of the parent was asking, may ask."""
    registry = tasks.registry()
    reading, go_on = threading.Event(), threading.Event()

    def read(directory):
        reading.set()
        go_on.wait(60)
        return tasks.read(directory)

    registry._read = read
    thread = threading.Thread(target=everything, args=[registry])
    thread.start()
    reading.wait(60)
    child = os.fork()
    if child == 0:
        registry._read = tasks.read
        os._exit(0 if everything(registry) == tasks.all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    go_on.set()
    thread.join()
    assert everything(registry) == tasks.all()
    registry.close()


def test_threads_at_once(tasks):
    """Several threads ask and change at once, and each sees what it did itself."""
    registry = tasks.registry()
    wrong = []

    def work(number):
        for step in range(20):
            record = made(number, name=f"t{number}-{step}")
            tasks.put(record)
            if registry.named(record.name) != [record]:
                wrong.append(record)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert everything(registry) == tasks.all()
    registry.close()


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
