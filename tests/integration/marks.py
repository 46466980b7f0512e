"""Telling the processes of one test from all others of this machine, and waiting for things."""

from __future__ import annotations

import os
import time


def alive(mark: str) -> list[int]:
    """Give the processes of the host that have this argument."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    # A shell has it within an argument; sleep has it as one.
                    if mark.encode() in file.read().split(b"\0"):
                        found.append(int(name))
            except OSError:
                continue
    return found


def until(happened, seconds: float = 20.0):
    """Wait for something to become true, and give it."""
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return found
