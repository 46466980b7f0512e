"""The checkpoints of one task: its journal's entries about them, put to use."""

from __future__ import annotations

import builtins
import functools
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Concatenate, ParamSpec, TypeVar, final

import msgspec

from sandboxsdk import clock
from sandboxsdk.codec import to_builtins
from sandboxsdk.errors import (
    CapabilityError,
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
    Beginning,
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
    restore_in_place,
)
from sandboxsdk.store import Store, Writer
from sandboxsdk.workspace import OpenWorkspace, Scan

from .checkpoint import Checkpoint, owners_of
from .recording import beginning_of, find_record, merge_over, record_of

_PREFIX_LENGTH_MIN = 4
Hold = Callable[[], AbstractContextManager[object]]
Owners = Callable[[int, int], tuple[int, int]]
P = ParamSpec("P")
T = TypeVar("T")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where files are restored.

    Attributes:
        mounted: descriptor of the workspace as an open box has it.
        owners: gives the ids to set through it so that on disk they are those given; None where
            no owner can be set.
    """

    mounted: int
    owners: Owners | None = None


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
    """

    def __init__(
        self,
        *,
        home: Home,
        directory: str,
        task: str,
        workspace: Callable[[], OpenWorkspace],
        hold: Hold,
    ) -> None:
        self._home = home
        self._task = task
        self._journal = Journal(os.path.join(directory, FILE))
        self._workspace = workspace
        self.hold = hold

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
            raise TaskNotFound(wanted=self._task, home=self._home.path) from None
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
            UsageError: it is a checkpoint of another task, or no checkpoint at all.
        """
        if isinstance(wanted, Checkpoint):
            if wanted.task != self._task:
                hint = f"this is task {self._task}: see task.checkpoints()"
                reason = f"belongs to task {wanted.task}"
                raise UsageError(what="checkpoint", value=wanted.id, reason=reason, hint=hint)
            wanted = wanted.id
        return self._wrapped(find_record(points or self.points(), wanted, self._task))

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
        still: Callable[[], AbstractContextManager[object]] = nullcontext,
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
        workspace = self._workspace()
        scans: builtins.list[Scan] = []
        with self.store.writing() as writer:
            base, is_new = self._base(workspace, points, writer, scans, progress)
            merge = None if base is None else merge_over(writer, base)
            with still():
                scan = workspace.capture(writer, self.store, merge, progress, mapped=busy())
            scans.append(scan)
            added = writer.commit()
            if base is None:
                # What a directory held before its first checkpoint, nobody kept.
                base, is_new = beginning_of(scan.captured), True
            if is_new:
                self._journal.append(BASE, to_builtins(base))
            record = record_of(
                self._task,
                scan.captured,
                name=name,
                parent=points.head,
                description=description,
                labels=labels,
                added=added,
                began=began,
            )
            self._journal.append(CHECKPOINT, to_builtins(record), sync=True)
        for done in scans:
            done.remember()
        return Checkpoint(record, self, roll_back=roll_back)

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
        )
        return self._restore(plan, place, began, current=saved)

    @_alone
    def finish(self, place: Place) -> RestoreReport | None:
        """End a restore that a crash or a full disk has interrupted; None if there is none."""
        plan = self.points().restoring
        if plan is None:
            return None
        return self._restore(plan, place, clock.monotonic(), current=None)

    def _restore(
        self, plan: Restoring, place: Place, began: float, *, current: Checkpoint | None
    ) -> RestoreReport:
        workspace = self._workspace()
        scratch = Scratch(self.store)
        if current is None or workspace.layered:
            present = self._present(workspace, scratch)
        else:
            present = bytes.fromhex(current.tree)
        owners = owners_of(plan.uid)
        if owners is not None and workspace.layered:
            owners = place.owners

        def begun() -> None:
            if self.points().restoring != plan:
                self._journal.append(RESTORING, to_builtins(plan), sync=True)

        try:
            with workspace.restoring(place.mounted) as root:
                done = restore_in_place(
                    scratch,
                    root,
                    current=present,
                    target=bytes.fromhex(plan.tree),
                    owners=owners,
                    spare=workspace.spared,
                    shown="/workspace/",
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
        workspace = self._workspace()
        points = self.points()
        if b is None and points.restoring is not None:
            raise Conflict(
                reason=f"a restore of task {self._task} was interrupted and is not finished",
                hint="enter it once, `with Sandbox(task) as box: box.diff()`: that finishes it",
            )
        if a is None and b is None:
            told = workspace.diff()
            if told is not None:
                return told
        old = self._beginning_of(points) if a is None else self.find(a, points).tree
        if b is not None:
            return compare_trees(self.store, bytes.fromhex(old), bytes.fromhex(self.find(b).tree))
        scratch = Scratch(self.store)
        merge = None if points.base is None else merge_over(scratch, points.base)
        now = workspace.capture(scratch, self.store, merge, None).captured.tree
        return compare_trees(scratch, bytes.fromhex(old), now)

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

    def _base(
        self,
        workspace: OpenWorkspace,
        points: Points,
        writer: Writer,
        scans: builtins.list[Scan],
        progress: Progress | None,
    ) -> tuple[Beginning | None, bool]:
        """Give what the workspace began with, captured now if it is needed for the first time."""
        if points.base is not None:
            return points.base, False
        scan = workspace.capture_beginning(writer, self.store, progress)
        if scan is None:
            return None, False
        scans.append(scan)
        return beginning_of(scan.captured), True

    def _present(self, workspace: OpenWorkspace, scratch: Scratch) -> bytes:
        """Give the tree of what lies there now, the user's own directory looked at anew: a restore
        must find what differs, whoever changed it.
        """
        merge = None
        if workspace.layered:
            base = workspace.capture_beginning(scratch, self.store, None)
            assert base is not None
            merge = merge_over(scratch, beginning_of(base.captured))
        return workspace.capture(scratch, self.store, merge, None, unlock=True).captured.tree

    def _beginning_of(self, points: Points) -> str:
        if points.base is None:
            hint = "make a checkpoint first: box.checkpoint()"
            reason = "nothing was kept of what it began with"
            raise CapabilityError(wanted="diff from the beginning", reason=reason, hint=hint)
        return points.base.tree
