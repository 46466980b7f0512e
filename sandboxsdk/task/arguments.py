"""What people pass to a task's functions: wrong values are refused before anything happens."""

from __future__ import annotations

import os
from typing import Any, get_args

from sandboxsdk import ids
from sandboxsdk.errors import TaskNotFound, UsageError
from sandboxsdk.home import Home
from sandboxsdk.model import Status, check_labels, check_one


def check_parent(parent: Any, home: Home) -> str | None:
    """Give the id of a task that is there.

    Raises:
        UsageError, TaskNotFound: it cannot be that.
    """
    if parent is None:
        return None
    hint = "pass a Task, or the id of one that Task.list() gives"
    if not isinstance(parent, str) or not ids.is_id(parent):
        raise UsageError(what="parent", value=parent, reason="is not the id of a task", hint=hint)
    if not os.path.isdir(home.directory(parent)):
        raise TaskNotFound(wanted=parent, home=home.path)
    return parent


def check_home(given: Home | None) -> Home:
    """Give the home that was given, or the default one.

    Raises:
        UsageError: it cannot be that.
    """
    if given is None:
        return Home.default()
    check_one(given, Home, what="home")
    return given


class Filter:
    """Which tasks `list` gives, checked; what is None fits all.

    Raises:
        UsageError: it cannot be that.
    """

    def __init__(self, *, status: Any, labels: Any, parent: Any, text: Any) -> None:
        known = get_args(Status)
        if status is not None and status not in known:
            hint = f"one of: {', '.join(known)}"
            raise UsageError(what="status", value=status, reason="is unknown", hint=hint)
        for what, value in (("parent", parent), ("text", text)):
            if value is not None and not isinstance(value, str):
                hint = f"pass {what} as a str"
                raise UsageError(what=what, value=value, reason="must be text", hint=hint)
        self.status: str | None = status
        self.labels: dict[str, str] = check_labels(labels)
        self.parent: str | None = parent
        self.text: str | None = text
