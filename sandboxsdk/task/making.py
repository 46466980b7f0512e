"""How a task comes into being: by one rename of a finished directory. And reading those there
are.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from sandboxsdk import disk
from sandboxsdk.errors import Corrupt, Denied, NotFound, SandboxError
from sandboxsdk.home import Home
from sandboxsdk.journal import FILE, Journal
from sandboxsdk.model import TaskRecord

from . import history, lease


class Hold:
    """Who holds a task while it is made, and a throwaway one until it is discarded."""


def bring_into_being(record: TaskRecord, home: Home, *, throwaway: bool) -> Hold:
    """Make the directory of a task; a crash before the end leaves only litter.

    A throwaway task is held until it is discarded: by what this gives.

    Raises:
        HostFull, HostRefused: it cannot be written; nothing is left of it.
    """
    directory = home.directory(record.id, throwaway=throwaway)
    making = f"{directory}.new"
    hold = Hold()
    with disk.translated("create task in", home.path):
        try:
            disk.make_directory(making)
            os.close(disk.create(f"{making}/{lease.FILE}"))
            # Held while it is made, or a sweep would take it for a dead process's.
            held = lease.lease_of(directory, record.id)
            held.take_unborn(hold, making)
            journal = Journal(f"{making}/{FILE}")
            journal.begin("created", history.created(record), sync=not throwaway)
            if not throwaway:
                # The journal's name in its directory, before the directory's name in the home: a
                # task that is there after a power cut is there with its journal.
                _sync_directory(making)
            disk.rename(making, directory)
            if not throwaway:
                _sync_directory(os.path.dirname(directory))
                held.give_back(hold)
        except BaseException:
            lease.lease_of(directory, record.id).give_back(hold)
            lease.forget(directory)
            for unfinished in (making, directory):
                # The first error is the one to tell; what is left, a sweep deletes.
                with contextlib.suppress(SandboxError):
                    home.discard(unfinished)
            raise
    return hold


def read_all(home: Home, known: Sequence[str]) -> list[TaskRecord]:
    """Read the records of tasks; one that was deleted meanwhile or is damaged is left out."""
    records = []
    for task in known:
        try:
            records.append(history.read(home.directory(task)))
        except (NotFound, Corrupt, Denied):
            continue
    return records


def _sync_directory(path: str) -> None:
    descriptor = disk.open_directory(path)
    try:
        disk.sync(descriptor)
    finally:
        os.close(descriptor)
