"""What mounts and restores leave in a task's directory, removed while nobody waits for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from sandboxsdk.errors import FileMissing, SandboxError
from sandboxsdk.host import Worker, owned, remove_tree

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


# Those that go on, by process and task's directory.
_removals: dict[tuple[int, str], Worker] = {}


def begin_removal(directory: str, names: list[str]) -> None:
    """Remove these from a task's directory from now on, one call after the other.

    What is not removed, because the process was killed or something refused, is scratch that the
    next use of the directory removes.

    Args:
        names: no new entry ever gets one of them.
    """
    await_removal(directory)
    if not names:
        return

    def remove() -> None:
        with suppress(OSError, SandboxError):
            # Here, so that an interrupt of whoever began it leaves no descriptor open.
            with owned(os.open(directory, _DIRECTORY)) as task:
                remove_scratch(task, names)

    def forget() -> None:
        _removals.pop(key, None)

    key = os.getpid(), directory
    worker = _removals[key] = Worker(remove, forget)
    try:
        worker.start()
    except OSError:
        worker.give_up()
        remove()
    except BaseException:
        worker.give_up()
        raise


def await_removal(directory: str) -> None:
    """Wait until this process has removed all that was to be."""
    worker = _removals.get((os.getpid(), directory))
    if worker is not None:
        worker.wait()


def _removed_work(task: int, name: str) -> bool:
    """Remove what the kernel leaves of a work directory, if that is all that there is."""
    try:
        os.unlink(f"{name}/work/incompat/volatile/dirty", dir_fd=task)
        for below in ("/work/incompat/volatile", "/work/incompat", "/work", ""):
            os.rmdir(name + below, dir_fd=task)
    except OSError:
        return False
    return True
