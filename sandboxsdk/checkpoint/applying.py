"""A task's changes applied to a directory of the user, and taken back.

Decided by a merge of three trees: what the directory is known to have had, what the task has now,
and what the directory has now. The merge gives the tree that the directory gets, or conflicts, and
then nothing is written. It also says what the directory is known to have afterwards, which is where
the next application begins. One that was interrupted is taken for never begun, and so is ended by
doing it once more.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import final

import msgspec

from sandboxsdk import clock, ids
from sandboxsdk.errors import ApplyConflict, CapabilityError, Conflict, FileConflict
from sandboxsdk.model import (
    APPLIED,
    APPLYING,
    KEPT,
    Applying,
    ApplyReport,
    Beginning,
    CheckpointRecord,
    is_allowed,
    is_held,
)
from sandboxsdk.snapshot import (
    DIRECTORY,
    FILE,
    Captured,
    Merged,
    Node,
    Restored,
    compare_trees,
    merge_trees,
    read_directory,
    restore_in_place,
    write_directory,
)
from sandboxsdk.store import BLOB, OBJECT_BYTES_MAX, Store, Writer
from sandboxsdk.workspace import Target

from .git_index import staged
from .history import History
from .recording import record_of

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
    history: History,
    target: Target,
    asked: Asked,
    moved: Callable[[Beginning, Callable[[bytes], bool]], Moves],
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
        last = points.applied.get(target.path)
        known = base if last is None else bytes.fromhex(last.expected)
        now = _with_root_of(writer, now, known)
        begun = points.applying.get(target.path)
        before = _before(writer, begun, there.captured.tree)
        settled = _paths(history.store, base, known)
        trees = [_Listings(writer, tree) for tree in (known, now, before)]
        moves = moved(present.base, trees[0].has_directory)
        merged = merge_trees(
            writer,
            base=known,
            new=now,
            there=before,
            moved=lambda path, there: path not in settled and moves(path, there),
            held=_holding(trees, asked.allow),
            alike=functools.partial(_are_alike, writer),
            force=asked.force,
            now=clock.now_ns(),
            owned=os.geteuid() == 0,
        )
        run = _Run(history, target, writer, began, unfinished=begun is not None)
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
        if last is None or last.id != application:
            kept = last.saved if last is not None else None
            raise Conflict(
                reason=f"something else was applied to {target.path} since, or taken back",
                hint=f"undo the last one first; checkpoint {kept} holds what it replaced",
            )
        there = target.capture(writer, history.store, None)
        _check_steady(there.captured, target.path)
        begun = points.applying.get(target.path)
        before = _before(writer, begun, there.captured.tree)
        merged = merge_trees(
            writer,
            base=bytes.fromhex(last.after),
            new=bytes.fromhex(last.before),
            there=before,
            alike=functools.partial(_are_alike, writer),
        )
        # What is known of the directory is what was known before.
        merged = msgspec.structs.replace(merged, expected=bytes.fromhex(last.known))
        run = _Run(history, target, writer, began, unfinished=begun is not None)
        known = bytes.fromhex(last.expected)
        report = run.carry_out(merged, there.captured, known, before, force=False)
    there.remember()
    return report


class _Run:
    """One application, from the merge on.

    Args:
        unfinished: another one was begun there and did not end.
    """

    def __init__(
        self, history: History, target: Target, writer: Writer, began: float, *, unfinished: bool
    ) -> None:
        self._history, self._target, self._writer = history, target, writer
        self._began, self._unfinished = began, unfinished

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
        changes = compare_trees(history.store, before, merged.tree)
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
        if merged.tree != before or merged.tree != there.tree:
            # Of one that was interrupted, what there was before it began.
            kept = self._kept(msgspec.structs.replace(there, tree=before), begun.id, added)
            begun = msgspec.structs.replace(begun, saved=kept.id)
            with target.writing() as root, _telling(target.path):
                done = restore_in_place(
                    history.store,
                    root,
                    current=there.tree,
                    target=merged.tree,
                    owners=(lambda uid, gid: (uid, gid)) if os.geteuid() == 0 else None,
                    spare=target.exclude,
                    shown=f"{target.path}/",
                    begun=lambda: self._begin(begun, kept),
                    guarded=True,
                )
            history.note(APPLIED, begun)
        elif merged.expected != known or self._unfinished:
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
            paused=0.0,
        )


def _before(writer: Writer, begun: Applying | None, there: bytes) -> bytes:
    """Give the tree that a directory had, or would have if an application that was interrupted had
    never begun: what others changed since is in it.
    """
    if begun is None:
        return there
    undone = merge_trees(
        writer,
        base=bytes.fromhex(begun.after),
        new=bytes.fromhex(begun.before),
        there=there,
        alike=functools.partial(_are_alike, writer),
        remnants=True,
    )
    return undone.tree


def _with_root_of(writer: Writer, tree: bytes, other: bytes) -> bytes:
    """Give a tree whose root has the mode of another one's: the directory itself is the user's, and
    a view's root is made like it was when the view was.
    """
    root, wanted = read_directory(writer, tree), read_directory(writer, other)
    if (root.mode, root.attributes) == (wanted.mode, wanted.attributes):
        return tree
    changed = msgspec.structs.replace(root, mode=wanted.mode, attributes=wanted.attributes)
    return write_directory(writer, changed)


def _paths(store: Store, base: bytes, known: bytes) -> set[bytes]:
    """Give the paths at which we put something into the directory ourselves."""
    if base == known:
        return set()
    return {os.fsencode(change.path) for change in compare_trees(store, base, known)}


@final
class _Listings:
    """What the directories of a tree list; each is read once."""

    def __init__(self, writer: Writer, root: bytes) -> None:
        self._writer = writer
        self._known: dict[tuple[str, ...], dict[str, Node]] = {(): self._read(root)}

    def names(self, path: tuple[str, ...]) -> Collection[str]:
        """Give the names in a directory; none, if there is no such directory."""
        start = len(path)
        while path[:start] not in self._known:
            start -= 1
        for end in range(start + 1, len(path) + 1):
            node = self._known[path[: end - 1]].get(path[end - 1])
            inside = node is not None and node.kind == DIRECTORY
            self._known[path[:end]] = self._read(node.content) if node and inside else {}
        return self._known[path]

    def has_directory(self, path: bytes) -> bool:
        """Say whether there is a directory at a path."""
        names = tuple(os.fsdecode(path).split("/"))
        self.names(names[:-1])
        node = self._known[names[:-1]].get(names[-1])
        return node is not None and node.kind == DIRECTORY

    def _read(self, digest: bytes) -> dict[str, Node]:
        nodes = read_directory(self._writer, digest).nodes
        return {os.fsdecode(node.name): node for node in nodes}


def _holding(
    trees: list[_Listings], allow: tuple[tuple[str, ...], ...]
) -> Callable[[bytes, bool], bool]:
    """Say which changes are held back: told by what a directory has, had or will have."""

    def holds(path: bytes, is_directory: bool) -> bool:  # noqa: FBT001 - as it is called
        names = tuple(os.fsdecode(path).split("/"))

        def beside() -> set[str]:
            return {name for tree in trees for name in tree.names(names[:-1])}

        held = is_held(names, is_directory=is_directory, beside=beside)
        return held and not is_allowed(names, allow)

    return holds


def _are_alike(writer: Writer, path: bytes, one: Node, two: Node) -> bool:
    """Say whether two files differ only in what git notes down by itself: any look at a repository
    renews what its index says of times and inodes.
    """
    if not path.endswith(b".git/index") or not (one.kind == two.kind == FILE):
        return False
    if max(one.size, two.size) > OBJECT_BYTES_MAX or not (one.size and two.size):
        return False
    first = staged(writer.read(BLOB, one.content))
    return first is not None and first == staged(writer.read(BLOB, two.content))


@contextmanager
def _telling(to: str) -> Iterator[None]:
    """Tell of what was found to be in the way before anything was written as of any conflict."""
    try:
        yield
    except FileConflict as error:
        place = error.fields.get("place")
        if place is None:
            raise
        hint = "move what is excluded out of that directory, then apply again; nothing was written"
        raise ApplyConflict(to=to, paths=[place], hint=hint) from error


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
