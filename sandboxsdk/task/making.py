"""How a task comes into being: by one rename of a finished directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sandboxsdk import disk
from sandboxsdk.errors import SandboxError
from sandboxsdk.home import Home
from sandboxsdk.journal import FILE, Journal
from sandboxsdk.model import TaskRecord

from . import history, lease


class Hold:
    """Who holds a task while it is made, and a throwaway one until it is discarded."""


def bring_into_being(
    task: str, home: Home, *, throwaway: bool, begin: Callable[[str], object]
) -> Hold:
    """Make the directory of a task; a crash before the end leaves only litter.

    A throwaway task is held until it is discarded: by what this gives.

    Args:
        begin: makes its journal in the directory that it is given, before anybody can see it.

    Raises:
        HostFull, HostRefused: it cannot be written; nothing is left of it.
    """
    directory = home.directory(task, throwaway=throwaway)
    making = f"{directory}.new"
    hold = Hold()
    ours = [making]
    with disk.translated("create task in", home.path):
        try:
            disk.make_directory(making)
            os.close(disk.create(f"{making}/{lease.FILE}"))
            # Held while it is made, or a sweep would take it for a dead process's.
            held = lease.lease_of(directory, task)
            held.take_unborn(hold, making)
            begin(making)
            if not throwaway:
                # The journal's name in its directory, before the directory's name in the home: a
                # task that is there after a power cut is there with its journal.
                _sync_directory(making)
            disk.rename(making, directory)
            ours.append(directory)
            if not throwaway:
                _sync_directory(os.path.dirname(directory))
                held.give_back(hold)
        except BaseException:
            lease.lease_of(directory, task).give_back(hold)
            lease.forget(directory)
            for unfinished in ours:
                # The first error is the one to tell; what is left, a sweep deletes.
                with contextlib.suppress(SandboxError):
                    home.discard(unfinished)
            raise
    return hold


def begin_journal(
    directory: str,
    record: TaskRecord,
    entries: Sequence[tuple[str, Mapping[str, Any]]] = (),
    *,
    sync: bool,
) -> None:
    """Make the journal of a new task: its creation, and what is to be said at once."""
    journal = Journal(f"{directory}/{FILE}")
    journal.begin("created", history.created(record), sync=sync and not entries)
    for number, (kind, data) in enumerate(entries, 1):
        journal.append(kind, data, sync=sync and number == len(entries))


def _sync_directory(path: str) -> None:
    descriptor = disk.open_directory(path)
    try:
        disk.sync(descriptor)
    finally:
        os.close(descriptor)
