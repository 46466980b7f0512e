"""What is stored: the journal's entries and the task they add up to.

Every record carries its schema version.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .settings import Spec, Workspace

# "restoring" is never stored: it is told while a restore is open that a crash has interrupted.
Status = Literal[
    "pending", "active", "paused", "completed", "failed", "cancelled", "archived", "restoring"
]
SCHEMA_VERSION = 1


class TaskRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A task as its journal tells it.

    Attributes:
        created_at: UTC nanoseconds; the base may have changed since.
        lock: "exclusive" is one writer at a time.
        parent: id of the task that this one was made from or belongs to.
    """

    id: str
    description: str
    name: str | None = None
    status: Status = "pending"
    created_at: int = 0
    labels: dict[str, str] = {}
    parent: str | None = None
    lock: Literal["exclusive", "collaborative"] = "exclusive"
    workspace: Workspace = Workspace()
    spec: Spec = Spec()
    schema: int = SCHEMA_VERSION


class HolderRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a task, for people; the kernel's lock alone decides."""

    pid: int
    host: str
    boot_id: str
    since: int
    agent: str | None = None
    command: str = ""
