"""How costs grow: with the size of the directory, and with the number of checkpoints."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from sandboxsdk.home import Home

from .bench_checkpoint import Git, Private, copied
from .bench_exec import bare
from .bench_layers import grow, scratch_beside
from .measuring import Figure, Taken, telling

_MARKS = (1, 10, 50, 100, 200, 500, 1000, 2000, 5000)
_COPIES = 3
_COPIED_OFTEN = 20_000  # files; a larger tree is copied once, which takes minutes
_COPIED_AT_ALL = 200_000  # files; of a larger tree only our own side is measured


class Point(NamedTuple):
    """Milliseconds of one step where there are `at` files or checkpoints."""

    step: str
    at: int
    times: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.times)


def by_size(trees: Sequence[str], home: Home, *, bwrap: str, rounds: int) -> list[Point]:
    """Time the same steps on trees of several sizes, in turns."""
    with scratch_beside(home) as scratch, ExitStack() as stack:
        sides: list[tuple[Taken, Private, Git | None, Callable[[], object]]] = []
        taken: dict[int, Taken] = {}
        for number, tree in enumerate(trees):
            place = scratch / str(number)
            place.mkdir()
            with telling(f"growth: first checkpoint of {tree}"):
                ours = Private(tree, home)
                stack.callback(ours.end)
                ours.keep()
            files = len(ours.names)
            times = taken[files] = Taken()
            git = None
            if files <= _COPIED_AT_ALL:
                with telling(f"growth: copies of {files:,} files, and the first `git add`"):
                    git = Git(_copies(tree, place, files, times), home)
                    git.begin()
            sides.append((times, ours, git, bare(bwrap, tree, str(place))))
        with telling(f"growth: {rounds} rounds of {len(sides)} sizes"):
            for turn in range(rounds):
                for times, ours, git, alone in sides:
                    _steps(times, turn, ours, git, alone)
        return _points(taken)


def _copies(tree: str, place: Path, files: int, times: Taken) -> str:
    """Time copying the tree; gives the one that is left."""
    kept = times.timed("cp -a", "", lambda: copied(tree, place / "git"))
    for turn in range(1, _COPIES if files <= _COPIED_OFTEN else 1):
        target = place / str(turn)
        times.timed("cp -a", "", lambda t=target: copied(tree, t))
        shutil.rmtree(target)
    return kept


def _steps(
    taken: Taken, turn: int, ours: Private, git: Git | None, alone: Callable[[], object]
) -> None:
    ours.change(2 * turn)
    taken.timed("checkpoint", "", ours.keep)
    ours.change(2 * turn + 1)
    taken.timed("restore", "", ours.go_back)
    fork = taken.timed("fork", "", lambda: ours.box.fork()[0])
    taken.timed("fork's first command", "", lambda: fork.exec(["true"], check=True))
    fork.__exit__(None, None, None)
    taken.timed("exec", "", lambda: ours.box.exec(["true"], check=True))
    taken.timed("bare bwrap", "", alone)
    if git is not None:
        git.change(turn)
        taken.timed("git add -A, write-tree", "", git.keep)


def _points(taken: dict[int, Taken]) -> list[Point]:
    steps = dict.fromkeys(step for one in taken.values() for step in one.steps())
    return [
        Point(step, at, one.times(step, ""))
        for step in steps
        for at, one in taken.items()
        if step in one.steps()
    ]


def by_count(base: str, home: Home, *, bwrap: str, rounds: int, checkpoints: int) -> list[Point]:
    """Time the same steps where a task has more and more checkpoints."""
    marks = [mark for mark in _MARKS if mark < checkpoints] + [checkpoints]
    taken = {mark: Taken() for mark in marks}
    with scratch_beside(home) as scratch:
        alone = bare(bwrap, base, str(scratch))
        ours = Private(base, home)
        try:
            for mark in marks:
                with telling(f"growth: up to {mark:,} checkpoints"):
                    grow(ours, mark)
                    if mark > 1:
                        _first_and_back(taken[mark], ours)
                    for turn in range(rounds):
                        _steps(taken[mark], mark + turn, ours, None, alone)
        finally:
            ours.end()
    return _points(taken)


def _first_and_back(taken: Taken, ours: Private) -> None:
    """Go to the oldest checkpoint and to the newest again."""
    *_, first = ours.task.checkpoints()
    back = lambda: ours.box.restore(first, save_current=False)  # noqa: E731
    taken.timed("restore of the oldest", "", back)
    taken.timed("restore of the newest", "", ours.go_back)


def figures(points: list[Point], unit: str) -> list[Figure]:
    """Give points as figures, with ratios to the smallest of each step."""
    found = []
    for point in points:
        smallest = min((one for one in points if one.step == point.step), key=lambda one: one.at)
        name, peer = f"{point.step}: {point.at:,} {unit}", f"that of {smallest.at:,}"
        peer_median = None if point is smallest else smallest.median
        found.append(Figure.of(name, point.times, peer=peer, peer_median=peer_median))
    return found


def git_ratios(points: list[Point], peer: str = "git add -A, write-tree") -> list[Figure]:
    """Give our checkpoints again, with ratios to git at the same size."""
    theirs = {point.at: point.median for point in points if point.step == peer}
    return [
        Figure.of(f"checkpoint: {p.at:,} files", p.times, peer=peer, peer_median=theirs[p.at])
        for p in points
        if p.step == "checkpoint" and p.at in theirs
    ]
