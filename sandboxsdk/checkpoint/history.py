"""The checkpoints of one task: its journal's entries about them, put to use."""

from __future__ import annotations

import builtins
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Concatenate, ParamSpec, TypeVar, final

import msgspec

from sandboxsdk import clock, ids
from sandboxsdk.codec import to_builtins
from sandboxsdk.errors import (
    CapabilityError,
    CheckpointNotFound,
    Conflict,
    FileConflict,
    NotFound,
    SandboxError,
    TaskNotFound,
    UsageError,
)
from sandboxsdk.home import Home
from sandboxsdk.journal import FILE, Journal
from sandboxsdk.model import (
    BASE,
    CHECKPOINT,
    DELETED,
    GIVEN_UP,
    RESTORED,
    RESTORING,
    TAGGED,
    Change,
    CheckpointRecord,
    Points,
    RestoreReport,
    Restoring,
    check_description,
    check_labels,
    check_name,
    fold_points,
)
from sandboxsdk.snapshot import (
    Progress,
    Scratch,
    compare_trees,
)
from sandboxsdk.store import Store, Writer
from sandboxsdk.workspace import OpenWorkspace

from .checkpoint import Checkpoint
from .patch import make_patch
from .presence import Present, look
from .recording import beginning_of, find_record, merge_over, record_of
from .restoring import Place, restore_files

Hold = Callable[[], AbstractContextManager[object]]
P = ParamSpec("P")
T = TypeVar("T")


def _alone(method: Callable[Concatenate[History, P], T]) -> Callable[Concatenate[History, P], T]:
    """Let one thread of this process at a time change the history and the files behind it."""

    @functools.wraps(method)
    def alone(self: History, /, *arguments: P.args, **named: P.kwargs) -> T:
        with self.alone():
            return method(self, *arguments, **named)

    return alone


@final
class History:
    """The checkpoints of the task whose journal lies in `directory`.

    Args:
        workspace: gives the files of the task.
        hold: holds the task for a block, for what is called without holding it already.
        family: id that all tasks have in common which were forked from each other.
        relatives: gives the histories of those.
        still: makes all that this process runs on the files stand still for a block.
    """

    def __init__(
        self,
        *,
        home: Home,
        directory: str,
        task: str,
        workspace: Callable[[], OpenWorkspace],
        hold: Hold,
        family: str,
        relatives: Callable[[], Iterable[History]],
        still: Hold = nullcontext,
    ) -> None:
        self._home = home
        self.task: str = task
        self.family: str = family
        self._relatives = relatives
        self._journal = Journal(os.path.join(directory, FILE))
        self._workspace = workspace
        self.hold = hold
        self.still = still

    @property
    def store(self) -> Store:
        return self._home.store

    def alone(self) -> AbstractContextManager[None]:
        """Keep other threads of this process from changing the history during a block."""
        return self._journal.alone()

    def outside(self, directory: str) -> str:
        """Give the absolute path of a directory that does not lie in the home.

        Raises:
            UsageError: it does.
        """
        path = os.path.abspath(directory)
        home = os.path.join(self._home.path, "")
        if os.path.join(os.path.realpath(os.path.dirname(path)), "").startswith(home):
            hint = "name a directory outside of it"
            raise UsageError(what="directory", value=path, reason="lies in the home", hint=hint)
        return path

    def points(self) -> Points:
        """Read what the journal says of checkpoints.

        Raises:
            TaskNotFound: it was deleted.
            Corrupt: its journal is damaged.
        """
        try:
            entries = self._journal.entries()
        except NotFound:
            raise TaskNotFound(wanted=self.task, home=self._home.path) from None
        return fold_points(entries, path=self._journal.path)

    def list(self) -> list[Checkpoint]:
        """Give all checkpoints, newest first."""
        return [self._wrapped(record) for record in reversed(self.points().records.values())]

    def find(self, wanted: Checkpoint | str, points: Points | None = None) -> Checkpoint:
        """Give the checkpoint with this id, else tag, else the newest with this name, else the only
        one whose id begins so.

        Raises:
            CheckpointNotFound: there is none.
            AmbiguousId: several ids begin so.
            UsageError: it is a checkpoint of a task that was not forked from the same one, or no
                checkpoint at all.
        """
        if isinstance(wanted, Checkpoint):
            if wanted.task != self.task:
                return self._related(wanted)
            wanted = wanted.id
        try:
            return self._wrapped(find_record(points or self.points(), wanted, self.task))
        except CheckpointNotFound:
            # Of the family only by the whole id: names and tags are each task's own.
            if ids.is_id(wanted):
                for relative in self._relatives():
                    with suppress(SandboxError):
                        if wanted in relative.points().records:
                            return relative.find(wanted)
            raise

    def _related(self, wanted: Checkpoint) -> Checkpoint:
        """Give a checkpoint of another task, if that is of the family and still there."""
        if wanted.history.family != self.family:
            hint = f"this is task {self.task}: see task.checkpoints()"
            reason = f"belongs to task {wanted.task}, and neither was forked from the other"
            raise UsageError(what="checkpoint", value=wanted.id, reason=reason, hint=hint)
        try:
            return wanted.history.find(wanted.id)
        except TaskNotFound:
            # A fork that is gone with its block. Its files are in the store until garbage is
            # collected; without them nothing is touched.
            return wanted

    @_alone
    def begin(self) -> None:
        """Have the files that the workspace begins with, where it must begin with some."""
        workspace = self._workspace()
        if not workspace.begins:
            return
        base = self.points().base
        if base is None:
            with self.store.writing() as writer:
                scan = workspace.capture_beginning(writer, self.store, None)
                assert scan is not None
                writer.commit()
                base = beginning_of(scan.captured)
                self._journal.append(BASE, to_builtins(base), sync=True)
            scan.remember()
        workspace.begin(self.store, bytes.fromhex(base.tree))

    @_alone
    def take(
        self,
        name: str | None = None,
        *,
        description: str = "",
        labels: Mapping[str, str] | None = None,
        still: Callable[[], AbstractContextManager[object]] | None = None,
        busy: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
        roll_back: Callable[[Checkpoint], RestoreReport] | None = None,
    ) -> Checkpoint:
        """Make a checkpoint of the files as they are; on disk when this returns.

        Args:
            still: makes everything stand still for a block, in which the files are read.
            busy: whether programs run, which may have files mapped.

        Raises:
            UsageError: a name, description or label that cannot be.
            Denied: something may not be read; nothing was made.
            HostFull, HostRefused: it cannot be written; nothing was made.
        """
        began = clock.monotonic()
        name = None if name is None else check_name(name, what="name")
        description, labels = check_description(description), check_labels(labels)
        points = self.points()
        with self.store.writing() as writer:
            present = self.present(writer, points, still=still, busy=busy, progress=progress)
            record = record_of(
                self.task,
                present.captured,
                name=name,
                parent=points.head,
                description=description,
                labels=labels,
                added=present.added,
                began=began,
            )
            self.note(CHECKPOINT, record)
        present.remember()
        return Checkpoint(record, self, roll_back=roll_back)

    def note(self, kind: str, about: msgspec.Struct) -> None:
        """Write an entry into the journal; it is on disk when this returns."""
        self._journal.append(kind, to_builtins(about), sync=True)

    def present(
        self,
        writer: Writer,
        points: Points,
        *,
        still: Callable[[], AbstractContextManager[object]] | None = None,
        busy: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
    ) -> Present:
        """Store what the files are now and what they began with, and say of the latter in the
        journal if nothing did. What this gives is in no journal yet, so it is kept only by the
        block of `writer`.

        Raises:
            Denied, HostFull, HostRefused: as `take`.
        """
        present = look(
            self._workspace(),
            self.store,
            writer,
            points,
            still=still or self.still,
            busy=busy,
            progress=progress,
        )
        if present.base_is_new:
            self._journal.append(BASE, to_builtins(present.base))
        return present

    def check_settled(self, points: Points) -> None:
        """Refuse where a crash has left the files between two states.

        Raises:
            Conflict: a restore was interrupted and is not finished.
        """
        if points.restoring is not None and not points.placed:
            raise Conflict(
                reason=f"a restore of task {self.task} was interrupted and is not finished",
                hint="enter it once, `with Sandbox(task) as box: box.diff()`: that finishes it",
            )

    @_alone
    def restore(
        self,
        wanted: Checkpoint | str,
        place: Place,
        *,
        save: Mapping[str, str] | None,
        rollback: bool = False,
        progress: Progress | None = None,
    ) -> RestoreReport:
        """Make the files what a checkpoint holds. Nothing may write to them meanwhile.

        Args:
            save: labels of the checkpoint that keeps the state which is replaced; None keeps none.
            rollback: to a block's own checkpoint, whatever happened since: also if it was deleted
                (the files then count as its parent's), and if what is replaced cannot be kept.

        One that was begun and not ended is given up for this one.

        Raises:
            CheckpointNotFound, UsageError: as `find`.
            Corrupt: something is missing or damaged; nothing was touched.
            HostFull, HostRefused, Denied: it could not be finished; `finish` does, later.
            FileConflict: a path that is excluded stands where a file must go; it was given up.
        """
        began = clock.monotonic()
        points = self.points()
        if rollback and isinstance(wanted, Checkpoint) and wanted.id not in points.records:
            target, reached = wanted, wanted.parent
        else:
            target = self.find(wanted, points)
            reached = target.id
        saved: Checkpoint | None = None
        if save is not None:
            named = f"before restoring {target.name or target.id}"[:200]
            try:
                saved = self.take(named, labels=save, progress=progress)
            except SandboxError:
                if not rollback:
                    raise
        plan = Restoring(
            tree=target.tree,
            checkpoint=reached,
            saved=None if saved is None else saved.id,
            uid=target.record.uid,
            foreign=target.task != self.task,
        )
        return self._restore(plan, place, began, current=saved)

    @_alone
    def finish(self, place: Place, *, only_placed: bool = False) -> RestoreReport | None:
        """Put the files of a fork or an import into their place, or end a restore that a crash or a
        full disk has interrupted; None if there is nothing to do.
        """
        points = self.points()
        plan = points.restoring
        if plan is None or (only_placed and not points.placed):
            return None
        return self._restore(plan, place, clock.monotonic(), current=None)

    def _restore(
        self, plan: Restoring, place: Place, began: float, *, current: Checkpoint | None
    ) -> RestoreReport:

        def begun() -> None:
            if self.points().restoring != plan:
                self.note(RESTORING, plan)

        try:
            done = restore_files(
                self._workspace(),
                self.store,
                plan,
                place,
                current=None if current is None else current.tree,
                begun=begun,
            )
        except FileConflict as error:
            # Trying again would end in the same, and until it does nothing could use the box.
            self._journal.append(GIVEN_UP, {"reason": str(error)}, sync=True)
            kept = (
                "" if plan.saved is None else f"; what was there before is checkpoint {plan.saved}"
            )
            error.hint = f"move it out of the way and restore again{kept}"
            raise
        self._journal.append(RESTORED, {"checkpoint": plan.checkpoint}, sync=True)
        return RestoreReport(
            checkpoint=plan.checkpoint,
            saved=plan.saved,
            written=done.written,
            removed=done.removed,
            touched=done.touched,
            skipped=done.skipped,
            seconds=clock.monotonic() - began,
        )

    def diff(self, a: Checkpoint | str | None, b: Checkpoint | str | None) -> builtins.list[Change]:
        """Tell what changed from a (None: the beginning) to b (None: now).

        Raises:
            CheckpointNotFound, UsageError: as `find`.
            CapabilityError: nobody knows the beginning.
            Conflict: "now" is asked for in the middle of a restore.
        """
        points = self.points()
        if b is None:
            self.check_settled(points)
        if a is None and b is None and not points.placed:
            told = self._workspace().diff()
            if told is not None:
                return told
        scratch = Scratch(self.store)
        return compare_trees(scratch, *self._ends(points, scratch, a, b))

    def patch(self, a: Checkpoint | str | None, b: Checkpoint | str | None) -> str:
        """Give what changed from a to b as a patch for git; raises as `diff`, and LimitExceeded if
        it does not fit into memory.
        """
        points = self.points()
        if b is not None:
            scratch = Scratch(self.store)
            return make_patch(scratch, *self._ends(points, scratch, a, b))
        if a is None and points.base is None and not self.knows_beginning:
            self._beginning_of(points)
        # The contents of what is there now are read from the store too: they go there first.
        with self.alone(), self.store.writing() as writer:
            self.check_settled(points)
            present = self.present(writer, points)
            old = present.base.tree if a is None else self.find(a, points).tree
            made = make_patch(self.store, bytes.fromhex(old), present.captured.tree)
        present.remember()
        return made

    def _ends(
        self,
        points: Points,
        scratch: Scratch,
        a: Checkpoint | str | None,
        b: Checkpoint | str | None,
    ) -> tuple[bytes, bytes]:
        """Give the trees of two points."""
        old = self._beginning_of(points) if a is None else self.find(a, points).tree
        if b is not None:
            new = self.find(b, points).tree
        elif points.placed and points.restoring is not None:
            new = points.restoring.tree
        else:
            merge = None if points.base is None else merge_over(scratch, points.base)
            with self.still():
                scan = self._workspace().capture(scratch, self.store, merge, None)
            new = scan.captured.tree.hex()
        return bytes.fromhex(old), bytes.fromhex(new)

    @_alone
    def tag(self, checkpoint: Checkpoint, name: str) -> None:
        """Let a tag name a checkpoint, and no other one."""
        self._home.check_writable()
        tag = check_name(name, what="tag")
        found = self.find(checkpoint)
        self._journal.append(TAGGED, {"tag": tag, "checkpoint": found.id}, sync=True)

    @_alone
    def delete(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint out of the history."""
        self._home.check_writable()
        found = self.find(checkpoint)
        self._journal.append(DELETED, {"id": found.id}, sync=True)

    def _wrapped(self, record: CheckpointRecord) -> Checkpoint:
        return Checkpoint(record, self)

    @property
    def knows_beginning(self) -> bool:
        """Whether it can be found out what the workspace began with, if nothing says it."""
        workspace = self._workspace()
        return workspace.begins or workspace.layered

    def _beginning_of(self, points: Points) -> str:
        if points.base is None:
            hint = "make a checkpoint first: box.checkpoint()"
            reason = "nothing was kept of what it began with"
            raise CapabilityError(wanted="diff from the beginning", reason=reason, hint=hint)
        return points.base.tree
