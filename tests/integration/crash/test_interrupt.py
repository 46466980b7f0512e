"""Ctrl-C in checkpoints, restores and collections: nothing half-made, nothing held."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxsdk import Task

from .failing import held_locks, interrupting, open_files
from .stage import OPERATIONS, Stage, Told, check_all, clear, opened, quick_place

_TRIED = ["checkpoint", "checkpoints", "restore", "restore_to", "gc"]
_RANDOM_MOMENTS = 60


@pytest.fixture
def room(tmp_path) -> Iterator[Path]:
    """Give a directory in memory, or elsewhere if there is none."""
    place = quick_place(tmp_path)
    yield place
    clear(place)


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Have Python's own way with SIGINT, however the tests were started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _interrupted(name: str, stage: Stage, when: contextlib.AbstractContextManager[Any]) -> Told:
    """Run an operation in which Ctrl-C is pressed; gives what it acknowledged."""
    told: list[list[Any]] = []
    with contextlib.suppress(KeyboardInterrupt):
        with when:
            OPERATIONS[name].run(stage, lambda *facts: told.append(list(facts)))
        # Pressed in another thread, it may arrive a moment later.
        for _ in range(100):
            pass
    return Told(name, told)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", _TRIED)
def test_ctrl_c_at_any_call_leaves_nothing_half_made(name, tmp_path, room):
    """Ctrl-C at any call of the disk leaves no half checkpoint, no lock and no descriptor, and the
    next call works.
    """
    operation = OPERATIONS[name]
    stage = Stage(tmp_path, room).build(operation.kind)
    counted = interrupting(1 << 40)
    _interrupted(name, stage, counted.active())
    stage.reset(work=operation.touches_work)
    before = open_files()
    for number in range(1, counted.calls + 1):
        stage.reset(work=operation.touches_work)
        pressed = interrupting(number)
        told = _interrupted(name, stage, pressed.active())
        try:
            gc.collect()
            assert open_files() <= before
            assert not held_locks(str(stage.home_path))
            check_all(stage, told)
        except BaseException as error:
            error.add_note(f"{name}: Ctrl-C at call {number} {pressed.hit}; told {told.all}")
            raise
    print(f"{name}: Ctrl-C at {counted.calls} calls")


# Between opening a file and keeping it somewhere, Python itself can only leave it to be closed.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", _TRIED)
def test_ctrl_c_at_any_moment_leaves_nothing_half_made(name, tmp_path, room):
    """Ctrl-C at a moment that nobody chose leaves no half checkpoint, and no lock that outlasts the
    next call, which works.
    """
    operation = OPERATIONS[name]
    stage = Stage(tmp_path, room).build(operation.kind)
    began = time.monotonic()
    _interrupted(name, stage, contextlib.nullcontext())
    length = time.monotonic() - began
    chance = random.Random(name)
    for number in range(_RANDOM_MOMENTS):
        stage.reset(work=operation.touches_work)
        moment = max(chance.random() * length, 0.0001)
        told = _interrupted(name, stage, _alarm(moment))
        try:
            gc.collect()
            if held_locks(str(stage.home_path)):
                # Python loses an interrupt that comes into one of its callbacks, and what that was
                # to do: the next use of the task in this process does it.
                with opened(stage.home_path) as home, Task.open(stage.task, home=home).attach():
                    pass
            assert not held_locks(str(stage.home_path))
            check_all(stage, told)
        except BaseException as error:
            error.add_note(f"{name}: run {number}, Ctrl-C after {moment:.4f} s; told {told.all}")
            raise


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Press Ctrl-C so many seconds after the beginning of the block, if it is not over then."""
    armed = True

    def ring(_number: int, _frame: object) -> None:
        if armed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_stage_has_no_locks(tmp_path, room):
    """The look for locks finds one that is held, and none otherwise."""
    stage = Stage(tmp_path, room).build("two")
    assert held_locks(str(stage.home_path)) == []
    from sandboxsdk import Home, Task

    with Task.open(stage.task, home=Home(stage.home_path)).attach():
        found = held_locks(str(stage.home_path))
    assert [os.path.basename(path) for path in found] == ["lease"]
