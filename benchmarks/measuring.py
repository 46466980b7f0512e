"""Taking turns and telling medians: A B A B, so that a machine whose speed drifts does not lie."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

_Result = TypeVar("_Result")


class Figure(NamedTuple):
    """One thing in milliseconds, unless its unit says otherwise; no median: not measured.

    `ratio` is that of its median to the peer's.
    """

    name: str
    median: float | None = None
    ratio: float | None = None
    peer: str = ""
    unit: str = "ms"
    note: str = ""
    minimum: float | None = None
    maximum: float | None = None
    times: int = 0

    @classmethod
    def of(
        cls,
        name: str,
        values: Sequence[float],
        *,
        peer: str = "",
        peer_median: float | None = None,
        unit: str = "ms",
    ) -> Figure:
        """Sum up what was measured several times."""
        median = statistics.median(values)
        ratio = None if peer_median is None else median / peer_median
        minimum, maximum = min(values), max(values)
        there = "" if ratio is None else peer
        return cls(name, median, ratio, there, unit, "", minimum, maximum, len(values))


class Taken:
    """Milliseconds by step, and by who took it."""

    def __init__(self) -> None:
        self._times: dict[str, dict[str, list[float]]] = {}

    def timed(self, step: str, who: str, do: Callable[[], _Result]) -> _Result:
        """Do it, and note how long that took."""
        began = time.perf_counter()
        done = do()
        self.note(step, who, (time.perf_counter() - began) * 1000)
        return done

    def note(self, step: str, who: str, milliseconds: float) -> None:
        self._times.setdefault(step, {}).setdefault(who, []).append(milliseconds)

    def steps(self) -> list[str]:
        return list(self._times)

    def times(self, step: str, who: str) -> list[float]:
        return self._times[step][who]

    def figures(self, *peers: str) -> list[Figure]:
        """Give each of ours once for each peer that took the same step, then the peers."""
        return [figure for step in self._times for figure in self._of(step, peers)]

    def _of(self, step: str, peers: tuple[str, ...]) -> list[Figure]:
        times = self._times[step]
        medians = {who: statistics.median(taken) for who, taken in times.items()}
        there = [peer for peer in peers if peer in times]
        ours = [
            Figure.of(f"{step}: {who}", taken, peer=peer, peer_median=medians.get(peer))
            for peer in there or [""]
            for who, taken in times.items()
            if who not in there
        ]
        return ours + [Figure.of(f"{step}: {peer}", times[peer]) for peer in there]


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
        Figure.of(name, times, peer=peer, peer_median=None if name == peer else floor)
        for name, times in taken.items()
    ]


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Say on standard error how long the block took, so that one can see what it waits for."""
    began = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)


def disk_used(*paths: str) -> int:
    """Give the bytes that directories take on disk, as du counts them; 0 for what is not there."""
    there = [path for path in paths if os.path.exists(path)]
    if not there:
        return 0
    command = ["du", "-s", "--block-size=1", *there]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sum(int(line.split("\t")[0]) for line in told.splitlines())


def shown(title: str, figures: list[Figure]) -> str:
    """Give a table for people."""
    lines = [title]
    for figure in figures:
        value = "not measured"
        if figure.median is not None:
            value = f"{figure.median:12,.2f} {figure.unit}"
        minimum = "" if figure.minimum is None else f"  (min {figure.minimum:,.2f})"
        ratio = "" if figure.ratio is None else f"{figure.ratio:6.2f}x {figure.peer}"
        lines.append(f"  {figure.name:<52} {value}{minimum}  {ratio}{figure.note}".rstrip())
    return "\n".join(lines)
