"""kill -9 before each system call that matters: what was acknowledged is there, the next open needs
no command, and the same call succeeds.

`SANDBOXSDK_CRASH_POINTS=all` tries every call; else those that change something are all tried, and
of the others some.
"""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from .boxes import BoxStage, check_box
from .killing import Point, Server, count, serving
from .stage import OPERATIONS, Stage, Told, check_all, clear, quick_place

# Between two of these nothing on disk has changed that would matter.
_HARMLESS = {"fcntl", "openat", "openat2", "flock"}
_HARMLESS_TRIED = 8
# Operation: how many tests share its points, and how many points it has at least.
SHARES = {
    "create": (1, 25),
    "delete_task": (1, 20),
    "checkpoint": (2, 75),
    "checkpoints": (2, 50),
    "restore": (4, 100),
    "restore_to": (2, 60),
    "tag": (1, 20),
    "delete": (1, 15),
    "gc": (4, 95),
    "repair": (2, 50),
}
_OPEN_SECONDS = 0.2


@pytest.fixture
def room(tmp_path) -> Iterator[Path]:
    """Give a directory in memory, or elsewhere if there is none."""
    place = quick_place(tmp_path)
    yield place
    clear(place)


def _points(counted: dict[tuple[int, str], int]) -> list[Point]:
    """Give the points at which an operation is killed, in an order that mixes kinds."""
    points = []
    for (thread, call), number in sorted(counted.items()):
        numbers = list(range(1, number + 1))
        if call in _HARMLESS and os.environ.get("SANDBOXSDK_CRASH_POINTS") != "all":
            numbers = _spread(numbers, _HARMLESS_TRIED)
        points += [Point(thread, call, n) for n in numbers]
    return points


def _spread(found: list, most: int) -> list:
    """Take at most so many of a list, evenly."""
    if len(found) <= most:
        return found
    return [found[at * len(found) // most] for at in range(most)]


def _measured(
    stage: Stage, operation: str, log: Path
) -> tuple[dict[tuple[int, str], int], dict[str, int]]:
    """Run an operation to its end once, from what is there now, and count its calls."""
    with serving({}, log=log) as server:
        status, told = server.run(operation, stage)
    assert status == 0, told
    return count(log)


def _killed(server: Server, operation: str, stage: Stage, point: Point) -> tuple[bool, Told]:
    status, told = server.run(operation, stage, point)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, f"{point}: {status} {told}"
    return killed, Told(operation, told)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "share"),
    [(name, share) for name, (shares, _) in SHARES.items() for share in range(shares)],
    ids=str,
)
def test_a_kill_before_a_call_loses_nothing(name, share, tmp_path, room):
    """A process killed at any moment leaves a home in which everything acknowledged is there and
    exact, that opens at once, and in which the same operation succeeds.
    """
    operation = OPERATIONS[name]
    stage = Stage(tmp_path, room).build(operation.kind)
    counted, limits = _measured(stage, name, tmp_path / "log")
    points = _points(counted)
    shares, at_least = SHARES[name]
    assert len(points) >= at_least, counted
    kills, times = 0, []
    with serving(limits) as server:
        for point in points[share::shares]:
            stage.reset(work=operation.touches_work)
            killed, told = _killed(server, name, stage, point)
            kills += killed
            try:
                times.append(check_all(stage, told))
            except BaseException as error:
                error.add_note(f"{name} was killed at {point}: {killed}; told {told.all}")
                raise
    print(f"{name}: {kills} kills at {len(times)} points, opening took {max(times):.3f} s at most")
    # Threads share work as they come, so not every point is met each time.
    assert kills >= len(times) * 0.8
    assert statistics.median(times) < _OPEN_SECONDS


def test_the_sweep_is_long_enough():
    """The sweep kills at 500 points at least."""
    assert sum(points for _, points in SHARES.values()) >= 500


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("first", "second"),
    [("restore", "finish"), ("checkpoint", "checkpoint"), ("gc", "gc"), ("checkpoints", "repair")],
)
def test_a_kill_during_recovery_loses_nothing(first, second, tmp_path, room):
    """A process that is killed while it recovers from an earlier kill loses nothing either."""
    operation = OPERATIONS[first]
    stage = Stage(tmp_path, room).build(operation.kind)
    counted, limits = _measured(stage, first, tmp_path / "log")
    changing = [point for point in _points(counted) if point.call not in _HARMLESS]
    begun = _spread([point for point in changing if point.call != "mkdir"], 7)
    kills = 0
    with serving(limits) as server:
        for point in begun:
            stage.reset(work=operation.touches_work)
            _, told = _killed(server, first, stage, point)
            again, more = _measured(stage, second, tmp_path / "log")
            inner = [found for found in _points(again) if found.call not in _HARMLESS]
            with serving(more) as other:
                for at in _spread(inner, 7):
                    stage.reset(work=operation.touches_work)
                    _, told = _killed(server, first, stage, point)
                    killed, then = _killed(other, second, stage, at)
                    kills += killed
                    try:
                        check_all(stage, Told(first, told.all + then.all))
                    except BaseException as error:
                        error.add_note(f"{first} was killed at {point}, then {second} at {at}")
                        raise
    print(f"{first}, then {second}: {kills} double kills")
    assert kills >= 20


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["box_checkpoint", "box_restore"])
def test_a_kill_of_whoever_has_a_box_loses_nothing(name, tmp_path):
    """When the owner of a box with a private workspace is killed, entering it again finds every
    checkpoint, and files as they were or as they should be.
    """
    stage = BoxStage(tmp_path, tmp_path).build("box")
    counted, limits = _measured(stage, name, tmp_path / "log")
    changing = [point for point in _points(counted) if point.call not in _HARMLESS]
    kills = 0
    with serving(limits) as server:
        for point in _spread(changing, 8):
            stage.reset()
            killed, told = _killed(server, name, stage, point)
            kills += killed
            try:
                check_box(stage, told)
            except BaseException as error:
                error.add_note(f"{name} was killed at {point}; told {told.all}")
                raise
    print(f"{name}: {kills} kills of {len(changing)} possible points")
    assert kills >= 5
