"""What a restore gave up, removed while nobody waits for it."""

from __future__ import annotations

import _thread
import os
from pathlib import Path

import pytest

from sandboxsdk.workspace import removing
from sandboxsdk.workspace.removing import await_removal, begin_removal, remove_scratch


def fill(place: Path, name: str, count: int = 300) -> str:
    for number in range(count):
        (place / name / f"{number % 7}").mkdir(parents=True, exist_ok=True)
        (place / name / f"{number % 7}" / f"{number}").write_text("x")
    return name


def test_what_was_begun_is_removed(tmp_path):
    """After the wait it is gone, and nothing else is; nothing is left open or noted down."""
    names = [fill(tmp_path, "upper-a"), fill(tmp_path, "work-b")]
    fill(tmp_path, "upper")
    descriptors = len(os.listdir("/proc/self/fd"))
    begin_removal(str(tmp_path), names)
    begin_removal(str(tmp_path), [fill(tmp_path, "upper-c")])
    await_removal(str(tmp_path))
    assert os.listdir(tmp_path) == ["upper"]
    await_removal(str(tmp_path))
    assert not removing._removals
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_two_may_remove_the_same(tmp_path):
    """Whoever comes to a name that is gone, or is going, goes on."""
    names = [fill(tmp_path, f"upper-{number}", 2000) for number in range(3)]
    begin_removal(str(tmp_path), names)
    task = os.open(tmp_path, os.O_PATH)
    try:
        remove_scratch(task, names)
    finally:
        os.close(task)
    await_removal(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_gone_is_nobodys_failure(tmp_path):
    """The task may be deleted meanwhile."""
    begin_removal(str(tmp_path / "missing"), ["upper-a"])
    await_removal(str(tmp_path / "missing"))


def test_without_a_thread_it_is_done_at_once(tmp_path, monkeypatch):
    """Where no thread can be had, who begins it does it."""

    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    begin_removal(str(tmp_path), [fill(tmp_path, "upper-a")])
    assert os.listdir(tmp_path) == []
    assert not removing._removals


@pytest.mark.parametrize("starts", [False, True])
def test_an_interrupt_of_the_start_leaves_nothing_to_wait_for(tmp_path, monkeypatch, starts):
    """Whether the thread came to run or not, nobody waits for ever."""

    def interrupt(run, _arguments):
        if starts:
            run()
        raise KeyboardInterrupt

    monkeypatch.setattr(_thread, "start_new_thread", interrupt)
    with pytest.raises(KeyboardInterrupt):
        begin_removal(str(tmp_path), [fill(tmp_path, "upper-a")])
    await_removal(str(tmp_path))
    assert not removing._removals
    assert (os.listdir(tmp_path) == []) is starts
