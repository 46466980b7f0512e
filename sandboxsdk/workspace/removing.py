"""What mounts and restores leave in a task's directory, removed while nobody waits for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress

from sandboxsdk.errors import FileMissing, SandboxError
from sandboxsdk.host import owned, remove_tree, start_thread

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW


def remove_scratch(task: int, names: Iterable[str]) -> None:
    """Remove these from a task's directory; whoever else does so too is in nobody's way.

    Raises:
        SandboxError: one cannot be removed.
    """
    for name in names:
        if not _removed_work(task, name):
            with suppress(FileMissing):
                remove_tree(task, name)


class _Removal:
    """One thread that removes.

    What is not removed, because the process was killed or something refused, is scratch that the
    next use of the task's directory removes.
    """

    def __init__(self, directory: str, names: list[str]) -> None:
        self._directory, self._names = directory, names
        # Taken by the thread when it begins, or by us, so that it never does.
        self._begun = threading.Lock()
        self.over = threading.Lock()
        self.over.acquire()

    def start(self) -> None:
        try:
            start_thread(self._run)
        except OSError:
            self._run()
        except BaseException:
            if self._begun.acquire(blocking=False):
                self._end()
            raise

    def _run(self) -> None:
        if not self._begun.acquire(blocking=False):
            return
        try:
            with suppress(OSError, SandboxError):
                # Here, so that an interrupt of whoever began it leaves no descriptor open.
                with owned(os.open(self._directory, _DIRECTORY)) as task:
                    remove_scratch(task, self._names)
        finally:
            self._end()

    def _end(self) -> None:
        _removals.pop((os.getpid(), self._directory), None)
        self.over.release()


# Those that go on, by process and task's directory.
_removals: dict[tuple[int, str], _Removal] = {}


def begin_removal(directory: str, names: list[str]) -> None:
    """Remove these from a task's directory from now on, one call after the other.

    Args:
        names: no new entry ever gets one of them.
    """
    await_removal(directory)
    if names:
        removal = _removals[os.getpid(), directory] = _Removal(directory, names)
        removal.start()


def await_removal(directory: str) -> None:
    """Wait until this process has removed all that was to be."""
    removal = _removals.get((os.getpid(), directory))
    if removal is not None:
        with removal.over:
            pass


def _removed_work(task: int, name: str) -> bool:
    """Remove what the kernel leaves of a work directory, if that is all that there is."""
    try:
        os.unlink(f"{name}/work/incompat/volatile/dirty", dir_fd=task)
        for below in ("/work/incompat/volatile", "/work/incompat", "/work", ""):
            os.rmdir(name + below, dir_fd=task)
    except OSError:
        return False
    return True
