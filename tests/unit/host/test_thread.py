"""Threads started where an interrupt may come."""

from __future__ import annotations

import _thread
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sandboxsdk.host import Worker

_STARTS = 2000


def test_a_worker_runs_and_is_over():
    """It does its work, then what is due at the end, and whoever waits goes on."""
    done: list[str] = []
    worker = Worker(lambda: done.append("run"), lambda: done.append("end"))
    assert not worker.is_over
    worker.start()
    assert worker.wait(60)
    assert worker.is_over
    assert worker.wait()
    assert done == ["run", "end"]


def test_a_wait_has_an_end():
    """A timeout is kept to, and who waits longer gets what comes."""
    gate = threading.Lock()
    gate.acquire()
    worker = Worker(lambda: gate.acquire() and None)
    worker.start()
    assert not worker.wait(0)
    assert not worker.wait(0.01)
    gate.release()
    assert worker.wait(60)


@pytest.mark.parametrize("begun", [False, True])
def test_what_comes_into_a_start_leaves_it_over(monkeypatch, begun):
    """Whether the thread had begun or not, the end comes once, and a wait comes to it."""
    done: list[str] = []

    def interrupted(run, _arguments):
        if begun:
            run()
        raise KeyboardInterrupt

    monkeypatch.setattr(_thread, "start_new_thread", interrupted)
    worker = Worker(lambda: done.append("run"), lambda: done.append("end"))
    with pytest.raises(KeyboardInterrupt):
        worker.start()
    assert worker.is_over is begun
    worker.give_up()
    assert worker.wait(60)
    assert done == ["run", "end"][not begun :]
    worker.give_up()
    assert done == ["run", "end"][not begun :]


def test_nobody_waits_for_a_thread_of_its_parent():
    """In a forked child the thread is not there."""
    gate = threading.Lock()
    gate.acquire()
    worker = Worker(lambda: gate.acquire() and None)
    worker.start()
    child = os.fork()
    if child == 0:
        os._exit(0 if worker.wait(60) else 1)
    assert os.waitpid(child, 0)[1] == 0
    gate.release()
    assert worker.wait(60)


_ALONE = """
import resource, sys
from sandboxsdk.host import Worker

resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))
import _thread
_thread.stack_size(1 << 28)
try:
    Worker(lambda: None).start()
except OSError as error:
    sys.exit(error.errno)
"""


def test_no_thread_left():
    """That there is none left to have is said by an OSError."""
    done = subprocess.run([sys.executable, "-c", _ALONE], check=False, timeout=60)
    assert done.returncode == 11


# Python drops an interrupt that comes into a callback of its own, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment_leaves_no_thread_behind():
    """A signal at any moment of a start is told as what its handler raised, and nothing hangs."""
    before = len(os.listdir("/proc/self/task"))
    interrupted = 0

    def ring(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    inherited = signal.signal(signal.SIGALRM, ring)
    try:
        for number in range(_STARTS):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + (number % 100) * 1e-6)
                worker = Worker(lambda: None)
                worker.start()
                time.sleep(0.001)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, inherited)
    assert interrupted > _STARTS / 2
    end = time.monotonic() + 60
    while len(os.listdir("/proc/self/task")) > before:
        assert time.monotonic() < end
        time.sleep(0.01)
