"""The only module that asks for the time. Storage counts UTC nanoseconds; people read RFC 3339."""

from __future__ import annotations

import contextlib
import datetime
import sys
import time

# CLOCK_REALTIME_COARSE of Linux, which Python has no name for.
_COARSE = 5


def now_ns() -> int:
    """UTC, in nanoseconds since 1970."""
    return time.time_ns()


def pass_tick(moment_ns: int) -> None:
    """Wait until what is changed in a file system is told to be younger than a moment.

    The kernel stamps files with a clock that goes in steps of up to 10 ms; where there is no such
    clock, nothing is waited for.
    """
    with contextlib.suppress(OSError):
        while (
            sys.platform == "linux" and time.clock_gettime_ns(_COARSE) <= moment_ns < time.time_ns()
        ):
            time.sleep(0.0005)


def monotonic() -> float:
    """Seconds that never go back; only differences mean something."""
    return time.monotonic()


def pause(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)


def rfc3339(at_ns: int) -> str:
    """Give UTC nanoseconds as people and other programs read them, to the second."""
    moment = datetime.datetime.fromtimestamp(at_ns // 1_000_000_000, tz=datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
