"""Watching real processes: trees are counted, and what passes a limit is told once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from sandboxsdk.model import Limits
from sandboxsdk.runtime.watch import TreeUsage, Watch, can_watch, tree_usage

MIB = 1024**2
# Tells when it is ready, and lives until its standard input ends.
WAIT = "\nprint('ready', flush=True)\nos.read(0, 1)\n"


@contextlib.contextmanager
def running(code: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "import os, sys\n" + code + WAIT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def fill(size: int) -> str:
    return f"b = bytearray({size})\nfor i in range(0, len(b), 4096): b[i] = 1\n"


CHILDREN = """
import threading
def nap(): os.read(0, 1)
ready, tell = os.pipe()
for _ in range(2):
    if os.fork() == 0:
        threading.Thread(target=nap, daemon=True).start()
        if os.fork() == 0:
            os.write(tell, b'x')
            nap()
            os._exit(0)
        os.write(tell, b'x')
        nap()
        os._exit(0)
got = 0
while got < 4:
    got += len(os.read(ready, 4))
"""


def test_a_tree_is_counted_with_grandchildren_and_threads():
    """Children, grandchildren and threads count; the memory is at least what the processes hold."""
    assert can_watch()
    with running(CHILDREN + fill(32 * MIB)) as process:
        found = tree_usage(process.pid)
        assert found.processes == 5
        assert found.threads == 7
        assert found.rss_bytes > 32 * MIB


def test_children_of_a_thread_are_found():
    """A child that was started by another thread than the main one belongs to the tree."""
    code = """
import threading
def start():
    if os.fork() == 0:
        os.read(0, 1)
        os._exit(0)
    gate.acquire()
gate = threading.Lock()
gate.acquire()
threading.Thread(target=start, daemon=True).start()
while not open(f'/proc/self/task/{max(map(int, os.listdir("/proc/self/task")))}/children').read():
    pass
"""
    with running(code) as process:
        assert tree_usage(process.pid).processes == 2


def test_a_process_that_is_gone_uses_nothing():
    """A pid that nobody has gives zeros, not an error."""
    with running("") as process:
        pass
    assert tree_usage(process.pid) == TreeUsage()
    assert tree_usage(2**22 + 5) == TreeUsage()


def test_a_memory_hog_is_killed_by_the_callback():
    """A tree that passes the memory limit is told to its callback, which ends it."""
    told = []
    with running("print('ready', flush=True); os.read(0, 3)\n" + fill(200 * MIB)) as process:
        watch = Watch(Limits(memory=64 * MIB), interval=0.01)

        def end(why: str) -> None:
            told.append(why)
            process.kill()

        watch.add(process.pid, end)
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.wait(60) == -signal.SIGKILL
        watch.close()
    assert told == ["oom"]


def test_all_registered_trees_count_together_and_each_is_told_once():
    """Two trees below the limit pass it together; both are told, neither twice."""
    told = []
    with running(fill(48 * MIB)) as one, running(fill(48 * MIB)) as other:
        watch = Watch(Limits(memory=64 * MIB), interval=0.01)
        watch.add(one.pid, lambda why: told.append((1, why)))
        until(lambda: watch.latest is not None)
        assert told == []
        watch.add(other.pid, lambda why: told.append((2, why)))
        until(lambda: len(told) == 2)
        seen = {id(watch.latest): watch.latest}
        until(lambda: len(seen.setdefault(id(watch.latest), watch.latest) and seen) > 3)
        watch.close()
    assert sorted(told) == [(1, "oom"), (2, "oom")]


def test_memory_that_is_shared_counts_once():
    """Processes that share their parent's memory are not taken for many hogs."""
    told = []
    code = fill(64 * MIB) + "for _ in range(4):\n if os.fork() == 0: os.read(0, 1); os._exit(0)\n"
    with running(code) as process:
        watch = Watch(Limits(memory=160 * MIB), interval=0.01)
        watch.add(process.pid, told.append)
        samples = []

        def several() -> bool:
            latest = watch.latest
            if latest is not None and not any(latest is sample for sample in samples):
                samples.append(latest)
            return len(samples) > 3

        until(several)
        watch.close()
    assert all(sample.rss_bytes > 160 * MIB for sample in samples)
    assert told == []


def test_limits_change_while_watching():
    """A lower limit counts from the next sample on."""
    told = threading.Event()
    with running(fill(64 * MIB)) as process:
        watch = Watch(Limits(memory=None), interval=0.01)
        watch.add(process.pid, lambda _why: told.set())
        until(lambda: watch.latest is not None)
        assert not told.is_set()
        watch.update(Limits(memory=32 * MIB))
        assert told.wait(30)
        watch.close()


def test_a_full_disk_is_told_to_all():
    """When the bytes on disk pass the limit, every callback hears it, whatever one of them does."""
    told = []

    def failing(why: str) -> None:
        told.append(why)
        raise ValueError(why)

    watch = Watch(Limits(memory=None, disk=1000), disk=lambda: 1001)
    with running("") as one, running("") as other:
        watch._disk_turn.acquire()
        watch.add(one.pid, failing)
        watch.add(other.pid, told.append)
        watch._disk_turn.release()
        until(lambda: len(told) == 2)
        watch.close()
    assert told == ["disk", "disk"]


def test_a_disk_that_cannot_be_measured_is_measured_again():
    """An error of the caller's function does not end the watch."""
    answers = iter([OSError("gone"), 2000])
    told = threading.Event()

    def disk() -> int:
        answer = next(answers, 0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    watch = Watch(Limits(memory=None, disk=1000), disk=disk)
    watch.add(os.getpid(), lambda _why: told.set())
    assert told.wait(30)
    watch.close()


def test_many_short_commands_do_not_mean_many_looks_at_the_disk():
    """The pace of the disk is the watch's own, not that of each registration."""
    looks = []
    watch = Watch(Limits(disk=1000), disk=lambda: looks.append(1) or 0)
    watch.add(os.getpid(), lambda _why: None)
    until(lambda: bool(looks))
    started = time.monotonic()
    for _ in range(20):
        watch.remove(os.getpid())
        watch.add(os.getpid(), lambda _why: None)
    watch.close()
    assert len(looks) <= 2 + (time.monotonic() - started) / 2


def test_threads_live_only_while_something_is_registered():
    """Removing the last tree ends the threads; adding one again starts them anew."""
    watch = Watch(Limits(), disk=lambda: 0, interval=0.01)
    for _ in range(2):
        assert watch.latest is None
        watch.add(os.getpid(), lambda _why: None)
        threads = list(watch._threads)
        assert any(thread.is_alive() for thread in threads)
        assert all(thread.daemon for thread in threads)
        until(lambda: watch.latest is not None)
        watch.remove(os.getpid())
        watch.remove(os.getpid())
        until(lambda threads=threads: not any(thread.is_alive() for thread in threads))


def test_a_callback_may_close_the_watch():
    """Closing from within a callback neither hangs nor fails."""
    closed = threading.Event()
    with running(fill(32 * MIB)) as process:
        watch = Watch(Limits(memory=MIB), interval=0.01)

        def close(_why: str) -> None:
            watch.close()
            closed.set()

        watch.add(process.pid, close)
        assert closed.wait(30)
    assert watch.latest is None
