"""Taking turns and telling medians: A B A B, so that a machine whose speed drifts does not lie."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Figure(NamedTuple):
    """Milliseconds of one thing."""

    name: str
    median: float
    fastest: float
    ratio: float | None
    peer: str


def in_turns(
    doers: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm: int = 3,
    pause: float = 0.0,
) -> list[Figure]:
    """Time each doer `rounds` times, in turns, after a pause; ratios are to the last, the peer."""
    taken: dict[str, list[float]] = {name: [] for name in doers}
    for turn in range(warm + rounds):
        for name, do in doers.items():
            time.sleep(pause)
            began = time.perf_counter()
            do()
            if turn >= warm:
                taken[name].append((time.perf_counter() - began) * 1000)
    *_, peer = doers
    floor = statistics.median(taken[peer])
    return [
        Figure(
            name,
            statistics.median(times),
            min(times),
            None if name == peer else statistics.median(times) / floor,
            peer,
        )
        for name, times in taken.items()
    ]


def machine() -> dict[str, Any]:
    """Say what this was measured on."""
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "root": os.geteuid() == 0,
    }


def shown(title: str, figures: list[Figure]) -> str:
    """Give a table for people."""
    lines = [title]
    for figure in figures:
        ratio = "" if figure.ratio is None else f"{figure.ratio:6.2f}x {figure.peer}"
        lines.append(
            f"  {figure.name:<44} {figure.median:9.2f} ms  (min {figure.fastest:.2f})  {ratio}"
        )
    return "\n".join(lines)
