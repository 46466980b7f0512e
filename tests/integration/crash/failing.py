"""Failing and interrupting calls of `sandboxsdk.disk`, and telling what a process has open."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from sandboxsdk import disk

# What a full or read-only file system, or one with a quota, says only of these.
_NEEDS_SPACE = {"create", "write", "make_directory", "make_link", "make_hard_link", "rename"}
SYNCS = {"sync", "sync_data", "sync_file_system"}


class Injection:
    """What happens at the n-th call.

    Attributes:
        calls: how many there were.
        hit: the calls that failed, with the file that they were for.
        synced_again: files that were synced again after their sync had failed.
    """

    def __init__(self, number: int, act: Callable[[], None], *, from_then_on: bool) -> None:
        self._number, self._act, self._from_then_on = number, act, from_then_on
        self._guard = threading.Lock()
        self._failed: set[tuple[int, int]] = set()
        self.calls = 0
        self.hit: list[tuple[str, Any]] = []
        self.synced_again: list[str] = []

    def watch(self, call: str, arguments: tuple[Any, ...]) -> None:
        """Be told of a call before it is made."""
        identity = None
        if call in SYNCS:
            about = os.fstat(arguments[0])
            # A directory may be asked again: it is its names' file system that answers.
            identity = (about.st_dev, about.st_ino) if call == "sync_data" else None
        with self._guard:
            self.calls += 1
            if identity in self._failed:
                self.synced_again.append(os.readlink(f"/proc/self/fd/{arguments[0]}"))
            due = self.calls >= self._number if self._from_then_on else self.calls == self._number
            if not due:
                return
            self.hit.append((call, arguments[:1]))
            if identity is not None:
                self._failed.add(identity)
        self._act()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Have it in force for the block."""
        disk.watcher = self.watch
        try:
            yield
        finally:
            disk.watcher = None


def failing(number: int, code: int, *, from_then_on: bool) -> Injection:
    """Let the n-th call fail with this errno."""

    def act() -> None:
        raise OSError(code, os.strerror(code))

    return Injection(number, act, from_then_on=from_then_on)


def interrupting(number: int) -> Injection:
    """Press Ctrl-C at the n-th call, in whichever thread it is made."""

    def act() -> None:
        # To the process: its main thread is the one that Python interrupts.
        os.kill(os.getpid(), signal.SIGINT)

    return Injection(number, act, from_then_on=False)


def open_files() -> set[str]:
    """Describe all descriptors of this process, but for those that come and go by themselves.

    Those that other tests have left may go at any time, so compare with `<=`.
    """
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if not target.startswith("/proc/"):
                found.add(f"{name} {target}")
    return found


def held_locks(directory: str) -> list[str]:
    """Give the files below a directory whose lock somebody has."""
    import fcntl

    found = []
    for folder, _, files in os.walk(directory):
        for name in files:
            if name not in ("lease", "lock") and not name.endswith(".pack"):
                continue
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(path)
    return found
