"""Threads started where an interrupt may come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

from sandboxsdk.host import start_thread

_STARTS = 2000


def test_a_thread_runs():
    """A thread that can be had is started."""
    ran = threading.Lock()
    ran.acquire()
    start_thread(ran.release)
    assert ran.acquire(timeout=60)


_ALONE = """
import resource, sys
from sandboxsdk.host import start_thread

resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))
import _thread
_thread.stack_size(1 << 28)
try:
    start_thread(lambda: None)
except OSError as error:
    sys.exit(error.errno)
"""


def test_no_thread_left():
    """That there is none left to have is said by an OSError."""
    done = subprocess.run([sys.executable, "-c", _ALONE], check=False, timeout=60)
    assert done.returncode == 11


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
                start_thread(lambda: None)
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
