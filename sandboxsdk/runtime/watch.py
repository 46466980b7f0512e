"""Watching what a box uses where no cgroup keeps the limit: memory of processes, bytes on disk.

Knows process ids and /proc; it must not know what a box is, nor how to end one: it calls back.

Invariants: threads live only while something is registered; each registration is called back at
most once; measuring costs at most about 2 % of one processor, and looking at the disk at most 10 %
of the time. Watching is late by nature: between two samples a limit can be passed.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec

from sandboxsdk import clock
from sandboxsdk.errors import SandboxError
from sandboxsdk.model import Limits

Exceeded = Literal["oom", "disk"]

INTERVAL_SECONDS = 0.2
DISK_INTERVAL_SECONDS = 2.0
# A sample that took t seconds is followed by a pause of 50 t, one of the disk by 9 t.
_PAUSE_FACTOR = 50
_DISK_PAUSE_FACTOR = 9
# A box must not make itself unwatched by having very many processes.
_PAUSE_SECONDS_MAX = 5.0
_CLOSE_SECONDS_MAX = 2.0
_PIDS_MAX = 100_000
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


class TreeUsage(msgspec.Struct, frozen=True):
    """What a process and all its descendants use now.

    Attributes:
        rss_bytes: resident memory, added up: pages that several processes share count for each of
        them.
    """

    processes: int = 0
    threads: int = 0
    rss_bytes: int = 0


def can_watch() -> bool:
    """Tell whether this kernel names the children of a process."""
    return os.path.exists(f"/proc/self/task/{threading.get_native_id()}/children")


def tree_usage(root_pid: int) -> TreeUsage:
    """Measure the tree below `root_pid`, itself included; all zero when it is gone.

    A process whose parent died is found only if its new parent is in the tree, as it is in a pid
    namespace.
    """
    return _usage((root_pid,))


def _usage(roots: Iterable[int]) -> TreeUsage:
    processes = threads = rss = 0
    for pid, tasks in _walk(roots):
        processes += 1
        threads += tasks
        with contextlib.suppress(OSError, IndexError, ValueError):
            rss += int(_read(f"/proc/{pid}/statm").split()[1]) * _PAGE_BYTES
    return TreeUsage(processes, threads, rss)


def _fair_bytes(roots: Iterable[int]) -> int:
    """Give the memory of trees, each shared page counted once among those who share it."""
    total = 0
    for pid, _tasks in _walk(roots):
        with contextlib.suppress(OSError, IndexError, ValueError):
            try:
                total += int(_PSS.findall(_read(f"/proc/{pid}/smaps_rollup"))[0]) * 1024
            except OSError:
                # Not readable, as with a program that changed its rights: its whole memory is its
                # own.
                total += int(_read(f"/proc/{pid}/statm").split()[1]) * _PAGE_BYTES
    return total


def _walk(roots: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Give each process once, with its number of threads; what vanishes is passed over."""
    waiting = list(roots)
    seen = set(waiting)
    while waiting:
        pid = waiting.pop()
        tasks = 0
        with contextlib.suppress(OSError, ValueError):
            for task in os.listdir(f"/proc/{pid}/task"):
                tasks += 1
                with contextlib.suppress(OSError):
                    children = map(int, _read(f"/proc/{pid}/task/{task}/children").split())
                    fresh = [child for child in children if child not in seen]
                    if len(seen) + len(fresh) <= _PIDS_MAX:
                        seen.update(fresh)
                        waiting += fresh
        if tasks:
            yield pid, tasks


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


class Watch:
    """Calls back when registered process trees together pass a limit, or when the disk does.

    Args:
        limits: `memory` and `disk` are looked at.
        disk: gives the bytes that count against `limits.disk`; called from a thread of the watch,
            never twice at once; an OSError or SandboxError from it counts as "not known now".
        interval: seconds between samples of memory; stretched when a sample is expensive.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        disk: Callable[[], int] | None = None,
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        self._limits = limits
        self._disk = disk
        self._interval = interval
        self._guard = threading.Lock()
        # None once it has been called.
        self._callbacks: dict[int, Callable[[Exceeded], None] | None] = {}
        self._latest: TreeUsage | None = None
        # One event per time that something is registered: threads of an earlier time stop by
        # theirs.
        self._stop: threading.Event | None = None
        self._threads: list[threading.Thread] = []
        # The pace of the disk outlives a registration: many short commands must not mean many
        # scans.
        self._disk_turn = threading.Lock()
        self._disk_due = clock.monotonic()

    @property
    def latest(self) -> TreeUsage | None:
        """The last sample of all registered trees; None before the first, or with none."""
        return self._latest

    def add(self, pid: int, on_exceeded: Callable[[Exceeded], None]) -> None:
        """Register the tree below `pid`; the callback comes once, from a thread of the watch."""
        with self._guard:
            self._callbacks[pid] = on_exceeded
            if self._stop is not None:
                return
            self._stop = threading.Event()
            loops = (
                [self._watch_memory]
                if self._disk is None
                else [self._watch_memory, self._watch_disk]
            )
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            for loop in loops:
                name = f"sandboxsdk-{loop.__name__.removeprefix('_')}"
                thread = threading.Thread(target=loop, args=(self._stop,), name=name, daemon=True)
                thread.start()
                self._threads.append(thread)

    def remove(self, pid: int) -> None:
        """Forget a tree; a callback that is already under way may still come."""
        with self._guard:
            self._callbacks.pop(pid, None)
            if not self._callbacks:
                self._end()

    def update(self, limits: Limits) -> None:
        """Take other limits from the next sample on."""
        self._limits = limits

    def close(self) -> None:
        """Forget all trees and wait, for a bounded time, until no thread of the watch runs."""
        with self._guard:
            self._callbacks.clear()
            self._end()
            threads = self._threads
        deadline = clock.monotonic() + _CLOSE_SECONDS_MAX
        for thread in threads:
            # A callback may close the watch that calls it.
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - clock.monotonic()))

    def _end(self) -> None:
        if self._stop is not None:
            self._stop.set()
        self._stop = None
        self._latest = None

    def _watch_memory(self, stop: threading.Event) -> None:
        pause = self._interval
        while not stop.wait(pause):
            before = clock.monotonic()
            with self._guard:
                pids = tuple(self._callbacks)
            usage = _usage(pids)
            limit = self._limits.memory_bytes
            # Added-up resident memory is cheap but says too much of programs that fork; so it only
            # raises the suspicion.
            exceeded = limit is not None and usage.rss_bytes > limit and _fair_bytes(pids) > limit
            with self._guard:
                if not stop.is_set():
                    self._latest = usage
            if exceeded:
                self._tell("oom", stop)
            spent = clock.monotonic() - before
            pause = min(max(self._interval, spent * _PAUSE_FACTOR), _PAUSE_SECONDS_MAX)

    def _watch_disk(self, stop: threading.Event) -> None:
        pause = 0.0
        while not stop.wait(pause):
            exceeded = False
            with self._disk_turn:
                if clock.monotonic() >= self._disk_due:
                    exceeded = self._disk_exceeded()
                pause = max(0.0, self._disk_due - clock.monotonic())
            if exceeded:
                self._tell("disk", stop)

    def _disk_exceeded(self) -> bool:
        limit = self._limits.disk_bytes
        before = clock.monotonic()
        used = 0
        if limit is not None and self._disk is not None:
            # The caller's function walks what the box changes meanwhile; what it cannot read now it
            # is asked for again. A mistake in it is not hidden: it would lift the limit in silence.
            with contextlib.suppress(OSError, SandboxError):
                used = self._disk()
        after = clock.monotonic()
        self._disk_due = after + max(DISK_INTERVAL_SECONDS, (after - before) * _DISK_PAUSE_FACTOR)
        return limit is not None and used > limit

    def _tell(self, why: Exceeded, stop: threading.Event) -> None:
        with self._guard:
            if stop.is_set():
                return
            untold = [
                (pid, called) for pid, called in self._callbacks.items() if called is not None
            ]
            for pid, _called in untold:
                self._callbacks[pid] = None
        for _pid, called in untold:
            # One command that cannot be told must not keep the others from being told.
            with contextlib.suppress(Exception):
                called(why)
