"""A task's changes applied to a directory of the user, and taken back.

Decided by a merge of three trees: what the directory is known to have had, what the task has now,
and what the directory has now. The merge gives the tree that the directory gets, or conflicts, and
then nothing is written. It also says what the directory is known to have afterwards, which is where
the next application begins: so one that was interrupted is ended by doing it once more.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from sandboxsdk import clock, ids
from sandboxsdk.errors import ApplyConflict, CapabilityError, Conflict
from sandboxsdk.model import (
    APPLIED,
    APPLYING,
    KEPT,
    Applying,
    ApplyReport,
    Beginning,
    CheckpointRecord,
    Points,
    is_allowed,
    is_held,
)
from sandboxsdk.snapshot import (
    DIRECTORY,
    Captured,
    Merged,
    Restored,
    compare_trees,
    merge_trees,
    read_directory,
    restore_in_place,
)
from sandboxsdk.store import Store, Writer
from sandboxsdk.workspace import Target

from .history import History
from .recording import record_of

_REPOSITORY = {b"HEAD", b"objects", b"refs"}
Moves = Callable[[bytes, bool], bool]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What an application is asked for.

    Attributes:
        force: override conflicts.
        allow: paths that are let through though they run code on the host, each as its names.
    """

    force: bool = False
    allow: tuple[tuple[str, ...], ...] = ()


def apply(
    history: History, target: Target, asked: Asked, moved: Callable[[Beginning], Moves]
) -> ApplyReport:
    """Bring what a task changed into a directory: all of it, or nothing if there is a conflict.

    Raises:
        ApplyConflict: the directory has something else by now at paths that the task changed.
        CapabilityError: nobody knows what the task began with.
        Conflict: files changed while they were read, or a restore was interrupted.
        WorkspaceInvalid, Denied, HostFull, HostRefused: the directory cannot be read or written;
            what was done is ended by the next call.
    """
    began = clock.monotonic()
    with history.alone(), history.store.writing() as writer:
        points = history.points()
        if points.base is None and not history.knows_beginning:
            hint = "make a checkpoint before the changes: box.checkpoint()"
            reason = "nothing was kept of what the task began with"
            raise CapabilityError(wanted="apply", reason=reason, hint=hint)
        history.check_settled(points)
        present = history.present(writer, points)
        _check_steady(present.captured, "the task")
        there = target.capture(writer, history.store, None)
        _check_steady(there.captured, target.path)
        base, now = bytes.fromhex(present.base.tree), present.captured.tree
        known, before = _known(writer, points, target.path, base, there.captured.tree)
        if known != base:
            writer.commit()  # They are compared in the store.
        settled = _paths(history.store, base, known)
        moves = moved(present.base)
        merged = merge_trees(
            writer,
            base=known,
            new=now,
            there=there.captured.tree,
            moved=lambda path, there: path not in settled and moves(path, there),
            held=_holding(writer, now, asked.allow),
            force=asked.force,
            now=clock.now_ns(),
            owned=os.geteuid() == 0,
        )
        run = _Run(history, target, writer, began)
        report = run.carry_out(merged, there.captured, known, before, force=asked.force)
    present.remember()
    there.remember()
    return report


def undo(history: History, target: Target, application: str) -> ApplyReport:
    """Take the last application to a directory back.

    Raises:
        ApplyConflict: paths that it changed were changed since.
        Conflict: it is not the last one that was applied there.
    """
    began = clock.monotonic()
    with history.alone(), history.store.writing() as writer:
        points = history.points()
        last = points.applied.get(target.path)
        if last is None or last.id != application or target.path in points.applying:
            kept = last.saved if last is not None else None
            raise Conflict(
                reason=f"something else was applied to {target.path} since",
                hint=f"undo that first; checkpoint {kept} holds what it replaced",
            )
        there = target.capture(writer, history.store, None)
        _check_steady(there.captured, target.path)
        merged = merge_trees(
            writer,
            base=bytes.fromhex(last.after),
            new=bytes.fromhex(last.before),
            there=there.captured.tree,
            owned=os.geteuid() == 0,
        )
        # What is known of the directory is what was known before.
        merged = msgspec.structs.replace(merged, expected=bytes.fromhex(last.known))
        run = _Run(history, target, writer, began)
        known = bytes.fromhex(last.expected)
        report = run.carry_out(merged, there.captured, known, there.captured.tree, force=False)
    there.remember()
    return report


class _Run:
    """One application, from the merge on."""

    def __init__(self, history: History, target: Target, writer: Writer, began: float) -> None:
        self._history, self._target, self._writer = history, target, writer
        self._began = began

    def carry_out(
        self, merged: Merged, there: Captured, known: bytes, before: bytes, *, force: bool
    ) -> ApplyReport:
        """Do what a merge says; what it replaces is a checkpoint before the first file is touched.

        Args:
            known: tree that the directory was known to have.
            before: tree that undoing leads to.
        """
        history, target, writer = self._history, self._target, self._writer
        if merged.conflicts and not force:
            raise ApplyConflict(to=target.path, paths=list(merged.conflicts))
        added = writer.commit()
        changes = compare_trees(history.store, there.tree, merged.tree)
        begun = Applying(
            id=ids.new_id(),
            to=target.path,
            before=before.hex(),
            after=merged.tree.hex(),
            known=known.hex(),
            expected=merged.expected.hex(),
            saved="",
        )
        done = Restored()
        if merged.tree != there.tree:
            kept = self._kept(there, begun.id, added)
            begun = msgspec.structs.replace(begun, saved=kept.id)
            with target.writing() as root:
                done = restore_in_place(
                    history.store,
                    root,
                    current=there.tree,
                    target=merged.tree,
                    owners=(lambda uid, gid: (uid, gid)) if os.geteuid() == 0 else None,
                    spare=target.exclude or (lambda _path, _is_directory: False),
                    shown=f"{target.path}/",
                    begun=lambda: self._begin(begun, kept),
                    guarded=True,
                )
            history.note(APPLIED, begun)
        elif merged.expected != known:
            history.note(APPLYING, begun)
            history.note(APPLIED, begun)
        return ApplyReport(
            id=begun.id,
            to=target.path,
            changes=tuple(changes),
            held=merged.held,
            overridden=merged.conflicts,
            skipped=done.skipped,
            saved=begun.saved or None,
            seconds=clock.monotonic() - self._began,
        )

    def _begin(self, begun: Applying, kept: CheckpointRecord) -> None:
        self._history.note(KEPT, kept)
        self._history.note(APPLYING, begun)

    def _kept(self, there: Captured, application: str, added: int) -> CheckpointRecord:
        """Make the record of what the directory has."""
        return record_of(
            self._history.task,
            there,
            name="before apply",
            parent=None,
            description=f"what {self._target.path} held",
            labels={"before-apply": application},
            added=added,
            began=self._began,
        )


def _known(
    writer: Writer, points: Points, to: str, base: bytes, there: bytes
) -> tuple[bytes, bytes]:
    """Give the tree that a directory is known to have had, and the tree that undoing leads to.

    Of an application that was interrupted, what was done counts, as far as the directory shows it.
    """
    last = points.applied.get(to)
    known = base if last is None else bytes.fromhex(last.expected)
    begun = points.applying.get(to)
    if begun is None:
        return known, there
    done = merge_trees(
        writer,
        base=known,
        new=bytes.fromhex(begun.expected),
        there=there,
        moved=lambda _path, _present: True,
    )
    undone = merge_trees(
        writer,
        base=bytes.fromhex(begun.after),
        new=bytes.fromhex(begun.before),
        there=there,
        owned=os.geteuid() == 0,
    )
    return done.expected, undone.tree


def _paths(store: Store, base: bytes, known: bytes) -> set[bytes]:
    """Give the paths at which we put something into the directory ourselves."""
    if base == known:
        return set()
    return {os.fsencode(change.path) for change in compare_trees(store, base, known)}


def _holding(
    writer: Writer, tree: bytes, allow: tuple[tuple[str, ...], ...]
) -> Callable[[bytes, bool], bool]:
    """Say which changes of a tree are held back."""

    def holds(path: bytes, is_directory: bool) -> bool:  # noqa: FBT001 - as it is called
        names = tuple(os.fsdecode(path).split("/"))
        in_repository = names[-1].casefold() in ("config", "config.worktree", "hooks", "commondir")
        if in_repository:
            in_repository = _is_repository(writer, tree, path.split(b"/")[:-1])
        return is_held(
            names, is_directory=is_directory, in_repository=in_repository
        ) and not is_allowed(names, allow)

    return holds


def _is_repository(writer: Writer, tree: bytes, names: list[bytes]) -> bool:
    """Tell whether a directory of a tree looks like a bare git repository."""
    nodes = read_directory(writer, tree).nodes
    for name in names:
        found = next((node for node in nodes if node.name == name), None)
        if found is None or found.kind != DIRECTORY:
            return False
        nodes = read_directory(writer, found.content).nodes
    return {node.name for node in nodes} >= _REPOSITORY


def _check_steady(captured: Captured, where: str) -> None:
    """Refuse to go on with what is neither the old nor the new.

    Raises:
        Conflict: files changed each time they were read.
    """
    if captured.changed:
        shown = ", ".join(captured.changed[:10])
        raise Conflict(
            reason=f"files of {where} changed while they were read: {shown}",
            hint="end what writes to them, then apply again; nothing was written",
        )
