"""What crashes leave in a home: found by locks that their owners held, and removed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from filelock import FileLock as SweepLock
from filelock import Timeout as SweepBusy

from sandboxsdk import ids
from sandboxsdk.clock import now_ns
from sandboxsdk.disk import translated
from sandboxsdk.errors import Corrupt, HostRefused, NotFound, SandboxError
from sandboxsdk.host import FileLock, remove_tree

_UNFINISHED = ".new"
_ID_LENGTH = 16


def discard(home: str, directory: str) -> None:
    """Delete a task's directory: first out of sight in one step, then bit by bit."""
    trash = os.path.join(home, "trash")
    name = ids.new_id()
    with translated("delete", directory):
        if not os.path.lexists(directory):
            return
        with contextlib.suppress(FileExistsError):
            os.mkdir(trash, 0o700)
        with contextlib.suppress(FileNotFoundError):
            os.rename(directory, os.path.join(trash, name))
            descriptor = os.open(trash, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                remove_tree(descriptor, os.fsencode(name))
            finally:
                os.close(descriptor)


def sweep(home: str) -> int:
    """Delete what crashes left: throwaway tasks whose owner is dead, half-made and half-deleted
    ones.

    Cheap when there is nothing to do; one process at a time, others go on without waiting.
    """
    removed = 0
    lock = SweepLock(os.path.join(home, "sweep.lock"), timeout=0)
    # It helps whoever comes next; nobody fails because it could not, e.g. on a full disk.
    with contextlib.suppress(SweepBusy, OSError), lock:
        for directory in _leftovers(home):
            with contextlib.suppress(SandboxError):
                discard(home, directory)
                removed += 1
    return removed


def remove_unfinished(home: str) -> None:
    """Remove files that were being replaced when their writer was killed."""
    tasks = [os.path.join("tasks", task) for task in ids_in(home, "tasks")]
    for place in ("", "scans", "store", *tasks):
        for name in _names_in(home, place):
            if ids.is_id(name.removesuffix(_UNFINISHED)[-_ID_LENGTH:]) and name.endswith(
                _UNFINISHED
            ):
                path = os.path.join(home, place, name)
                with contextlib.suppress(OSError):
                    if not _is_fresh(path):
                        os.unlink(path)


def ids_in(home: str, name: str) -> Iterator[str]:
    """Give the ids among the names of a directory of a home."""
    return (entry for entry in _names_in(home, name) if ids.is_id(entry))


def _names_in(home: str, name: str) -> list[str]:
    try:
        return os.listdir(os.path.join(home, name))
    except FileNotFoundError:
        return []


def _leftovers(home: str) -> Iterator[str]:
    for place in ("throwaway", "tasks"):
        for name in _names_in(home, place):
            directory = os.path.join(home, place, name)
            unfinished = name.endswith(_UNFINISHED)
            if (unfinished or place == "throwaway") and _is_abandoned(directory):
                yield directory
    for name in _names_in(home, "trash"):
        yield os.path.join(home, "trash", name)


def _is_abandoned(directory: str) -> bool:
    """Tell whether nobody holds the task in `directory`; one that is being made is held from
    the start.
    """
    lease = FileLock(os.path.join(directory, "lease"))
    try:
        if not lease.acquire(0):
            return False
    except NotFound:
        lease_file = False
    except (HostRefused, Corrupt):
        return False
    else:
        lease.release()
        lease_file = True
    # One that is being made is not held yet for a moment.
    making = directory.endswith(_UNFINISHED) or not lease_file
    return not (making and _is_fresh(directory))


def _is_fresh(path: str) -> bool:
    """Tell whether something is younger than a minute; what is half-made and older has no maker."""
    try:
        made = os.lstat(path).st_mtime_ns
    except FileNotFoundError:
        return True
    return now_ns() - made < 60 * 1_000_000_000
