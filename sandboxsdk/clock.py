"""The only module that asks for the time. Storage counts UTC nanoseconds; people read RFC 3339."""

from __future__ import annotations

import datetime
import time


def now_ns() -> int:
    """UTC, in nanoseconds since 1970."""
    return time.time_ns()


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
