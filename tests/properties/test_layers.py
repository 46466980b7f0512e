"""The same edits in a box on an overlay, in one on a copy and on a dict: all three show the same.

A step is an edit (of one to eight things) or an operation: checkpoints, a restore, a fork, a look
into a checkpoint, the end and the beginning of a box. After each, what is there and what the boxes
say has changed, from the beginning or from a checkpoint, are compared with the dict, of both kinds.

SANDBOXSDK_LAYERS_EXAMPLES sets how many sequences are tried, random ones then, and
SANDBOXSDK_LAYERS_STEPS how many steps each has.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxsdk import Checkpoint, Home, Task, Workspace
from sandboxsdk.host import remove_tree

from .branches import KINDS, Branch, Kept, apart, blurred, on_the_host, unlike
from .driving import Step, drawn, place, shortened, written
from .edits import EDITS, HOLED, furnish
from .naive import DIRECTORY, FIFO, FILE, SYMLINK, Entry, differences, shown

EXAMPLES = int(os.environ.get("SANDBOXSDK_LAYERS_EXAMPLES", "500"))
STEPS = int(os.environ.get("SANDBOXSDK_LAYERS_STEPS", "60"))
# Each is a test of its own, so that several workers share them evenly.
SHARDS = 20
MEMORY = "/dev/shm"
# The same sequences each time, unless somebody asks for a number of them.
SEED = secrets.token_hex(4) if "SANDBOXSDK_LAYERS_EXAMPLES" in os.environ else "the same"
# Where the directory is made, and where the home.
Rooms = tuple[Path, Path]
WORDS = {FILE: "file", DIRECTORY: "directory", SYMLINK: "symlink", FIFO: "fifo"}


class Layers:
    """Boxes on one directory whose files are edited, kept, gone back to and forked.

    Numbers say which one of what there is. What cannot be done now is left.

    Attributes:
        steps: so many were compared.
    """

    def __init__(self, rooms: Rooms) -> None:
        self.work, self.root = (Path(tempfile.mkdtemp(dir=room)) for room in rooms)
        self.branches: list[Branch] = []

    def begin(self, *, with_holes: bool) -> None:
        self.home = Home(self.root / "home")
        files = furnish(with_holes=with_holes)
        found = on_the_host(self.work, files.take_steps())
        assert unlike(found, files.seen()) == {}
        self.beginning = files.copy()
        tasks = {}
        for kind in KINDS:
            workspace = Workspace.private(self.work, kind=kind)
            tasks[kind] = Task.create(kind, workspace=workspace, home=self.home)
        self.branches.append(Branch(tasks, files))
        self.branches[0].enter()
        self.kept: list[Kept] = []
        self.trees: dict[str, str] = {}
        self.edits = [edit for edit in EDITS if with_holes or edit not in HOLED]
        self.series = self.steps = 0
        # A box has the time at which it began on the directory itself.
        files.stamp("")
        self.branches[0].check()

    def end(self) -> None:
        for branch in reversed(self.branches):
            branch.leave()
        for path in (self.work, self.root):
            above = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
            remove_tree(above, os.fsencode(path.name))
            os.close(above)

    def _branch(self, which: int) -> Branch:
        return self.branches[which % len(self.branches)]

    def _kept(self, which: int) -> Kept | None:
        return self.kept[-1 - which % len(self.kept)] if self.kept else None

    def _edit(self, branch: Branch, edits: list[tuple[int, int, int, int]]) -> None:
        for number, a, b, c in edits:
            self.edits[number % len(self.edits)](branch.files, a, b, c)

    def _keep(self, branch: Branch) -> Kept:
        made = {kind: box.checkpoint() for kind, box in branch.boxes.items()}
        kept = Kept(made, branch.files)
        if kept.files.plain():
            # The same files have the same digest: of both kinds, and whenever they are kept.
            told = self.trees.setdefault(json.dumps(kept.files.seen()), made["copy"].tree)
            assert {checkpoint.tree for checkpoint in made.values()} == {told}
        assert {checkpoint.record.skipped for checkpoint in made.values()} == {()}
        self.kept.append(kept)
        return kept

    def _since(self, which: int) -> Kept | None:
        """Give a checkpoint for even numbers, for others the beginning."""
        return None if which % 2 else self._kept(which // 2)

    def _compare(self, branch: Branch, since: Kept | None, *, command: bool = False) -> None:
        """End a step: compare what is there, and what is said to have changed."""
        branch.check(command=command)
        branch.check_changes(since or self.beginning)
        self.steps += 1

    # --- Edits and checkpoints --------------------------------------------------------------------

    def edit(self, which, edits, since, command):
        branch = self._branch(which)
        self._edit(branch, edits)
        self._compare(branch, self._since(since), command=command)

    def edit_and_checkpoint(self, which, edits, since, command):
        self.edit(which=which, edits=edits, since=since, command=command)
        self.checkpoint(which=which, times=1)

    def checkpoint(self, which, times):
        branch = self._branch(which)
        kept = self._keep(branch)
        for _ in range(times - 1):
            again = self._keep(branch)
            for kind, checkpoint in again.made.items():
                assert checkpoint.tree == kept.made[kind].tree, kind
        self._compare(branch, kept if times > 1 else None)

    def many_checkpoints(self, which, count):
        if self.series:
            return
        self.series += 1
        branch = self._branch(which)
        for number in range(count):
            self._edit(branch, [(number, number, which, number % 12)])
            branch.check()
            self._keep(branch)
            self._compare(branch, self._since(number))

    def look_into_checkpoint(self, which, wanted, other):
        kept, also = self._kept(wanted), self._kept(other)
        if kept is None or also is None:
            return
        changed, unclear = differences(kept.files, also.files), blurred(kept.files, also.files)
        entries = {path: e for path, e in kept.files.entries.items() if path}
        facts = {path: _facts(e) for path, e in entries.items()}
        for kind, checkpoint in kept.made.items():
            assert apart(shown(checkpoint.diff(also.made[kind])), changed, unclear) == [], kind
            told = {
                f.path: [f.kind, f.mode, f.size, f.mtime_ns, f.target] for f in checkpoint.files()
            }
            assert unlike(told, facts) == {}, kind
            for path in [path for path, e in entries.items() if e.kind == FILE][wanted % 12 :: 12]:
                assert checkpoint.read(path) == entries[path].content, path
        self._compare(self._branch(which), self._since(other))

    def restore_elsewhere(self, which, wanted):
        kept = self._kept(wanted)
        if kept is None:
            return
        for kind, checkpoint in kept.made.items():
            target = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=self.root))
            assert checkpoint.restore_to(target).skipped == ()
            assert unlike(on_the_host(target, []), kept.files.seen()) == {}, kind
        self._compare(self._branch(which), self._since(wanted))

    # --- Going back -------------------------------------------------------------------------------

    def restore(self, which, wanted, save, edits, command):
        branch, kept = self._branch(which), self._kept(wanted)
        if kept is None:
            return
        before = branch.files.copy()
        saved = self._restore(branch, kept, save=save)
        if saved is not None:
            self.kept.append(Kept(saved, before))
        if wanted % 3:
            self._edit(branch, edits)
        self._compare(branch, kept if wanted % 2 else None, command=command)

    def restore_there_and_back(self, which, first, second, edits):
        """Edits that nobody kept, one state, another one, and the edits again: saved or not."""
        branch, one, two = self._branch(which), self._kept(first), self._kept(second)
        if one is None or two is None:
            return
        self._edit(branch, edits)
        self._compare(branch, one)
        before = branch.files.copy()
        saved = self._restore(branch, one, save=True)
        self._compare(branch, None)
        self._restore(branch, two, save=False)
        self._restore(branch, two, save=False)
        self._compare(branch, one)
        if saved is not None:
            self._restore(branch, Kept(saved, before), save=False)
            self._compare(branch, None)

    def _restore(self, branch: Branch, kept: Kept, *, save: bool) -> dict[str, Checkpoint] | None:
        saved = {}
        for kind, box in branch.boxes.items():
            report = box.restore(kept.made[kind], save_current=save)
            assert report.ok
            assert report.skipped == ()
            assert box.diff(kept.made[kind]) == []
            assert (report.saved is not None) == save
            if report.saved is not None:
                saved[kind] = branch.tasks[kind].checkpoint_by(report.saved)
        branch.files.become(kept.files)
        return saved or None

    # --- Other boxes ------------------------------------------------------------------------------

    def fork(self, which, at, lasting, edits, command):
        if len(self.branches) == 3:
            return
        parent = self._branch(which)
        kept = None if at is None else self._kept(at)
        # A checkpoint is asked for where it was made, or at any other fork of the same family.
        files = (parent.files if kept is None else kept.files).copy()
        made, boxes = {}, {}
        for kind, box in parent.boxes.items():
            wanted = None if kept is None else kept.made[kind]
            if lasting:
                (made[kind],) = parent.tasks[kind].fork(at=wanted)
            else:
                (boxes[kind],) = box.fork(at=wanted)
                made[kind] = boxes[kind].task
        branch = Branch(made, files)
        if lasting:
            branch.enter()
        else:
            branch.boxes = boxes
            parent.forks.append(branch)
        self.branches.append(branch)
        self._compare(branch, None)
        self._edit(branch, edits)
        self._compare(branch, kept, command=command)
        for other in self.branches:
            other.check()

    def leave_and_come_back(self, which, since, command):
        """Files stay as they are, and forks that were not to last are gone."""
        passing = [branch for other in self.branches for branch in other.forks]
        lasting = [branch for branch in self.branches if branch not in passing]
        branch = lasting[which % len(lasting)]
        branch.leave()
        gone = [branch]
        for one in gone:
            gone += one.forks
            one.forks = []
        self.branches = [b for b in self.branches if b is branch or b not in gone]
        branch.enter()
        self._compare(branch, self._since(since), command=command)

    def compare_all(self, since):
        """No branch sees what happened in another one; nothing happens, so it is no step."""
        for branch in self.branches:
            branch.check()
            branch.check_changes(self._since(since) or self.beginning)


def _facts(entry: Entry) -> list[Any]:
    return [WORDS[entry.kind], entry.mode, entry.size or 0, entry.time, entry.target]


# --- What is drawn --------------------------------------------------------------------------------


def number(chance: random.Random) -> int:
    return chance.randrange(12)


def moment(chance: random.Random) -> int:
    """Give the number of a checkpoint, mostly of a late one."""
    return chance.randrange(chance.choice((4, 12, 1000)))


def moment_or_none(chance: random.Random) -> int | None:
    return chance.choice((None, moment(chance)))


def yes(chance: random.Random) -> bool:
    return chance.random() < 0.5


def seldom(chance: random.Random) -> bool:
    # A command costs as much as several steps, and shows the same files.
    return chance.random() < 1 / 16


def some_edits(chance: random.Random) -> list[tuple[int, int, int, int]]:
    return [
        (chance.randrange(len(EDITS)), chance.randrange(61), chance.randrange(61), number(chance))
        for _ in range(chance.randint(1, 8))
    ]


def times(chance: random.Random) -> int:
    return chance.randint(1, 3)


def length(chance: random.Random) -> int:
    # Layers are merged by eights, and forty-four take most of a sequence.
    return chance.choice((4, 4, 4, 4, 4, 4, 12, 12, 44))


_ON = {"which": number, "edits": some_edits, "command": seldom}
_BACK = {"which": number, "first": moment, "second": moment, "edits": some_edits}
# How often, and with what; what makes many files or boxes is rarer.
OPERATIONS = {
    "edit": (2, _ON | {"since": moment}),
    "edit_and_checkpoint": (1, _ON | {"since": moment}),
    "checkpoint": (1, {"which": number, "times": times}),
    "many_checkpoints": (0.7, {"which": number, "count": length}),
    "look_into_checkpoint": (0.7, {"which": number, "wanted": moment, "other": moment}),
    "restore_elsewhere": (0.3, {"which": number, "wanted": moment}),
    "restore": (2, _ON | {"wanted": moment, "save": yes}),
    "restore_there_and_back": (0.5, _BACK),
    "fork": (0.5, _ON | {"at": moment_or_none, "lasting": yes}),
    "leave_and_come_back": (0.5, {"which": number, "since": moment, "command": seldom}),
    "compare_all": (0.5, {"since": moment}),
}


def run(
    rooms: Rooms, steps: Iterable[Step], *, with_holes: bool
) -> tuple[list[Step], Exception | None]:
    """Go on until STEPS were compared; give what was taken, and what the last one raised."""
    layers = Layers(rooms)
    taken: list[Step] = []
    try:
        layers.begin(with_holes=with_holes)
        for name, arguments in steps:
            taken.append((name, arguments))
            getattr(layers, name)(**arguments)
            if layers.steps >= STEPS:
                break
    except Exception as error:
        return taken, error
    finally:
        layers.end()
    return taken, None


def shorter(rooms: Rooms, taken: list[Step], error: Exception, *, with_holes: bool) -> list[Step]:
    """Give a shorter sequence that fails at the same place."""
    failed = place(error)

    def fails(steps: list[Step]) -> bool:
        again = run(rooms, steps, with_holes=with_holes)[1]
        return again is not None and place(again) == failed

    return shortened(taken, fails)


@pytest.fixture
def rooms(shard, tmp_path) -> Iterator[Rooms]:
    """Give a place for the directory and one for the home: for four of five shards in memory, if
    there is such a place. Files are made and removed there at a fraction of the cost, and what is
    copied up goes to another file system than it came from.
    """
    if shard % 5 and _has_attributes(MEMORY):
        with tempfile.TemporaryDirectory(dir=MEMORY) as room:
            yield tmp_path, Path(room)
    else:
        yield tmp_path, tmp_path


def _has_attributes(directory: str) -> bool:
    """Tell whether a user's overlay could lie there: not on the tmpfs of older kernels."""
    try:
        if shutil.disk_usage(directory).free < 1 << 30:
            return False
        with tempfile.TemporaryFile(dir=directory) as file:
            os.setxattr(file.fileno(), "user.overlay.test", b"")
    except OSError:
        return False
    return True


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_overlay_copy_and_dict_agree_after_every_step(shard, rooms):
    """Both boxes hold what the dict says, and say so of what has changed."""
    for sequence in range(shard, EXAMPLES, SHARDS):
        chance = random.Random(f"{SEED} {sequence}")
        with_holes = chance.random() < 0.5
        taken, error = run(rooms, drawn(chance, OPERATIONS), with_holes=with_holes)
        if error is not None:
            calls = written(shorter(rooms, taken, error, with_holes=with_holes))
            raise AssertionError(f"layers.begin(with_holes={with_holes})\n{calls}") from error
