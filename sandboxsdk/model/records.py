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
        family: id of the first task of those that were forked from each other; None is this one.
        target: directory that `apply` writes to where the workspace does not say it.
        chosen: why the workspace is of its kind, where that was left to us.
    """

    id: str
    description: str
    name: str | None = None
    status: Status = "pending"
    created_at: int = 0
    labels: dict[str, str] = {}
    parent: str | None = None
    family: str | None = None
    target: str | None = None
    lock: Literal["exclusive", "collaborative"] = "exclusive"
    workspace: Workspace = Workspace()
    chosen: str = ""
    spec: Spec = Spec()
    schema: int = SCHEMA_VERSION


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """That a task came from a file, and where its files lie now: it is the same task elsewhere.

    Attributes:
        source: absolute path of the directory that it worked on where it came from.
    """

    workspace: Workspace
    spec: Spec = Spec()
    source: str | None = None


class HolderRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a task, for people; the kernel's lock alone decides."""

    pid: int
    host: str
    boot_id: str
    since: int
    agent: str | None = None
    command: str = ""
