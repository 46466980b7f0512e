"""User and agent work at the same time, in any order: nothing of the user's is lost in silence."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from sandboxsdk import Home, Task, Workspace
from sandboxsdk.checkpoint import Place
from sandboxsdk.errors import ApplyConflict

PATHS = ["a", "b", "d/a", "d/b", "d/e/a", "n/x", "n/y/z"]
# What the directory has when the task is made.
BASE = {"a", "b", "d/a", "d/b", "d/e/a"}
FOLDERS = ["d", "d/e", "n"]
HOWS = ["write", "replace", "remove", "mode", "link", "directory", "touch"]
Seen = dict[str, tuple[int, int, bytes]]


def seen(root: Path) -> Seen:
    """Tell everything below a directory."""
    found: Seen = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            about = os.lstat(path)
            content = b""
            if stat.S_ISLNK(about.st_mode):
                content = os.fsencode(os.readlink(path))
            elif stat.S_ISREG(about.st_mode):
                content = Path(path).read_bytes()
            shown = os.path.relpath(path, root)
            found[shown] = (stat.S_IFMT(about.st_mode), stat.S_IMODE(about.st_mode), content)
    return found


def clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def edit(root: Path, path: str, how: str, token: str) -> None:
    """Change one path, whatever is there, as far as its parents are directories."""
    target = root / path
    above = target.parent
    while above != root:
        if os.path.lexists(above) and (above.is_symlink() or not above.is_dir()):
            return
        above = above.parent
    if how in ("remove", "mode", "touch") and not os.path.lexists(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if how == "write":
        if target.is_dir() or target.is_symlink():
            return
        target.write_text(token)
    elif how == "replace":
        if target.is_dir():
            return
        fresh = target.parent / f"fresh{token}"
        fresh.write_text(token)
        fresh.rename(target)
    elif how == "remove":
        clear(target)
    elif how == "mode":
        if not target.is_symlink():
            target.chmod(0o700 if target.stat().st_mode & 0o77 else 0o755)
    elif how == "touch":
        os.utime(target, follow_symlinks=False)
    elif how == "link":
        clear(target)
        target.symlink_to(token)
    elif how == "directory":
        clear(target)
        target.mkdir()
        (target / "inner").write_text(token)


class GivingBack(RuleBasedStateMachine):
    """One directory, a task on it and its forks, whose files are edited as a box would."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="giving-"))
        self.work = self.root / "work"
        (self.work / "d" / "e").mkdir(parents=True)
        for path in BASE:
            (self.work / path).write_text(f"base {path}\n")
        self.home = Home(self.root / "home")
        workspace = Workspace.private(self.work, kind="copy")
        self.tasks = [Task.create("t", workspace=workspace, home=self.home)]
        self.tokens = itertools.count()
        # What the user wrote, and which files the user took away, since the task was made.
        self.written: set[bytes] = set()
        self.removed: set[str] = set()
        self.applied: set[str] = set()
        self.base: set[str] = set(BASE)

    def teardown(self) -> None:
        if hasattr(self, "root"):
            shutil.rmtree(self.root)

    # --- The user ---------------------------------------------------------------------------------

    @rule(path=st.sampled_from(PATHS), how=st.sampled_from(HOWS))
    def user_edits(self, path, how) -> None:
        self._by_user(lambda token: edit(self.work, path, how, token))

    @rule(folder=st.sampled_from(FOLDERS))
    def user_removes_a_directory(self, folder) -> None:
        self._by_user(lambda _token: clear(self.work / folder))

    @rule(folder=st.sampled_from(FOLDERS), path=st.sampled_from(PATHS))
    def user_moves_one_directory_over_another(self, folder, path) -> None:
        def move(token: str) -> None:
            source, target = self.work / folder, self.work / f"{path}moved"
            if source.is_dir() and target.parent.is_dir() and folder not in path:
                aside = self.root / f"aside{token}"
                source.rename(aside)
                (aside / "moved").write_text(token)
                clear(target)
                aside.rename(target)

        self._by_user(move)

    def _by_user(self, act) -> None:
        token = f"user {next(self.tokens)}"
        before = seen(self.work)
        act(token)
        after = seen(self.work)
        for path, now in after.items():
            if before.get(path) != now:
                self.written.add(now[2])
                self.removed.discard(path)
        self.removed |= (before.keys() - after.keys()) & self.base

    # --- The agent --------------------------------------------------------------------------------

    @rule(path=st.sampled_from(PATHS), how=st.sampled_from(HOWS), which=st.integers(0, 9))
    def agent_edits(self, path, how, which) -> None:
        task = self.tasks[which % len(self.tasks)]
        edit(self._files(task), path, how, f"agent {next(self.tokens)}")

    @rule(folder=st.sampled_from(FOLDERS), which=st.integers(0, 9))
    def agent_removes_a_directory(self, folder, which) -> None:
        clear(self._files(self.tasks[which % len(self.tasks)]) / folder)

    def _files(self, task: Task) -> Path:
        """Give the files of a task, as its box would have them."""
        with task.attach():
            history = task.checkpoint_history()
            history.begin()
            history.finish(Place(mounted=-1))
        return Path(task.directory) / "files"

    @rule(which=st.integers(0, 9))
    def checkpoint(self, which) -> None:
        task = self.tasks[which % len(self.tasks)]
        files = self._files(task)
        with task.attach():
            made = task.checkpoint_history().take("c")
        listed = {f.path for f in made.files()}
        assert listed == seen(files).keys()

    @rule(which=st.integers(0, 9), number=st.integers(0, 9), of=st.integers(0, 9))
    def restore(self, which, number, of) -> None:
        task, other = (self.tasks[n % len(self.tasks)] for n in (which, of))
        kept = other.checkpoints()
        if kept:
            self._files(task)
            with task.attach():
                wanted = kept[number % len(kept)]
                task.checkpoint_history().restore(wanted, Place(mounted=-1), save={})
            assert not task.diff(wanted)

    @precondition(lambda self: len(self.tasks) < 4)
    @rule(which=st.integers(0, 9))
    def fork(self, which) -> None:
        task = self.tasks[which % len(self.tasks)]
        (made,) = task.fork()
        assert made.diff() == task.diff()
        self.tasks.append(made)

    # --- Giving back ------------------------------------------------------------------------------

    @rule(which=st.integers(0, 9), force=st.booleans(), back=st.booleans())
    def apply(self, which, force, back) -> None:
        task = self.tasks[which % len(self.tasks)]
        files = self._files(task)
        before = seen(self.work)
        try:
            report = task.apply(force=force)
        except ApplyConflict:
            assert not force
            assert seen(self.work) == before
            return
        after, inside = seen(self.work), seen(files)
        lost = {path: was for path, was in before.items() if after.get(path) != was}
        if not report.overridden:
            for path, (kind, _, content) in lost.items():
                gone = content not in {now[2] for now in after.values()}
                assert not (kind == stat.S_IFREG and gone and content in self.written), path
            assert not {path for path in after if path not in before} & self.removed
        # What the task had applied before, the user may have changed since: that stays.
        told = report.changes if task.id in self.applied else task.diff()
        self.applied.add(task.id)
        for change in told:
            if change.kind in ("added", "modified", "renamed", "type") and change.path in inside:
                assert after[change.path][0] == inside[change.path][0], change
                assert after[change.path][2] == inside[change.path][2], change
        # Where both took a file away, they agree: the agent may make another one.
        self.removed &= inside.keys()
        self.base &= inside.keys()
        # And what the task has of the user's is the task's too: a kept state may be restored.
        self.written -= {now[2] for now in inside.values()}
        if lost:
            kept = task.checkpoint_by(report.saved)
            for path, (kind, _, content) in lost.items():
                if kind == stat.S_IFREG:
                    assert kept.read(path) == content
        if back:
            report.undo()
            assert seen(self.work) == before
        else:
            # What is there now is the agent's and no more the user's.
            for path in after.keys() | before.keys():
                if before.get(path) != after.get(path):
                    self.removed.discard(path)


Test = GivingBack.TestCase
Test.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
Test.pytestmark = [pytest.mark.timeout(1200)]
