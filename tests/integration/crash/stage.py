"""A small home in a known state, what is done to it, and what must hold after a crash.

Imported by the tests and, without pytest, by the programs that are killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sandboxsdk import Home, Task, Workspace
from sandboxsdk.checkpoint import History, Place
from sandboxsdk.errors import SandboxError

Files = dict[bytes, Any]
Tell = Callable[..., None]
NOWHERE = Place(mounted=-1)
_TIME = 1_700_000_000_000_000_000


def _noise(name: str, length: int) -> bytes:
    """Give bytes that do not compress, the same at each call."""
    return random.Random(name).randbytes(length)


# Bytes are a file, a str a link, None an empty directory, a tuple has content and mode.
STATES: dict[str, Files] = {
    "a": {
        b"same": b"stays as it is\n",
        b"edited": b"first version\n",
        b"gone": b"only in a\n",
        b"large": _noise("a", 30_000),
        b"dir/one": b"1",
        b"dir/deep/two": b"2",
        b"swap": b"a file here, a directory there",
        b"swop/inner": b"a directory here, a file there",
        b"link": "edited",
        b"script": (b"#!/bin/sh\n", 0o755),
        b"\xff\xfename": b"no text",
    },
    "b": {
        b"same": b"stays as it is\n",
        b"edited": b"second version\n",
        b"large": _noise("b", 30_000),
        b"dir/one": b"1",
        b"dir/deep/three": b"3",
        b"swap/inner": b"a file here, a directory there",
        b"swop": b"a directory here, a file there",
        b"link": "same",
        b"script": (b"#!/bin/sh\n", 0o700),
        b"\xff\xfename": b"no text",
        b"empty": None,
        b"new/er/est": b"deep",
    },
    "c": {
        b"same": b"stays as it is\n",
        b"edited": b"third version\n",
        b"dir/one": b"other",
        b"large": _noise("b", 30_000) + b"more",
        b"locked/file": (b"may be read by its owner", 0o400),
    },
    "d": {b"large": _noise("d", 30_000)},
}


def write_state(directory: Path, name: str) -> None:
    """Make a directory hold a state and nothing else, with times that are always the same."""
    clear(directory)
    directory.mkdir(exist_ok=True)
    root = os.fsencode(directory)
    for path, what in STATES[name].items():
        full = os.path.join(root, path)
        os.makedirs(full if what is None else os.path.dirname(full), exist_ok=True)
        data, mode = what if isinstance(what, tuple) else (what, 0o644)
        if isinstance(data, str):
            os.symlink(data, full)
        elif data is not None:
            with open(full, "wb") as file:
                file.write(data)
            os.chmod(full, mode)
    for folder, folders, files in os.walk(root, topdown=False):
        os.chmod(folder, 0o755)
        for entry in (*files, *folders):
            age = int.from_bytes(hashlib.sha256(entry).digest()[:3], "big")
            os.utime(
                os.path.join(folder, entry), ns=(_TIME + age, _TIME + age), follow_symlinks=False
            )
    os.utime(root, ns=(_TIME, _TIME))


def clear(directory: Path) -> None:
    """Remove a directory with all below it, whatever modes a crash left there."""
    if not os.path.lexists(directory):
        return
    if os.geteuid() != 0:
        os.chmod(directory, 0o700)
        for folder, folders, _ in os.walk(directory):
            for name in folders:
                path = os.path.join(folder, name)
                if not os.path.islink(path):
                    os.chmod(path, 0o700)
    shutil.rmtree(directory)


def look(directory: str | Path) -> dict[bytes, tuple[Any, ...]]:
    """Describe what lies on disk below a directory: types, modes, times, contents."""
    root = os.fsencode(directory)
    found: dict[bytes, tuple[Any, ...]] = {b".": _described(root)}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            found[os.path.relpath(path, root)] = _described(path)
    return found


def _described(path: bytes) -> tuple[Any, ...]:
    about = os.lstat(path)
    content: Any = None
    if stat.S_ISREG(about.st_mode):
        with open(path, "rb") as file:
            content = file.read()
    elif stat.S_ISLNK(about.st_mode):
        content = os.readlink(path)
    return about.st_mode, about.st_mtime_ns, content


def quick_place(fallback: Path) -> Path:
    """Give a directory of its own in memory where that is possible: syncs cost nothing there."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**28:
        return Path(tempfile.mkdtemp(prefix="crash-", dir=memory))
    return Path(tempfile.mkdtemp(prefix="crash-", dir=fallback))


class Stage:
    """A home, a directory that its task works on, and what is known of both.

    Everything lies at the same paths each time it is set up anew, so that what is written there
    stays true.

    Args:
        place: where the files of the task lie.
        room: where the home lies, and what is restored elsewhere; in memory if possible.

    Attributes:
        trees: digest of each state's tree, by the state's name.
        before: the checkpoints that are there in the beginning: tree by id.
        work_state: the state that the directory is in.
    """

    def __init__(self, place: Path, room: Path) -> None:
        self.place, self.room = place, room
        self.home_path, self.work, self.out = room / "home", place / "work", room / "out"
        self.task = ""
        self.trees: dict[str, str] = {}
        self.before: dict[str, str] = {}
        self.named: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.work_state = ""
        self.seen: dict[str, dict[bytes, tuple[Any, ...]]] = {}

    def facts(self) -> dict[str, Any]:
        """What a program needs to act on this stage."""
        return {"place": str(self.place), "room": str(self.room), "task": self.task}

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Stage:
        made = cls(Path(facts["place"]), Path(facts["room"]))
        made.task = facts["task"]
        return made

    # --- Setting up -------------------------------------------------------------------------------

    def build(self, kind: str) -> Stage:
        """Make the home in one of its kinds, and keep a copy to begin from again and again."""
        for name in STATES:
            write_state(self.work, name)
            self.seen[name] = look(self.work)
            self.trees[name] = self._tree_of(name)
        getattr(self, f"_build_{kind}")()
        self.save()
        return self

    def save(self) -> None:
        """Keep a copy of what is there now for `reset`."""
        for path in (self.home_path, self.work):
            clear(_saved(path))
            if path.exists():
                _copy(path, _saved(path))

    def _tree_of(self, name: str) -> str:
        """Capture a state in a home that is thrown away."""
        home = Home(self.room / "measure")
        try:
            task = Task.create("m", workspace=Workspace.direct(self.work), home=home)
            with task.attach():
                return task.checkpoint_history().take(name).tree
        finally:
            home.store.close()
            clear(self.room / "measure")

    def _new_task(self, home: Home) -> Task:
        task = Task.create("crash", workspace=Workspace.direct(self.work), home=home, name="crash")
        self.task = task.id
        return task

    def _state(self, name: str) -> None:
        write_state(self.work, name)
        self.work_state = name

    def _take(self, task: Task, name: str) -> str:
        self._state(name)
        with task.attach():
            made = task.checkpoint_history().take(name)
        assert made.tree == self.trees[name]
        self.before[made.id] = made.tree
        self.named[name] = made.id
        return made.id

    def _build_nothing(self) -> None:
        """No home at all."""
        self._state("a")

    def _build_fresh(self) -> None:
        """A task that nobody has worked on; the store was never made."""
        self._new_task(Home(self.home_path))
        self._state("a")

    def _build_one(self) -> None:
        """One checkpoint, and files that differ from it."""
        with opened(self.home_path) as home:
            self._take(self._new_task(home), "a")
        self._state("b")

    def _build_two(self) -> None:
        """Two checkpoints, a tag, and files that differ from both."""
        with opened(self.home_path) as home:
            task = self._new_task(home)
            first = self._take(task, "a")
            self._take(task, "b")
            with task.attach():
                task.checkpoint_by(first).tag("good")
            self.tags["good"] = first
        self._state("c")

    def _build_sparse(self) -> None:
        """Four packs: two are needed, of one little is, and of one nothing."""
        with contextlib.ExitStack() as stack:
            # Each keeps its own pack open, so the next one makes another.
            homes = [stack.enter_context(opened(self.home_path)) for _ in range(4)]
            task = self._new_task(homes[0])
            for home, state in zip(homes, "cabd", strict=True):
                self._take(Task.open(task.id, home=home), state)
            with task.attach():
                for state in "ad":
                    gone = self.named.pop(state)
                    task.checkpoint_by(gone).delete()
                    del self.before[gone]
        assert len(self.packs()) == 4, self.packs()

    def reset(self, *, work: bool = True) -> None:
        """Begin again from the copy; without `work`, the directory is as it was anyway."""
        clear(self.out)
        for path in (self.home_path, self.work) if work else (self.home_path,):
            clear(path)
            if _saved(path).exists():
                _copy(_saved(path), path)

    # --- Looking ----------------------------------------------------------------------------------

    def packs(self) -> list[str]:
        packs = self.home_path / "store" / "packs"
        return sorted(os.listdir(packs)) if packs.is_dir() else []

    def state_on_disk(self) -> str:
        """Name the state that the directory is in, or tell what is odd about it."""
        found = look(self.work)
        for name, seen in self.seen.items():
            if found == seen:
                return name
        differing = {
            path: name
            for name, seen in self.seen.items()
            for path in {*found, *seen}
            if found.get(path) != seen.get(path)
        }
        return f"none of the states: {sorted(found)}, {differing}"

    def leftovers(self) -> list[str]:
        """Give names that no whole home has."""
        found = []
        for folder, folders, files in os.walk(self.home_path):
            for name in (*folders, *files):
                path = os.path.relpath(os.path.join(folder, name), self.home_path)
                if (
                    name.endswith((".new", "-journal", "-wal", "-shm"))
                    or "sandboxsdk-" in name
                    or path.startswith(("trash/", "throwaway/"))
                ):
                    found.append(path)
        allowed = {"format", "lock", "packs", "index.sqlite", "reserve"}
        store = self.home_path / "store"
        if store.is_dir():
            found += [f"store/{name}" for name in os.listdir(store) if name not in allowed]
        return sorted(set(found))

    def age(self) -> None:
        """Make what a crash left half-made look as old as it would be at the next start."""
        for folder, folders, files in os.walk(self.home_path):
            for name in (*folders, *files):
                if name.endswith(".new"):
                    os.utime(os.path.join(folder, name), ns=(_TIME, _TIME))


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Home]:
    """Open a home for a block, and close what it has open."""
    home = Home(path)
    try:
        yield home
    finally:
        close(home)


def close(home: Home) -> None:
    """Close the store of a home if it was used."""
    if home._store is not None:
        home._store.close()
        home._store = None


def history(home: Home, task: str) -> History:
    return Task.open(task, home=home).checkpoint_history()


def _saved(path: Path) -> Path:
    return path.with_name(f"{path.name}.saved")


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


# --- What is done: each tells of what has returned ------------------------------------------------


def do_create(stage: Stage, tell: Tell) -> None:
    """Make a home, if there is none, and a task in it."""
    home = Home(stage.home_path)
    workspace = Workspace.direct(stage.work)
    tell("task", Task.create("made", workspace=workspace, home=home).id)


def do_delete_task(stage: Stage, tell: Tell) -> None:
    """Delete the task."""
    with opened(stage.home_path) as home:
        Task.open(stage.task, home=home).delete()
        tell("task-gone", stage.task)


def do_checkpoint(stage: Stage, tell: Tell) -> None:
    """Make a checkpoint."""
    with opened(stage.home_path) as home:
        task = Task.open(stage.task, home=home)
        with task.attach():
            made = task.checkpoint_history().take("made")
            tell("checkpoint", made.id, made.tree)


def do_checkpoints(stage: Stage, tell: Tell) -> None:
    """Make two checkpoints with one open pack, and have nothing to add for the second."""
    with opened(stage.home_path) as home:
        task = Task.open(stage.task, home=home)
        with task.attach(agent="tester"):
            for name in ("first", "second"):
                made = task.checkpoint_history().take(name, labels={"n": name})
                tell("checkpoint", made.id, made.tree)


def do_restore(stage: Stage, tell: Tell) -> None:
    """Restore the first checkpoint in place, keeping what is replaced."""
    with opened(stage.home_path) as home:
        task = Task.open(stage.task, home=home)
        with task.attach():
            report = task.checkpoint_history().restore("a", NOWHERE, save={"kept": "yes"})
            tell("restored", report.checkpoint, report.saved)


def do_finish(stage: Stage, tell: Tell) -> None:
    """End a restore that was interrupted."""
    with opened(stage.home_path) as home:
        task = Task.open(stage.task, home=home)
        with task.attach():
            if task.checkpoint_history().finish(NOWHERE) is not None:
                tell("finished")


def do_restore_to(stage: Stage, tell: Tell) -> None:
    """Restore a checkpoint into a new directory."""
    with opened(stage.home_path) as home:
        Task.open(stage.task, home=home).checkpoint_by("a").restore_to(stage.out, durable=True)
        tell("restored-to")


def do_tag(stage: Stage, tell: Tell) -> None:
    """Move a tag to another checkpoint, and give a new one."""
    with opened(stage.home_path) as home:
        made = Task.open(stage.task, home=home).checkpoint_by("b")
        for tag in ("good", "other"):
            made.tag(tag)
            tell("tag", tag, made.id)


def do_delete(stage: Stage, tell: Tell) -> None:
    """Delete the first checkpoint."""
    with opened(stage.home_path) as home:
        gone = Task.open(stage.task, home=home).checkpoint_by("a")
        gone.delete()
        tell("gone", gone.id)


def do_gc(stage: Stage, tell: Tell) -> None:
    """Collect garbage."""
    with opened(stage.home_path) as home:
        report = home.gc()
        tell("collected", len(report.deleted), len(report.rewritten))


def do_repair(stage: Stage, tell: Tell) -> None:
    """Lose the index, and make it anew."""
    (stage.home_path / "store" / "index.sqlite").unlink(missing_ok=True)
    with opened(stage.home_path) as home:
        home.verify("content", repair=True)
        tell("repaired")


class Operation:
    """Something to interrupt.

    Attributes:
        kind: of stage that it begins from.
        touches_work: whether it changes the user's directory.
    """

    def __init__(
        self, run: Callable[[Stage, Tell], None], kind: str, *, touches_work: bool = False
    ) -> None:
        self.name = run.__name__.removeprefix("do_")
        self.run, self.kind, self.touches_work = run, kind, touches_work


OPERATIONS = {
    found.name: found
    for found in (
        Operation(do_create, "nothing"),
        Operation(do_delete_task, "two"),
        Operation(do_checkpoint, "fresh"),
        Operation(do_checkpoints, "one"),
        Operation(do_restore, "two", touches_work=True),
        Operation(do_finish, "two", touches_work=True),
        Operation(do_restore_to, "two"),
        Operation(do_tag, "two"),
        Operation(do_delete, "two"),
        Operation(do_gc, "sparse"),
        Operation(do_repair, "two"),
    )
}


# --- What must hold -------------------------------------------------------------------------------


class Told:
    """What was acknowledged: what a call had returned, and what it had begun to do."""

    def __init__(self, operation: str, told: list[list[Any]]) -> None:
        self.operation = operation
        self.all = told

    def of(self, kind: str) -> list[list[Any]]:
        return [facts[1:] for facts in self.all if facts[0] == kind]


def check_task(stage: Stage, told: Told, home: Home) -> None:
    """Everything that was acknowledged is there and exact, and nothing else is."""
    known = home.task_ids()
    for (task,) in told.of("task"):
        assert task in known, f"the new task {task} is lost"
        assert Task.open(task, home=home).status == "pending"
    if not stage.task:
        return
    if told.operation == "delete_task" and stage.task not in known:
        return
    assert not told.of("task-gone"), "the deleted task is back"
    check_checkpoints(stage, told, Task.open(stage.task, home=home))


def check_checkpoints(stage: Stage, told: Told, task: Task) -> None:
    """The checkpoints of a task are those that were acknowledged, each whole and exact."""
    listed = {found.id: found for found in task.checkpoints()}
    wanted = {**stage.before, **dict(told.of("checkpoint"))}
    gone = {made for (made,) in told.of("gone")}
    for made, tree in wanted.items():
        if made in gone:
            assert made not in listed, f"the deleted checkpoint {made} is back"
        elif made in listed:
            assert listed[made].tree == tree
        else:
            may_go = told.operation == "delete" and made == stage.named["a"]
            assert may_go, f"checkpoint {made} is lost"
    trees = set(stage.trees.values())
    for found in listed.values():
        assert found.tree in trees, f"checkpoint {found.id} is of no state that ever was"
        report = found.verify()
        assert report.ok, f"checkpoint {found.id} is damaged: {report}"
    for tag, made in told.of("tag"):
        assert task.checkpoint_by(tag).id == made
    for tag, made in stage.tags.items():
        if made in listed and told.operation != "tag":
            assert task.checkpoint_by(tag).id == made
    for checkpoint, saved in told.of("restored"):
        assert checkpoint == stage.named["a"]
        assert listed[saved].tree == stage.trees[stage.work_state]


def check_work(stage: Stage, told: Told, home: Home) -> None:
    """The user's directory is as it was, or as it should be, or is made so by one call."""
    if told.operation not in ("restore", "finish"):
        return
    task = Task.open(stage.task, home=home)
    with task.attach():
        checkpoints = task.checkpoint_history()
        plan = checkpoints.points().restoring
        if plan is not None:
            assert not told.of("restored")
            assert not told.of("finished")
            if plan.saved is not None:
                saved = task.checkpoint_by(plan.saved)
                assert saved.tree == stage.trees[stage.work_state], "what was replaced is lost"
            checkpoints.finish(NOWHERE)
            assert stage.state_on_disk() == "a"
        else:
            wanted = ("a",) if told.of("restored") else ("a", stage.work_state)
            assert stage.state_on_disk() in wanted
        assert checkpoints.points().restoring is None


def check_out(stage: Stage, told: Told) -> None:
    """A new directory is whole or not there."""
    if told.of("restored-to"):
        assert stage.out.is_dir()
    if stage.out.exists():
        assert look(stage.out) == stage.seen["a"]


def check_next(stage: Stage, told: Told) -> None:
    """The same operation succeeds now, unless it is done already."""
    again = Told(told.operation, [])
    operation = OPERATIONS[told.operation]
    if told.operation == "restore_to":
        clear(stage.out)
    if told.operation == "delete_task" and stage.task not in Home(stage.home_path).task_ids():
        return
    if told.operation == "delete":
        with opened(stage.home_path) as home:
            if stage.named["a"] not in {
                c.id for c in Task.open(stage.task, home=home).checkpoints()
            }:
                return
    operation.run(stage, lambda *facts: again.all.append(list(facts)))
    assert again.all or told.operation == "finish"


def check_tidy(stage: Stage) -> None:
    """One garbage collection later nothing is left of a crash, and the store is whole."""
    stage.age()
    with opened(stage.home_path) as home:
        home.gc()
        report = home.verify("content")
        assert report.ok, str(report)
    assert not stage.leftovers(), stage.leftovers()


def check_all(stage: Stage, told: Told, *, next_too: bool = True) -> float:
    """Check all that must hold after a crash; gives the seconds that opening took."""
    began = time.monotonic()
    home = Home(stage.home_path)
    try:
        for task in home.task_ids():
            Task.open(task, home=home).checkpoints()
        took = time.monotonic() - began
        check_task(stage, told, home)
        report = home.verify("content")
        assert report.ok, str(report)
        check_work(stage, told, home)
    finally:
        close(home)
    check_out(stage, told)
    if next_too:
        check_next(stage, told)
    check_tidy(stage)
    with opened(stage.home_path) as home:
        again = told if not next_too else _after_next(stage, told)
        if again is not None:
            check_task(stage, again, home)
    return took


def _after_next(stage: Stage, told: Told) -> Told | None:
    """What was told, as far as it is still so after the operation was done again."""
    if told.operation in ("delete_task", "delete", "tag"):
        return None
    kept = ("task", "checkpoint")
    return Told(told.operation, [facts for facts in told.all if facts[0] in kept])


def describe_error(error: BaseException) -> str:
    """Say of what kind an error is."""
    kind = "ours" if isinstance(error, SandboxError) else "foreign"
    return f"{kind} {type(error).__name__}: {error}"
