"""Threads that share work."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time

import pytest

from sandboxsdk.store.crew import Crew


def threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def await_gone(before: set[str]) -> None:
    """What is over may still be on its way out."""
    end = time.monotonic() + 60
    while not threads() <= before:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_all_that_was_given_is_done():
    """After a wait everything is done, before the next job too; the end leaves no thread."""
    before = threads()
    done: list[int] = []
    crew = Crew(done.append, threads=3, waiting=4)
    assert not crew.at_work
    crew.wait()
    for number in range(200):
        crew.give(number)
    crew.wait()
    assert sorted(done) == list(range(200))
    crew.give(200)
    assert crew.at_work
    crew.wait()
    assert len(done) == 201
    crew.end()
    await_gone(before)


def test_no_more_is_on_its_way_than_may_be():
    """Who gives more waits."""
    going, most = [0], [0]
    guard, gate = threading.Lock(), threading.Event()

    def work(_job: int) -> None:
        gate.wait(60)

    def give() -> None:
        for number in range(20):
            crew.give(number)
            with guard:
                going[0] += 1
                most[0] = max(most[0], going[0])

    crew = Crew(work, threads=2, waiting=4)
    giver = threading.Thread(target=give)
    giver.start()
    end = time.monotonic() + 60
    while most[0] < 4:
        assert time.monotonic() < end
        time.sleep(0.001)
    time.sleep(0.05)
    assert most[0] == 4
    gate.set()
    giver.join(60)
    crew.end()
    assert most[0] == 20


def test_several_give_and_wait_at_once():
    """Whoever waits has what it gave done."""
    done: list[tuple[int, int]] = []
    crew = Crew(done.append, threads=2, waiting=3)
    wrong: list[int] = []

    def work(who: int) -> None:
        for number in range(50):
            crew.give((who, number))
            if number % 10 == 9:
                crew.wait()
                if sum(one == who for one, _ in done) < number + 1:
                    wrong.append(number)

    givers = [threading.Thread(target=work, args=(who,)) for who in range(2)]
    for giver in givers:
        giver.start()
    for giver in givers:
        giver.join(60)
    crew.end()
    assert not wrong
    assert len(done) == 100


def test_where_no_thread_can_be_had_it_is_done_at_once(monkeypatch):
    """Nothing waits for threads that do not come."""

    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    done: list[int] = []
    crew = Crew(done.append, threads=2, waiting=2)
    for number in range(10):
        crew.give(number)
    crew.wait()
    crew.end()
    assert done == list(range(10))


# Python drops an interrupt that comes into a callback of its own, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(120)
def test_an_interrupt_at_any_moment_does_not_keep_it_from_ending():
    """Ctrl-C in a wait, or while something is given: the end comes, and no thread is left."""
    before = threads()

    def ring(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    inherited = signal.signal(signal.SIGALRM, ring)
    interrupted = 0
    try:
        for turn in range(400):
            crew = Crew(lambda job: time.sleep(0.0001), threads=2, waiting=2)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + (turn % 100) * 2e-5)
                for number in range(40):
                    crew.give(number)
                crew.wait()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            crew.end()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, inherited)
    assert interrupted > 100
    await_gone(before)
