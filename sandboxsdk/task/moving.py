"""A task as one file: written here, read there."""

from __future__ import annotations

import os

import msgspec

from sandboxsdk import disk, ids
from sandboxsdk.checkpoint import History, read_bundle, write_bundle
from sandboxsdk.codec import to_builtins
from sandboxsdk.errors import Conflict, Corrupt
from sandboxsdk.home import Home
from sandboxsdk.journal import FILE, Journal
from sandboxsdk.model import (
    IMPORTED,
    PLACED,
    Imported,
    Restoring,
    Spec,
    TaskRecord,
    Workspace,
    fold_points,
)

from . import history as records
from .making import bring_into_being


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says of its task beside the journal.

    Attributes:
        now: tree of the files as they were, in hexadecimal.
        uid: who captured them.
    """

    task: str
    now: str
    uid: int


def export_task(history: History, path: str, journal: str) -> None:
    """Write a task, all its checkpoints and its files as they are now into one file.

    Raises:
        UsageError: the path lies in the home.
        FileConflict: it is there already.
        Conflict: a restore was interrupted.
        HostFull, HostRefused, Denied: it cannot be written; nothing is left of it.
    """
    path = history.outside(path)
    with history.alone(), history.store.writing() as writer:
        points = history.points()
        history.check_settled(points)
        present = history.present(writer, points)
        now = present.captured.tree
        uid = present.uid
        with disk.translated("read", journal), open(journal, "rb") as file:
            told = file.read()
        points = history.points()
        write_bundle(
            path,
            store=history.store,
            roots={bytes.fromhex(root) for root in points.roots()} | {now},
            journal=told,
            facts=to_builtins(_Facts(task=history.task, now=now.hex(), uid=uid)),
        )
    present.remember()


def import_task(path: str, home: Home) -> TaskRecord:
    """Bring a task that was exported into a home: with its id, its checkpoints and its files.

    It has its files in the home from then on, and knows no directory to apply to. What would let a
    forged file reach into this machine is not taken over: mounts, image, runtime, network, secrets.

    Raises:
        Conflict: the task is here already.
        Corrupt: the file is truncated, damaged or forged; nothing was imported.
        Unavailable: a newer version wrote it.
        HostFull, HostRefused, Denied: the file cannot be read, or the home not written.
    """
    home.check_writable()
    with home.store.writing() as writer:
        bundle = read_bundle(path, writer)
        facts = _facts_of(bundle.facts, path)
        directory = home.directory(facts.task)
        if os.path.lexists(directory):
            hint = "delete that one first, or import into another home"
            raise Conflict(reason=f"task {facts.task} is in {home.path} already", hint=hint)
        writer.commit()

        def begin(making: str) -> None:
            journal = Journal(f"{making}/{FILE}")
            _write_journal(journal.path, bundle.journal)
            _check_journal(journal, facts, set(bundle.roots), path)
            imported, placed = _entries(journal, facts)
            journal.append(IMPORTED, to_builtins(imported))
            journal.append(PLACED, to_builtins(placed), sync=True)

        bring_into_being(facts.task, home, throwaway=False, begin=begin)
    return records.read(directory)


def _facts_of(told: object, path: str) -> _Facts:
    try:
        facts = msgspec.convert(told, _Facts)
        bytes.fromhex(facts.now)
    except (msgspec.ValidationError, ValueError) as error:
        raise Corrupt(path=path, reason=f"says something else than a task: {error}") from error
    if not ids.is_id(facts.task):
        raise Corrupt(path=path, reason="names a task that cannot be")
    return facts


def _write_journal(path: str, data: bytes) -> None:
    descriptor = disk.create(path)
    try:
        disk.write(descriptor, data, 0)
        disk.sync_data(descriptor)
    finally:
        os.close(descriptor)


def _check_journal(journal: Journal, facts: _Facts, roots: set[bytes], path: str) -> None:
    """Refuse a journal that is not this task's, or needs what the file does not have.

    Raises:
        Corrupt: it is so.
    """
    entries = journal.entries()
    record = records.fold(entries, path=path)
    if record.id != facts.task:
        raise Corrupt(path=path, reason=f"holds the journal of task {record.id}")
    needed = {*fold_points(entries, path=path).roots(), facts.now}
    try:
        missing = {bytes.fromhex(root) for root in needed} - roots
    except ValueError:
        raise Corrupt(path=path, reason="names a tree that cannot be") from None
    if missing:
        raise Corrupt(path=path, reason=f"lacks {len(missing)} of the trees that it needs")


def _entries(journal: Journal, facts: _Facts) -> tuple[Imported, Restoring]:
    entries = journal.entries()
    record = records.fold(entries, path=journal.path)
    points = fold_points(entries, path=journal.path)
    workspace = Workspace(mode="private", kind="copy", exclude=record.workspace.exclude)
    spec = Spec(limits=record.spec.limits, env=record.spec.env)
    source = record.workspace.path or record.target
    imported = Imported(workspace=workspace, spec=spec, source=source)
    placed = Restoring(tree=facts.now, checkpoint=points.head, uid=facts.uid, foreign=True)
    return imported, placed
