"""Finding tasks: by id, name or prefix, and by what they are."""

from __future__ import annotations

import os
import weakref
from typing import Any

from sandboxsdk import ids
from sandboxsdk.errors import AmbiguousId, TaskNotFound, UsageError
from sandboxsdk.home import Home
from sandboxsdk.journal import FILE as JOURNAL
from sandboxsdk.model import TaskRecord
from sandboxsdk.registry import FILE, Registry

from . import history
from .arguments import Filter

_registries: weakref.WeakKeyDictionary[Home, Registry] = weakref.WeakKeyDictionary()


def find_task(home: Home, wanted: Any) -> TaskRecord:
    """Give the task with this id, else the one with this name, else the one whose id begins so.

    Raises:
        UsageError: it is no text.
        TaskNotFound: there is none.
        AmbiguousId: there are several.
        Corrupt: its journal is damaged.
    """
    if not isinstance(wanted, str) or not wanted:
        hint = "list the tasks of this home with Task.list() or `python -m sandboxsdk ls`"
        reason = "is not an id, a name or a prefix"
        raise UsageError(what="task", value=wanted, reason=reason, hint=hint)
    if ids.is_id(wanted) and os.path.isdir(home.directory(wanted)):
        return history.read(home.directory(wanted))
    registry = _registry_of(home)
    matches = [record.id for record in registry.named(wanted)]
    if not matches:
        matches = [record.id for record in registry.prefixed(wanted)]
        for task in home.task_ids():
            if task.startswith(wanted) and task not in matches:
                # One whose journal is damaged is in no registry: this says what is wrong with it.
                matches.append(history.read(home.directory(task)).id)
    if not matches:
        raise TaskNotFound(wanted=wanted, home=home.path)
    if len(matches) > 1:
        raise AmbiguousId(wanted=wanted, matches=", ".join(sorted(matches)))
    # Work is done on what the journal says, and on nothing else.
    return history.read(home.directory(matches[0]))


def list_tasks(
    home: Home, *, status: Any, labels: Any, parent: Any, text: Any, limit: Any, offset: Any
) -> list[TaskRecord]:
    """Give the records of tasks, newest first; each filter that is given must fit.

    Raises:
        UsageError: a filter that cannot be.
    """
    wanted = Filter(status=status, labels=labels, parent=parent, text=text)
    for what, number in (("limit", limit), ("offset", offset)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            hint = "pass 0 or more"
            raise UsageError(what=what, value=number, reason="is not a number", hint=hint)
    return _registry_of(home).select(
        status=wanted.status,
        labels=wanted.labels,
        parent=wanted.parent,
        text=wanted.text,
        limit=limit,
        offset=offset,
    )


def _registry_of(home: Home) -> Registry:
    """Give the registry of a home; one object for each Home."""
    found = _registries.get(home)
    if found is None:
        found = _registries[home] = Registry(
            os.path.join(home.path, FILE),
            tasks=os.path.join(home.path, "tasks"),
            journal=JOURNAL,
            read=history.read,
            read_only=home.read_only,
        )
        weakref.finalize(home, found.close)
    return found
