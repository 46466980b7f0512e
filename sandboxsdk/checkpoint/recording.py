"""From captures to records, and from what people write to the record that they mean. (pure)"""

from __future__ import annotations

import os
from typing import Any

from sandboxsdk import clock, ids
from sandboxsdk.errors import AmbiguousId, CheckpointNotFound, UsageError
from sandboxsdk.model import Beginning, CheckpointRecord, CheckpointStats, Points
from sandboxsdk.snapshot import BASES, Captured, Merge, Scratch, Totals
from sandboxsdk.store import Writer

_PREFIX_LENGTH_MIN = 4


def find_record(points: Points, wanted: Any, task: str) -> CheckpointRecord:
    """Give the record with this id, else tag, else the newest with this name, else the only one
    whose id begins so.

    Raises:
        CheckpointNotFound: there is none.
        AmbiguousId: several ids begin so.
        UsageError: it is no text.
    """
    if not isinstance(wanted, str) or not wanted:
        hint = "pass a Checkpoint, or its id, tag or name"
        raise UsageError(what="checkpoint", value=wanted, reason="is none", hint=hint)
    records = points.records
    named = [record.id for record in records.values() if record.name == wanted]
    for found in (wanted, points.tags.get(wanted), *reversed(named)):
        if found in records:
            return records[found]
    matches = [known for known in records if known.startswith(wanted)]
    if len(wanted) < _PREFIX_LENGTH_MIN or not matches:
        raise CheckpointNotFound(wanted=wanted, task=task)
    if len(matches) > 1:
        raise AmbiguousId(wanted=wanted, matches=", ".join(matches))
    return records[matches[0]]


def beginning_of(captured: Captured) -> Beginning:
    """Give what a workspace began with, as the journal holds it."""
    totals = captured.totals
    return Beginning(
        tree=captured.tree.hex(),
        files=totals.files,
        bytes=totals.bytes,
        moved=captured.moved,
        excluded=tuple(map(os.fsdecode, captured.excluded)),
    )


def merge_over(reader: Writer | Scratch, base: Beginning) -> Merge:
    """Say what an upper is laid over."""
    totals = Totals(base.files, base.bytes)
    return Merge(reader=reader, tree=bytes.fromhex(base.tree), totals=totals, bases=BASES)


def record_of(
    task: str,
    captured: Captured,
    *,
    name: str | None,
    parent: str | None,
    description: str,
    labels: dict[str, str],
    added: int,
    began: float,
    paused: float,
) -> CheckpointRecord:
    """Make the record of a capture that was stored, at this moment."""
    stats = CheckpointStats(
        files=captured.totals.files,
        bytes=captured.totals.bytes,
        new_bytes=added,
        seconds=clock.monotonic() - began,
        paused=paused,
    )
    return CheckpointRecord(
        id=ids.new_id(),
        task=task,
        tree=captured.tree.hex(),
        name=name,
        parent=parent,
        created_at=clock.now_ns(),
        description=description,
        labels=labels,
        stats=stats,
        uid=os.geteuid(),
        skipped=captured.skipped,
        changed=captured.changed,
    )
