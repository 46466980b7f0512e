"""States that a power cut may leave, made from records of what was written: nothing acknowledged is
lost in any of them, and with a sync left out, something is.

`SANDBOXSDK_CRASH_STATES` is the number of states (10,000 if not set), `SANDBOXSDK_CRASH_SEED` where
they begin.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxsdk import Home, Task, Workspace, disk

from .power import Model, Recorder, State
from .stage import NOWHERE, Stage, clear, close, opened, quick_place, write_state

STATES = int(os.environ.get("SANDBOXSDK_CRASH_STATES", "10000"))
SEED = int(os.environ.get("SANDBOXSDK_CRASH_SEED", "20260717"))
_MUTANT_STATES = 1_500


@pytest.fixture
def room(tmp_path) -> Iterator[Path]:
    """Give a directory in memory, or elsewhere if there is none."""
    place = quick_place(tmp_path)
    yield place
    clear(place)


# --- What is recorded -----------------------------------------------------------------------------


class _Life:
    """The tools of a record: a stage, and telling what was acknowledged."""

    def __init__(self, stage: Stage, recorder: Recorder) -> None:
        self.stage, self.recorder = stage, recorder

    def state(self, name: str) -> None:
        """The user writes files, and sees to it that they last."""
        work = self.stage.work
        self.recorder.left_out(work, lambda: write_state(work, name))
        self.recorder.tell("work", name)

    def take(self, home: Home, name: str) -> str:
        task = Task.open(self.stage.task, home=home)
        with task.attach():
            made = task.checkpoint_history().take(name)
        self.recorder.tell("checkpoint", made.id, made.tree)
        return made.id

    def restore(self, home: Home, wanted: str, state: str) -> None:
        task = Task.open(self.stage.task, home=home)
        with task.attach():
            report = task.checkpoint_history().restore(wanted, NOWHERE, save={"kept": "yes"})
        self.recorder.tell("restored", state, report.saved)

    def delete(self, home: Home, wanted: str) -> None:
        Task.open(self.stage.task, home=home).checkpoint_by(wanted).delete()
        self.recorder.tell("gone", wanted)


def _whole_life(life: _Life) -> None:
    """A home from its first moment: two tasks, checkpoints, tags, deleting, collecting."""
    stage, tell = life.stage, life.recorder.tell
    life.state("a")
    with opened(stage.home_path) as home:
        task = Task.create("crash", workspace=Workspace.direct(stage.work), home=home)
        stage.task = task.id
        tell("task", task.id)
        first = life.take(home, "first")
        life.state("b")
        second = life.take(home, "second")
        life.take(home, "unchanged")
        task.checkpoint_by(first).tag("good")
        tell("tag", "good", first)
    # Another process goes on with the pack that is there.
    life.state("c")
    with opened(stage.home_path) as home:
        life.take(home, "third")
        task.checkpoint_by(second).tag("good")
        tell("tag", "good", second)
        life.delete(home, first)
        home.gc()
        tell("collected")
        tell("task", Task.create("another", home=home).id)
        life.state("d")
        life.take(home, "fourth")


def _restores(life: _Life) -> None:
    """Going back and forth in place, with the user at work between."""
    stage = life.stage
    life.recorder.tell("work", stage.work_state)
    with opened(stage.home_path) as home:
        life.restore(home, stage.named["a"], "a")
        life.restore(home, stage.named["b"], "b")
        life.state("d")
        life.take(home, "made")
        life.restore(home, stage.named["a"], "a")


def _collects(life: _Life) -> None:
    """Packs deleted and moved together, beside new checkpoints."""
    stage, tell = life.stage, life.recorder.tell
    tell("work", stage.work_state)
    with opened(stage.home_path) as home:
        home.gc()
        tell("collected")
        life.state("a")
        life.take(home, "made")
        life.delete(home, stage.named["b"])
        home.gc()
        tell("collected")
        life.state("b")
        life.take(home, "made too")


RECORDS: dict[str, tuple[str, Callable[[_Life], None]]] = {
    "life": ("nothing", _whole_life),
    "restores": ("two", _restores),
    "collects": ("sparse", _collects),
}


def _recorded(name: str, tmp_path: Path, room: Path) -> tuple[Stage, Model]:
    kind, record = RECORDS[name]
    stage = Stage(tmp_path, room).build(kind)
    recorder = Recorder(stage.home_path, stage.work)
    with recorder.recording():
        record(_Life(stage, recorder))
    return stage, Model(recorder)


# --- What must hold -------------------------------------------------------------------------------


class Lost(AssertionError):
    """Something acknowledged is not there after a power cut."""


def _check(stage: Stage, state: State, *, thoroughly: bool) -> None:
    """Check that everything acknowledged is there and exact, and that work goes on."""
    home = Home(stage.home_path)
    try:
        known = home.task_ids()
        for task in _facts(state.told, "task"):
            _demand(task[0] in known, f"task {task[0]} is lost")
            _demand(Task.open(task[0], home=home).id == task[0], "it is another task")
        if stage.task in known:
            task = Task.open(stage.task, home=home)
            _check_checkpoints(stage, state, task)
            _check_files(stage, state, task)
        # An index that disagrees is no loss: whoever misses something makes it anew.
        problems = [str(found) for found in home.verify("content").problems if found.lost]
        _demand(not problems, "\n".join(problems))
        if thoroughly:
            _go_on(stage, home)
    finally:
        close(home)


def _check_checkpoints(stage: Stage, state: State, task: Task) -> None:
    listed = {found.id: found for found in task.checkpoints()}
    gone = {made for (made,) in _facts(state.told, "gone")}
    going = {made for (made,) in _facts(state.begun, "gone")}
    wanted = {**stage.before, **dict(_facts(state.told, "checkpoint"))}
    for made, tree in wanted.items():
        if made in gone:
            _demand(made not in listed, f"deleted checkpoint {made} is back")
        elif made not in going:
            _demand(made in listed, f"checkpoint {made} is lost")
            _demand(listed[made].tree == tree, f"checkpoint {made} is another")
    for made, found in {found.tree: (made, found) for made, found in listed.items()}.values():
        _demand(found.tree in stage.trees.values(), f"checkpoint {made} is of no state")
        report = found.verify()
        _demand(report.ok, f"checkpoint {made}: {report}")
    for _, saved in _facts(state.told, "restored"):
        _demand(saved in listed, f"what was replaced ({saved}) is lost")
    tags = dict(_facts(state.told, "tag"))
    if tags == dict(_facts(state.begun, "tag")):
        for tag, made in tags.items():
            _demand(task.checkpoint_by(tag).id == made, f"tag {tag} names another")


def _check_files(stage: Stage, state: State, task: Task) -> None:
    was = _files_of(state.told)
    becomes = _files_of(state.begun)
    with task.attach():
        checkpoints = task.checkpoint_history()
        if checkpoints.points().restoring is not None:
            _demand(len(state.told) < len(state.begun), "a restore that had ended has not")
            checkpoints.finish(NOWHERE)
            found = stage.state_on_disk()
            _demand(found == becomes, f"the files are not {becomes}: {found}")
        else:
            found = stage.state_on_disk()
            _demand(found in (was, becomes), f"the files are not {was} or {becomes}: {found}")


def _files_of(told: list[list[Any]]) -> str:
    names = [facts[1] for facts in told if facts[0] in ("work", "restored")]
    return names[-1] if names else "a"


def _go_on(stage: Stage, home: Home) -> None:
    """A checkpoint after the cut works, and one collection leaves nothing of the cut."""
    if stage.task in home.task_ids():
        task = Task.open(stage.task, home=home)
        now = stage.state_on_disk()
        with task.attach():
            made = task.checkpoint_history().take("after the cut")
        _demand(made.tree == stage.trees[now], "what was captured is not what is there")
    stage.age()
    home.gc()
    for task_id in home.task_ids():
        for found in Task.open(task_id, home=home).checkpoints():
            _demand(found.verify().ok, f"checkpoint {found.id} is lost")
    report = home.verify("content", repair=True)
    _demand(not any(found.lost for found in report.problems), str(report))
    report = home.verify("content")
    _demand(report.ok, str(report))
    _demand(not stage.leftovers(), f"left over: {stage.leftovers()}")


def _facts(told: list[list[Any]], kind: str) -> list[list[Any]]:
    return [facts[1:] for facts in told if facts[0] == kind]


def _demand(holds: object, what: str) -> None:
    if not holds:
        raise Lost(what)


def _search(
    stage: Stage, model: Model, seed: int, states: int, *, thoroughly_each: int = 5
) -> tuple[int, Exception | None]:
    """Check so many different states; gives how many there were, and the first loss."""
    seen: set[int] = set()
    tries = 0
    while len(seen) < states and tries < states * 10:
        tries += 1
        state = model.state(random.Random(f"{seed}-{tries}"))
        key = state.key()
        if key in seen:
            continue
        seen.add(key)
        state.write(stage.home_path, [stage.work])
        try:
            _check(stage, state, thoroughly=len(seen) % thoroughly_each == 0)
        except Exception as error:
            error.add_note(
                f"state {tries} of seed {seed}: cut behind call {state.cut} of"
                f" {len(model.events)}, order of names: {state.mode}, last calls:"
                f" {[event[:1] + event[1][:1] for event in model.events[: state.cut][-4:]]}"
            )
            return len(seen), error
    return len(seen), None


# --- The tests ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RECORDS))
def test_the_model_ends_where_the_disk_did(name, tmp_path, room):
    """When nothing is lost, the model's state is the one that is really there."""
    stage, model = _recorded(name, tmp_path, room)
    before = {where: _tree(where) for where in (stage.home_path, stage.work)}
    model.as_it_ended().write(stage.home_path, [stage.work])
    for where, wanted in before.items():
        assert _tree(where) == wanted


def _tree(where: Path) -> dict[str, Any]:
    found = {}
    for folder, folders, files in os.walk(where):
        for name in (*folders, *files):
            path = Path(folder, name)
            # Written past the recorder: a cache, and a note that decides nothing.
            if name.startswith("index.sqlite") or name in ("lease", "sweep.lock"):
                continue
            data = os.readlink(path) if path.is_symlink() else ""
            found[str(path)] = data or (path.is_file() and path.read_bytes())
    return found


# Record: how many tests share its states, and how many of all states each of them takes.
_SHARES = {"life": (6, 0.12), "restores": (2, 0.09), "collects": (2, 0.05)}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "share"), [(name, n) for name, (shares, _) in _SHARES.items() for n in range(shares)]
)
def test_a_power_cut_loses_nothing(name, share, tmp_path, room):
    """In every state that a power cut may leave, all that was acknowledged is there and exact,
    nothing half-made shows, and work goes on.
    """
    stage, model = _recorded(name, tmp_path, room)
    seed = SEED + share
    states = round(STATES * _SHARES[name][1])
    print(f"seed {seed}: {states} states of a record of {len(model.events)} calls")
    checked, error = _search(stage, model, seed, states)
    if error is not None:
        raise error
    assert checked == states


def _not(call: str, part: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Leave out the syncs of what has this in its path."""

    def install(patch: pytest.MonkeyPatch) -> None:
        original = getattr(disk, call)

        def without(fd: int) -> None:
            if part not in os.readlink(f"/proc/self/fd/{fd}") + "$":
                original(fd)

        patch.setattr(disk, call, without)

    return install


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "call", "part"),
    [
        ("life", "sync_data", ".pack$"),
        ("life", "sync", "/packs$"),
        ("life", "sync_data", "/journal.jsonl$"),
        ("life", "sync", "/tasks$"),
        ("collects", "sync_data", ".pack$"),
        ("restores", "sync_file_system", ""),
        ("restores", "sync_data", "/journal.jsonl$"),
    ],
)
def test_a_missing_sync_is_found(name, call, part, tmp_path, room, monkeypatch):
    """When a sync is left out, some state after a power cut has lost something."""
    _not(call, part)(monkeypatch)
    stage, model = _recorded(name, tmp_path, room)
    checked, error = _search(stage, model, SEED, _MUTANT_STATES, thoroughly_each=1 << 30)
    print(f"without {call} of {part or 'all'}: state {checked}: {error!r}")
    assert error is not None, f"{checked} states without a loss"
