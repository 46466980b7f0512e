"""The gate: who waits for whom."""

from __future__ import annotations

import threading

import pytest

from sandboxsdk.errors import UsageError
from sandboxsdk.runtime.gate import Gate


class Box:
    """Counts how often its gate settled."""

    def __init__(self):
        self.settled = 0
        self.gate = Gate("a box", self._settle)

    def _settle(self):
        self.settled += 1


def test_starts_wait_for_the_end_of_the_block():
    """A start of another thread gets through as soon as the outermost block is left, not before."""
    box = Box()
    through = threading.Event()

    def start():
        with box.gate.starting():
            through.set()

    with box.gate.shut(), box.gate.shut():
        thread = threading.Thread(target=start)
        thread.start()
        assert not through.wait(0.1)
        assert box.settled == 0
    assert through.wait(20)
    thread.join()
    assert box.settled == 1


def test_who_shut_it_would_wait_for_ever():
    """A start inside one's own block is refused, and so is a block that must be the first."""
    box = Box()
    with box.gate.shut():
        with pytest.raises(UsageError, match="frozen"), box.gate.starting():
            pass
        with pytest.raises(UsageError, match="frozen"), box.gate.shut(again=False):
            pass
    with box.gate.shut(again=False), box.gate.shut():
        pass
    with box.gate.starting():
        pass


def test_blocks_of_two_threads_follow_each_other():
    """A block of one thread begins after that of another, also when that one fails."""
    box = Box()
    order = []

    def shut():
        with box.gate.shut():
            order.append("second")

    with pytest.raises(KeyError), box.gate.shut():
        thread = threading.Thread(target=shut)
        thread.start()
        thread.join(0.1)
        order.append("first")
        raise KeyError
    thread.join()
    assert order == ["first", "second"]


def test_changes_settle_at_once_or_at_the_end():
    """A change waits for nobody; what it means is settled at once, or when the block is left."""
    box = Box()
    with box.gate.changing():
        assert box.settled == 0
    assert box.settled == 1
    with box.gate.shut():
        with box.gate.changing():
            pass
        assert box.settled == 1
    assert box.settled == 2
