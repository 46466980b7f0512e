"""How costs grow: with the size of the directory, and with the number of checkpoints."""

from __future__ import annotations

import os
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
from .measuring import Figure, Taken

LARGE = 1_000_000
_IN_ONE_DIRECTORY = 500
_MARKS = (1, 10, 50, 100, 200, 500, 1000, 2000, 5000)


class Point(NamedTuple):
    """Milliseconds of one step where there are `at` files or checkpoints."""

    step: str
    at: int
    times: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.times)


def by_size(base: str, home: Home, *, bwrap: str, rounds: int, large: bool) -> list[Point]:
    """Time the same steps on a part of the directory, on all of it, and on generated files.

    Args:
        large: generate them, a million.
    """
    with scratch_beside(home) as scratch, ExitStack() as stack:
        trees = [_part(base), base]
        if large:
            trees.append(_generated(scratch / "generated", LARGE))
        sides: list[tuple[Private, Git, Callable[[], object]]] = []
        for number, tree in enumerate(trees):
            place = scratch / str(number)
            place.mkdir()
            ours = Private(tree, home)
            stack.callback(ours.end)
            ours.keep()
            git = Git(copied(tree, place / "git"), home)
            git.keep()
            sides.append((ours, git, bare(bwrap, tree, str(place))))
        taken = {len(ours.names): Taken() for ours, *_ in sides}
        for turn in range(rounds):
            for ours, git, alone in sides:
                _steps(taken[len(ours.names)], turn, ours, git, alone)
        for ours, *_ in sides:
            for turn in range(min(rounds, 3)):
                target = str(scratch / f"copy-{turn}")
                copy = lambda f=ours.root, t=target: copied(f, Path(t))  # noqa: E731
                taken[len(ours.names)].timed("cp -a", "", copy)
                shutil.rmtree(target)
    return _points(taken)


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


def _part(base: str) -> str:
    """Give the directory below whose number of files is nearest to a tenth."""
    counts: dict[str, int] = {}
    for path, directories, names in os.walk(base, topdown=False):
        counts[path] = len(names) + sum(
            counts.get(os.path.join(path, name), 0) for name in directories
        )
    return min(counts, key=lambda path: abs(counts[path] - counts[base] / 10))


def _generated(target: Path, count: int) -> str:
    for number in range(0, count, _IN_ONE_DIRECTORY):
        directory = target / f"{number // 50_000:03}" / f"{number:07}"
        directory.mkdir(parents=True)
        for one in range(number, min(number + _IN_ONE_DIRECTORY, count)):
            (directory / f"{one:07}.txt").write_text(f"file {one}\n")
    return str(target)


def by_count(base: str, home: Home, *, bwrap: str, rounds: int, checkpoints: int) -> list[Point]:
    """Time the same steps where a task has more and more checkpoints."""
    marks = [mark for mark in _MARKS if mark < checkpoints] + [checkpoints]
    taken = {mark: Taken() for mark in marks}
    with scratch_beside(home) as scratch:
        alone = bare(bwrap, base, str(scratch))
        ours = Private(base, home)
        try:
            for mark in marks:
                grow(ours, mark)
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
    taken.timed("restore of the newest after that", "", ours.go_back)


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
