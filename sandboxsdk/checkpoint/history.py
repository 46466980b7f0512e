"""The checkpoints of one task: its journal's entries about them, put to use."""

from __future__ import annotations

import builtins
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from sandboxsdk.journal import FILE, Entry, Journal
from sandboxsdk.model import (
    BASE,
    CHECKPOINT,
    DELETED,
    GIVEN_UP,
    PLACED,
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
    BASES,
    EXCLUDED_MAX,
    Progress,
    Scratch,
    Totals,
    Trees,
    compare_trees,
)
from sandboxsdk.store import Store, Writer
from sandboxsdk.workspace import Excluded, Mounted, OpenWorkspace

from .bottom import Bottom, bottom_of, totals_between
from .checkpoint import Checkpoint
from .patch import make_patch
from .presence import Present, look
from .recording import beginning_of, find_record, merge_over, record_of
from .restoring import Place, restore_files

Hold = Callable[[], AbstractContextManager[object]]
Still = Callable[[], AbstractContextManager[Sequence[Mounted] | None]]
P = ParamSpec("P")
T = TypeVar("T")


def _points(before: Points | None, entries: Sequence[Entry], path: str) -> Points:
    return fold_points(entries, path=path, before=before)


def _is_kept(checkpoint: Checkpoint) -> bool:
    """Tell whether garbage collection keeps all that a checkpoint needs."""
    try:
        return checkpoint.id in checkpoint.history.points().records
    except TaskNotFound:
        return False


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
        still: makes all that this process runs on the files stand still for a block, and gives it.
        boxes: gives it as it goes on.
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
        still: Still = nullcontext,
        boxes: Callable[[], Sequence[Mounted]] = tuple,
    ) -> None:
        self._home = home
        self.task: str = task
        self.family: str = family
        self._relatives = relatives
        self._journal = Journal(os.path.join(directory, FILE))
        self._workspace = workspace
        self.hold = hold
        self.still = still
        self._boxes = boxes

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
            return self._journal.folded(_points).copied()
        except NotFound:
            raise TaskNotFound(wanted=self.task, home=self._home.path) from None

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
    def begin(self, *, stacks: bool = True) -> None:
        """Make the files ready to be mounted; `finish` puts into place what is not there then.

        Args:
            stacks: what mounts them can lay them over several layers.
        """
        workspace = self._workspace()
        if workspace.layered:
            self._find_layers(workspace, stacks=stacks)
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

    def _find_layers(self, workspace: OpenWorkspace, *, stacks: bool) -> None:
        """Do without layers that are lost, and lay files that are not in place yet over layers that
        show them.
        """
        points = self.points()
        standing = workspace.standing(self.store, stacks=stacks)
        if standing != "ready":
            if points.restoring is None:
                self._place_again(points, lost=standing == "lost")
                points = self.points()
            workspace.forget_layers()
        plan, base = points.restoring, points.base
        if stacks and plan is not None and base is not None and workspace.is_untouched():
            tree = bytes.fromhex(plan.tree)
            # What is not found or does not work now, `finish` does.
            with suppress(SandboxError):
                bottom = bottom_of(workspace, self.store, points, base)
                trees = Trees(self.store, BASES)
                totals = totals_between(trees, bottom.tree, bottom.totals, tree)
                self._lay(workspace, tree, totals, bottom)

    def _lay(self, workspace: OpenWorkspace, tree: bytes, totals: Totals, bottom: Bottom) -> None:
        """Lay files that were never there over layers that show them; of a fork, which has nothing
        that is excluded, over the directory alone if there are none.
        """
        hide = self.family != self.task and 0 < len(bottom.excluded) <= EXCLUDED_MAX
        excluded = Excluded((), bottom.excluded, hide) if hide else Excluded()
        lay = functools.partial(
            workspace.switch,
            bottom=bottom.tree,
            store=self.store,
            boxes=(),
            begun=lambda: None,
            excluded=excluded,
        )
        if not lay(tree, totals) and hide:
            lay(bottom.tree, bottom.totals)

    def _mended(self, points: Points) -> Points:
        """Have the last known files put into place where a power cut left what does not fit."""
        workspace = self._workspace()
        if not workspace.layered or self._boxes() or self.store.read_only:
            return points
        if workspace.standing(self.store) == "torn":
            if points.restoring is None:
                self._place_again(points, lost=False)
                points = self.points()
            workspace.forget_layers()
        return points

    def _place_again(self, points: Points, *, lost: bool) -> None:
        """Write down what the files are, because they have to be put into place again."""
        foreign = points.head is not None and points.head not in points.records
        with self.store.writing() as writer:
            if lost:
                present = self.present(writer, points)
                tree, uid = present.captured.tree.hex(), present.uid
            elif points.settled is not None:
                tree, uid = points.settled.tree, points.settled.uid
            elif points.head in points.records:
                record = points.records[points.head]
                tree, uid = record.tree, record.uid
            elif points.base is not None:
                tree, uid = points.base.tree, os.geteuid()
            else:
                return
            plan = Restoring(tree=tree, checkpoint=points.head, uid=uid, foreign=foreign)
            self.note(PLACED, plan)

    @_alone
    def take(
        self,
        name: str | None = None,
        *,
        description: str = "",
        labels: Mapping[str, str] | None = None,
        progress: Progress | None = None,
        roll_back: Callable[[Checkpoint], RestoreReport] | None = None,
    ) -> Checkpoint:
        """Make a checkpoint of the files as they are; on disk when this returns.

        Raises:
            UsageError: a name, description or label that cannot be.
            Denied: something may not be read; nothing was made.
            HostFull, HostRefused: it cannot be written; nothing was made.
        """
        made, present = self._taken(name, description, labels, progress=progress)
        present.remember()
        return Checkpoint(made, self, roll_back=roll_back)

    def _taken(
        self,
        name: str | None,
        description: str = "",
        labels: Mapping[str, str] | None = None,
        *,
        progress: Progress | None,
        freeze: bool = True,
    ) -> tuple[CheckpointRecord, Present]:
        """Make a checkpoint; the caller has it remembered. Raises as `take`.

        Args:
            freeze: as `present`.
        """
        began = clock.monotonic()
        name = None if name is None else check_name(name, what="name")
        description, labels = check_description(description), check_labels(labels)
        points = self.points()
        made: builtins.list[CheckpointRecord] = []

        def noted(present: Present) -> None:
            record = record_of(
                self.task,
                present.captured,
                name=name,
                parent=points.head,
                description=description,
                labels=labels,
                added=present.added,
                began=began,
                paused=present.paused,
            )
            self.note(CHECKPOINT, record)
            made.append(record)

        with self.store.writing() as writer:
            present = self.present(writer, points, progress=progress, noted=noted, freeze=freeze)
        return made[0], present

    def note(self, kind: str, about: msgspec.Struct) -> None:
        """Write an entry into the journal; it is on disk when this returns."""
        self._journal.append(kind, to_builtins(about), sync=True)

    def present(
        self,
        writer: Writer,
        points: Points,
        *,
        progress: Progress | None = None,
        noted: Callable[[Present], object] = lambda _: None,
        freeze: bool = True,
    ) -> Present:
        """Store what the files are now and what they began with, and say of the latter in the
        journal if nothing did. What this gives is in no journal yet, so it is kept only by the
        block of `writer`.

        Args:
            noted: called when all of it is on disk.
            freeze: where nothing runs, what a view holds becomes a layer.

        Raises:
            Denied, HostFull, HostRefused: as `take`.
        """
        points = self._mended(points)

        def settled(present: Present) -> None:
            if present.base_is_new:
                self._journal.append(BASE, to_builtins(present.base))
            noted(present)

        return look(
            self._workspace(),
            self.store,
            writer,
            points,
            still=self.still,
            boxes=self._boxes,
            progress=progress,
            noted=settled,
            freeze=freeze,
        )

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
        saved: str | None = None
        left: Present | None = None
        if save is not None:
            named = f"before restoring {target.name or target.id}"[:200]
            try:
                # What is left becomes a layer when it is exchanged for others.
                made, left = self._taken(named, labels=save, progress=progress, freeze=False)
                saved = made.id
            except SandboxError:
                if not rollback:
                    raise
        plan = Restoring(
            tree=target.tree,
            checkpoint=reached,
            saved=saved,
            uid=target.record.uid,
            foreign=target.task != self.task,
        )
        kept = _is_kept(target)
        stats = target.stats
        totals = Totals(stats.files, stats.bytes)
        try:
            return self._restore(plan, place, began, left=left, totals=totals, kept=kept)
        finally:
            if left is not None:
                left.remember()

    @_alone
    def finish(self, place: Place, *, only_placed: bool = False) -> RestoreReport | None:
        """Put the files of a fork or an import into their place, or end a restore that a crash or a
        full disk has interrupted; None if there is nothing to do.
        """
        points = self.points()
        plan = points.restoring
        if plan is None or (only_placed and not points.placed):
            return None
        return self._restore(plan, place, clock.monotonic())

    def _restore(
        self,
        plan: Restoring,
        place: Place,
        began: float,
        *,
        left: Present | None = None,
        totals: Totals | None = None,
        kept: bool = True,
    ) -> RestoreReport:
        workspace = self._workspace()
        # A private view is not on disk before its next checkpoint, whatever the journal says.
        sync = not workspace.layered

        def begun() -> None:
            if self.points().restoring != plan:
                self._journal.append(RESTORING, to_builtins(plan), sync=sync)

        try:
            # What is looked at and stored for it is in no journal yet.
            with self.store.writing():
                done = restore_files(
                    workspace,
                    self.store,
                    plan,
                    place,
                    points=self.points(),
                    left=left,
                    totals=totals,
                    kept=kept,
                    begun=begun,
                )
        except FileConflict as error:
            # Trying again would end in the same, and until it does nothing could use the box.
            self._journal.append(GIVEN_UP, {"reason": str(error)}, sync=True)
            told = (
                "" if plan.saved is None else f"; what was there before is checkpoint {plan.saved}"
            )
            error.hint = f"move it out of the way and restore again{told}"
            raise
        self._journal.append(RESTORED, {"checkpoint": plan.checkpoint}, sync=sync)
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
        try:
            points = self.points()
        except TaskNotFound:
            if not (isinstance(a, Checkpoint) and isinstance(b, Checkpoint)):
                raise
            # Of a fork that is gone with its block.
            ends = bytes.fromhex(a.tree), bytes.fromhex(b.tree)
            return compare_trees(Scratch(self.store), *ends)
        if b is None:
            points = self._mended(points)
            self.check_settled(points)
        if a is None and b is None and not points.placed:
            told = self._workspace().diff()
            if told is not None:
                return told
        scratch = Scratch(self.store)
        ends = self._ends(points, scratch, a, b)
        # What the files are now was just read; what they were is read from the store where both
        # are checkpoints.
        return compare_trees(Trees(scratch, BASES if b is None else None), *ends)

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
