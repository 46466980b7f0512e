"""What a task's journal adds up to. Folding is pure; reading is one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from sandboxsdk.codec import to_builtins, to_struct
from sandboxsdk.errors import Corrupt, NotFound, TaskNotFound
from sandboxsdk.journal import FILE, Entry, Journal
from sandboxsdk.model import (
    GIVEN_UP,
    IMPORTED,
    RESTORED,
    RESTORING,
    SCHEMA_VERSION,
    Imported,
    TaskRecord,
    status_after,
)


def created(record: TaskRecord) -> dict[str, Any]:
    """Give the data of the first entry."""
    return {"record": to_builtins(record)}


def fold(entries: Sequence[Entry], *, path: str) -> TaskRecord:
    """Give the record that these entries add up to. (pure)

    Raises:
        Corrupt: the first entry does not make a task, or a newer version wrote it.
    """
    if not entries or entries[0].kind != "created":
        raise Corrupt(path=path, reason="does not begin with the task's creation")
    stored = entries[0].data.get("record")
    schema = stored.get("schema") if isinstance(stored, dict) else None
    # Before its shape, which a newer version may have changed.
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise Corrupt(
            path=path,
            reason=f"was written by a newer version (schema {schema})",
            hint="upgrade sandboxsdk",
        )
    record = to_struct(stored, TaskRecord, path=path)
    status = record.status
    restoring = False
    for entry in entries[1:]:
        status = status_after(status, entry.kind)
        if entry.kind in (RESTORING, RESTORED, GIVEN_UP):
            restoring = entry.kind == RESTORING
        elif entry.kind == IMPORTED:
            moved = to_struct(entry.data, Imported, path=path)
            record = msgspec.structs.replace(
                record, workspace=moved.workspace, chosen="", spec=moved.spec, target=None
            )
    return msgspec.structs.replace(record, status="restoring" if restoring else status)


def entries(directory: str) -> list[Entry]:
    """Read the journal of the task that lies in `directory`.

    Raises:
        TaskNotFound: no task lies there.
        Corrupt: its journal is damaged.
    """
    try:
        return Journal(os.path.join(directory, FILE)).entries()
    except NotFound:
        home = os.path.dirname(os.path.dirname(directory))
        raise TaskNotFound(wanted=os.path.basename(directory), home=home) from None


def read(directory: str) -> TaskRecord:
    """Read the record of the task that lies in `directory`.

    Raises:
        TaskNotFound: no task lies there.
        Corrupt: its journal is damaged.
    """
    path = os.path.join(directory, FILE)
    record = fold(entries(directory), path=path)
    if record.id != os.path.basename(directory):
        # Two directories with one id would be two tasks with one lease.
        hint = "move the copy out of the home, or give the directory its own name back"
        raise Corrupt(path=path, reason=f"is the journal of task {record.id}", hint=hint)
    return record
