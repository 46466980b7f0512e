"""The same edits in a box on an overlay, in one on a copy and on a dict: all three show the same.

SANDBOXSDK_LAYERS_EXAMPLES sets how many sequences are tried (random ones then), and
SANDBOXSDK_LAYERS_STEPS how long each is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from sandboxsdk import Checkpoint, Home, Sandbox, Task, Workspace
from sandboxsdk.host import remove_tree

from .edits import EDITS, HOLED, furnish
from .naive import (
    COMMAND,
    DIRECTORY,
    FIFO,
    FILE,
    SYMLINK,
    Entry,
    Files,
    Seen,
    Told,
    differences,
    shown,
)

EXAMPLES = os.environ.get("SANDBOXSDK_LAYERS_EXAMPLES")
STEPS = int(os.environ.get("SANDBOXSDK_LAYERS_STEPS", "25"))
ROOT = os.geteuid() == 0
KINDS = ("overlay", "copy")
WORDS = {FILE: "file", DIRECTORY: "directory", SYMLINK: "symlink", FIFO: "fifo"}

numbers = st.integers(0, 11)
edit_lists = st.lists(
    st.tuples(st.integers(0, len(EDITS) - 1), st.integers(0, 60), st.integers(0, 60), numbers),
    min_size=1,
    max_size=8,
)


def on_the_host(directory: Path, steps: str) -> Seen:
    """Take steps in a directory outside of any box, and tell what is there."""
    command = [sys.executable, *COMMAND[1:]]
    done = subprocess.run(
        command, input=steps.encode(), cwd=directory, stdout=subprocess.PIPE, check=True
    )
    found: Seen = json.loads(done.stdout)
    return found


def unlike(got: Seen, wanted: Seen) -> dict[str, Any]:
    """Give what differs, by path: for whoever reads a failing run."""
    paths = got.keys() | wanted.keys()
    return {p: (got.get(p), wanted.get(p)) for p in paths if got.get(p) != wanted.get(p)}


def comparable(old: Files, new: Files) -> bool:
    """Tell whether no file with holes changed: a copy of it may have holes elsewhere, and trees do
    not tell of such a file by its content alone.
    """
    return old.holed() == new.holed()


def apart(got: list[Told], wanted: list[Told]) -> list[tuple[Told | None, Told | None]]:
    """Give the changes that only one side tells."""
    found: list[tuple[Told | None, Told | None]] = [(one, None) for one in got if one not in wanted]
    found += [(None, one) for one in wanted if one not in got]
    return found or [(got[0], wanted[0])] if got != wanted else []


class Kept:
    """A checkpoint of both boxes, and the files at that time."""

    def __init__(self, made: dict[str, Checkpoint], files: Files) -> None:
        self.made, self.files = made, files.copy()


class Branch:
    """A box of each kind with the same files: the one that all began with, or a fork."""

    def __init__(self, tasks: dict[str, Task], files: Files) -> None:
        self.tasks, self.files = tasks, files
        self.boxes: dict[str, Sandbox] = {}
        self.forks: list[Branch] = []
        self._stack = ExitStack()

    def enter(self) -> None:
        for kind, task in self.tasks.items():
            self.boxes[kind] = self._stack.enter_context(Sandbox(task))

    def leave(self) -> None:
        self._stack.close()
        self.boxes = {}

    def check(self) -> None:
        """Take the steps in both boxes, and compare what is there then."""
        steps, wanted = self.files.take_steps(), self.files.seen()
        for kind, box in self.boxes.items():
            done = box.exec(COMMAND, input=steps, check=True)
            assert unlike(json.loads(done.stdout), wanted) == {}, kind

    def check_changes(self, beginning: Files, since: Kept | None) -> None:
        """Compare what both boxes say has changed, from the beginning and from a checkpoint."""
        for kind, box in self.boxes.items():
            if not comparable(beginning, self.files):
                continue
            told = shown(box.diff())
            wanted = differences(beginning, self.files)
            if kind == "overlay" and not ROOT and apart(told, wanted):
                # Before there are layers it is told from the upper itself, which a user reads as
                # far as its modes let him.
                wanted = differences(beginning, self.files, closed=True)
            assert apart(told, wanted) == [], kind
        if since is not None and comparable(since.files, self.files):
            wanted = differences(since.files, self.files)
            for kind, box in self.boxes.items():
                assert apart(shown(box.diff(since.made[kind])), wanted) == [], kind


class Layers(RuleBasedStateMachine):
    """Boxes on one directory whose files are edited, kept, gone back to and forked."""

    @initialize(with_holes=st.booleans())
    def begin(self, with_holes) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="layers-"))
        (self.root / "work").mkdir()
        self.home = Home(self.root / "home")
        files = furnish(with_holes=with_holes)
        found = on_the_host(self.root / "work", files.take_steps())
        assert unlike(found, files.seen()) == {}
        self.beginning = files.copy()
        tasks = {}
        for kind in KINDS:
            workspace = Workspace.private(self.root / "work", kind=kind)
            tasks[kind] = Task.create(kind, workspace=workspace, home=self.home)
        self.main = Branch(tasks, files)
        self.main.enter()
        self.branches = [self.main]
        self.kept: list[Kept] = []
        self.trees: dict[str, str] = {}
        self.edits = [edit for edit in EDITS if with_holes or edit not in HOLED]
        self.series = 0
        # A box has the time at which it began on the directory itself.
        files.stamp("")
        self.main.check()

    def teardown(self) -> None:
        if hasattr(self, "root"):
            for branch in reversed(getattr(self, "branches", [])):
                branch.leave()
            above = os.open(self.root.parent, os.O_PATH | os.O_DIRECTORY)
            remove_tree(above, os.fsencode(self.root.name))
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

    # --- Edits and checkpoints --------------------------------------------------------------------

    @rule(which=numbers, edits=edit_lists, since=numbers)
    def edit(self, which, edits, since) -> None:
        branch = self._branch(which)
        self._edit(branch, edits)
        branch.check()
        branch.check_changes(self.beginning, self._kept(since))

    @rule(which=numbers, edits=edit_lists, since=numbers)
    def edit_and_checkpoint(self, which, edits, since) -> None:
        self.edit(which, edits, since)
        self.checkpoint(which, 1)

    @rule(which=numbers, times=st.integers(1, 3))
    def checkpoint(self, which, times) -> None:
        branch = self._branch(which)
        kept = self._keep(branch)
        for _ in range(times - 1):
            again = self._keep(branch)
            for kind, checkpoint in again.made.items():
                assert checkpoint.tree == kept.made[kind].tree, kind
        branch.check()
        branch.check_changes(self.beginning, kept)

    @precondition(lambda self: not self.series)
    @rule(which=numbers, count=st.sampled_from([4, 12, 44]))
    def many_checkpoints(self, which, count) -> None:
        self.series += 1
        branch = self._branch(which)
        for number in range(count):
            self._edit(branch, [(number, number, which, number % 12)])
            branch.check()
            kept = self._keep(branch)
        branch.check_changes(self.beginning, kept)

    @rule(which=numbers, other=numbers)
    def look_into_checkpoints(self, which, other) -> None:
        kept, also = self._kept(which), self._kept(other)
        if kept is None or also is None:
            return
        wanted = differences(kept.files, also.files)
        entries = {path: e for path, e in kept.files.entries.items() if path}
        facts = {path: _facts(e) for path, e in entries.items()}
        for kind, checkpoint in kept.made.items():
            if comparable(kept.files, also.files):
                assert apart(shown(checkpoint.diff(also.made[kind])), wanted) == [], kind
            told = {
                f.path: (f.kind, f.mode, f.size, f.mtime_ns, f.target) for f in checkpoint.files()
            }
            assert unlike(told, facts) == {}, kind
            for path in [path for path, e in entries.items() if e.kind == FILE][which::12]:
                assert checkpoint.read(path) == entries[path].content, path

    @rule(which=numbers)
    def restore_elsewhere(self, which) -> None:
        kept = self._kept(which)
        if kept is not None:
            for kind, checkpoint in kept.made.items():
                target = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=self.root))
                assert checkpoint.restore_to(target).skipped == ()
                assert unlike(on_the_host(target, "[]"), kept.files.seen()) == {}, kind

    # --- Going back -------------------------------------------------------------------------------

    @rule(which=numbers, wanted=numbers, save=st.booleans(), edits=edit_lists)
    def restore(self, which, wanted, save, edits) -> None:
        branch, kept = self._branch(which), self._kept(wanted)
        if kept is not None:
            before = branch.files.copy()
            saved = self._restore(branch, kept, save=save)
            if saved is not None:
                self.kept.append(Kept(saved, before))
            if wanted % 3:
                self._edit(branch, edits)
            branch.check()
            branch.check_changes(self.beginning, kept)

    @rule(which=numbers, first=numbers, second=numbers, edits=edit_lists)
    def restore_there_and_back(self, which, first, second, edits) -> None:
        """Edits that nobody kept, one state, another one, and the edits again: saved or not."""
        branch, one, two = self._branch(which), self._kept(first), self._kept(second)
        if one is None or two is None:
            return
        self._edit(branch, edits)
        branch.check()
        before = branch.files.copy()
        saved = self._restore(branch, one, save=True)
        branch.check()
        self._restore(branch, two, save=False)
        self._restore(branch, two, save=False)
        branch.check()
        if saved is not None:
            self._restore(branch, Kept(saved, before), save=False)
            branch.check()
        branch.check_changes(self.beginning, two)

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

    @precondition(lambda self: len(self.branches) < 3)
    @rule(which=numbers, at=st.one_of(st.none(), numbers), lasting=st.booleans(), edits=edit_lists)
    def fork(self, which, at, lasting, edits) -> None:
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
        branch.check()
        self._edit(branch, edits)
        branch.check()
        branch.check_changes(self.beginning, kept)
        self._check_all()

    @rule(which=numbers)
    def leave_and_come_back(self, which) -> None:
        """Files stay as they are, and forks that were not to last are gone."""
        branch = self._branch(which)
        if not any(branch in other.forks for other in self.branches):
            branch.leave()
            gone = [branch]
            for one in gone:
                gone += one.forks
                one.forks = []
            self.branches = [b for b in self.branches if b is branch or b not in gone]
            branch.enter()
            branch.check()
            branch.check_changes(self.beginning, self._kept(which))

    @rule()
    def _check_all(self) -> None:
        for branch in self.branches:
            branch.check()


def _facts(entry: Entry) -> tuple[Any, ...]:
    return (WORDS[entry.kind], entry.mode, entry.size or 0, entry.time, entry.target)


Test = Layers.TestCase
Test.settings = settings(
    max_examples=int(EXAMPLES or 12),
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=EXAMPLES is None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
Test.pytestmark = [pytest.mark.timeout(7200)]
