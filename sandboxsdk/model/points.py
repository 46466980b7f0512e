"""Checkpoints as they are stored and told: records in a task's journal, and what they add up to.

Pure: the fold takes entries by their kind and data, wherever they were read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec

from sandboxsdk.codec import to_struct
from sandboxsdk.errors import Corrupt


class CheckpointStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint holds and what it cost.

    Attributes:
        files: regular files in it.
        bytes: of their contents, holes included.
        new_bytes: added to the store, compressed.
        seconds: from the call to the moment when it was safe on disk.
        paused: seconds for which running programs stood still; 0 if none ran.
    """

    files: int = 0
    bytes: int = 0
    new_bytes: int = 0
    seconds: float = 0.0
    paused: float = 0.0


class CheckpointRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A named snapshot in the history of a task.

    Attributes:
        parent: id of the checkpoint that the files came from; None is the beginning.
        tree: digest of the root directory, in hexadecimal.
        created_at: UTC nanoseconds.
        uid: who captured it; root's captures know owners.
        skipped: paths that are named and cannot be stored: sockets, devices.
        changed: files that changed each time they were read; what is stored is one reading.
    """

    id: str
    task: str
    tree: str
    name: str | None = None
    parent: str | None = None
    created_at: int = 0
    description: str = ""
    labels: dict[str, str] = {}
    stats: CheckpointStats = CheckpointStats()
    uid: int = 0
    skipped: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


class MovedSince(msgspec.Struct, frozen=True, kw_only=True):
    """What is younger in a directory than a moment.

    Attributes:
        entries: files, links and FIFOs.
        directories: with their inode and whether their list of names is younger too.
        more: there are more than are told.
    """

    entries: tuple[str, ...] = ()
    directories: tuple[tuple[str, int, bool], ...] = ()
    more: bool = False


class Beginning(msgspec.Struct, frozen=True, kw_only=True):
    """What a workspace began with.

    Attributes:
        tree: digest of the root directory, in hexadecimal.
        files, bytes: regular files in it, and bytes of their contents.
        moved: what the user changed after the task was made and before this was captured.
        bottom: of a fork, what the directory had by then, as far as the task that it was made of
            had changed it; empty is the same tree.
        excluded: topmost paths in it that checkpoints leave out; of very many only some.
    """

    tree: str
    files: int = 0
    bytes: int = 0
    moved: MovedSince = MovedSince()
    bottom: str = ""
    excluded: tuple[str, ...] = ()


class Restoring(msgspec.Struct, frozen=True, kw_only=True):
    """A restore that has begun: what the files shall be, and where what they were is kept.

    Attributes:
        checkpoint: whose files are wanted; None is the task's beginning.
        tree: digest of the root directory wanted, in hexadecimal.
        saved: checkpoint of the state that is replaced, if it was kept.
        uid: who captured the tree; root's captures know owners.
        foreign: the checkpoint belongs to another task of the family.
    """

    tree: str
    checkpoint: str | None = None
    saved: str | None = None
    uid: int = 0
    foreign: bool = False


class Applying(msgspec.Struct, frozen=True, kw_only=True):
    """An application of a task's changes to a directory. All trees in hexadecimal.

    Attributes:
        to: absolute path of the directory.
        before: what it held, as far as undoing goes.
        after: what it holds when all is done.
        known: what it is known to hold of the task's beginning and its changes before.
        expected: the same, when all is done.
        saved: id of the checkpoint that keeps what was replaced.
    """

    id: str
    to: str
    before: str
    after: str
    known: str
    expected: str
    saved: str


class Fact(Protocol):
    """An entry of a journal, as far as the fold looks at it."""

    @property
    def kind(self) -> str: ...

    @property
    def data(self) -> Mapping[str, Any]: ...


class Points:
    """The checkpoints of one task, as its journal tells them.

    Attributes:
        records: those that were not deleted, by id, oldest first.
        tags: id of a checkpoint by its tag.
        head: id of the checkpoint that the files come from; None is the beginning.
        base: what the workspace began with; None while nobody needed it.
        restoring: a restore that was begun and not ended.
        placed: it is no restore: a fork or an import begins with these files, and they are put into
            their place when it is first used.
        settled: what the files were made by the last restore, fork or import that has ended, if no
            checkpoint was made since.
        applying: applications that were begun and not ended, by the directory that they were to.
        applied: the last application that ended, by the directory that it was to.
    """

    def __init__(self) -> None:
        self.records: dict[str, CheckpointRecord] = {}
        self.tags: dict[str, str] = {}
        self.head: str | None = None
        self.base: Beginning | None = None
        self.restoring: Restoring | None = None
        self.placed: bool = False
        self.settled: Restoring | None = None
        self.applying: dict[str, Applying] = {}
        self.applied: dict[str, Applying] = {}

    def copied(self) -> Points:
        """Give the same, to be added to."""
        made = copy.copy(self)
        for name in ("records", "tags", "applying", "applied"):
            setattr(made, name, dict(getattr(self, name)))
        return made

    def roots(self) -> set[str]:
        """Give the digests of all trees that must be kept."""
        kept = {record.tree for record in self.records.values()}
        if self.base is not None:
            kept.update(tree for tree in (self.base.tree, self.base.bottom) if tree)
        kept.update(one.tree for one in (self.restoring, self.settled) if one is not None)
        for one in (*self.applied.values(), *self.applying.values()):
            kept.update((one.before, one.after, one.known, one.expected))
        return kept


CHECKPOINT = "checkpoint"
DELETED = "checkpoint-deleted"
TAGGED = "tagged"
BASE = "base"
RESTORING = "restoring"
RESTORED = "restored"
GIVEN_UP = "restore-given-up"
PLACED = "placed"
KEPT = "kept"
APPLYING = "applying"
APPLIED = "applied"
IMPORTED = "imported"


def fold_points(entries: Iterable[Fact], *, path: str, before: Points | None = None) -> Points:
    """Give what these entries say of checkpoints; entries of other kinds are passed over. (pure)

    Args:
        before: what the entries before them say.

    Raises:
        Corrupt: an entry does not have the shape of its kind.
    """
    points = Points() if before is None else before.copied()
    for entry in entries:
        if entry.kind == CHECKPOINT:
            record = to_struct(entry.data, CheckpointRecord, path=path)
            points.records[record.id] = record
            points.head, points.settled = record.id, None
        elif entry.kind == DELETED:
            _delete(points, str(entry.data.get("id")))
        elif entry.kind == TAGGED:
            _tag(points, entry.data, path=path)
        elif entry.kind == BASE:
            points.base = to_struct(entry.data, Beginning, path=path)
        elif entry.kind == RESTORING:
            points.restoring = to_struct(entry.data, Restoring, path=path)
            points.placed = False
        elif entry.kind == PLACED:
            points.restoring = to_struct(entry.data, Restoring, path=path)
            points.placed, points.head = True, points.restoring.checkpoint
        elif entry.kind == RESTORED and points.restoring is not None:
            wanted, foreign = points.restoring.checkpoint, points.restoring.foreign
            points.head = wanted if foreign or wanted in points.records else None
            points.settled, points.restoring, points.placed = points.restoring, None, False
        elif entry.kind == GIVEN_UP:
            points.restoring, points.placed = None, False
        elif entry.kind == IMPORTED:
            # What was applied to directories of another machine says nothing of this one's.
            points.applied, points.applying = {}, {}
        elif entry.kind == KEPT:
            record = to_struct(entry.data, CheckpointRecord, path=path)
            points.records[record.id] = record
        elif entry.kind == APPLYING:
            begun = to_struct(entry.data, Applying, path=path)
            points.applying[begun.to] = begun
        elif entry.kind == APPLIED:
            ended = to_struct(entry.data, Applying, path=path)
            points.applying.pop(ended.to, None)
            points.applied[ended.to] = ended
    return points


def _tag(points: Points, data: Mapping[str, Any], *, path: str) -> None:
    tag, checkpoint = data.get("tag"), data.get("checkpoint")
    if not isinstance(tag, str) or not isinstance(checkpoint, str):
        raise Corrupt(path=path, reason="has a tag of another shape")
    if checkpoint in points.records:
        points.tags[tag] = checkpoint


def _delete(points: Points, gone: str) -> None:
    """Take a checkpoint out of the history; its children become its parent's."""
    record = points.records.pop(gone, None)
    if record is None:
        return
    for child in [r for r in points.records.values() if r.parent == gone]:
        points.records[child.id] = msgspec.structs.replace(child, parent=record.parent)
    points.tags = {tag: target for tag, target in points.tags.items() if target != gone}
    if points.head == gone:
        points.head = record.parent
