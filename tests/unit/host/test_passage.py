"""A way that many take at once: closed for a moment, and never left closed."""

from __future__ import annotations

import threading

from sandboxsdk.host import Passage


def test_who_went_through_since_a_mark_is_noticed() -> None:
    """Also who is still on the way."""
    passage = Passage()
    mark = passage.mark()
    with passage.closed(mark) as alone:
        assert alone
    with passage.passing():
        assert passage.in_use
        assert passage.mark() == -1
        with passage.closed(mark) as alone:
            assert not alone
    with passage.closed(mark) as alone:
        assert not alone
    with passage.closed(passage.mark()) as alone:
        assert alone


def test_others_wait_while_it_is_closed() -> None:
    """They go through when it opens."""
    passage, gone = Passage(), threading.Event()

    def go() -> None:
        with passage.passing():
            gone.set()

    with passage.closed(passage.mark()):
        thread = threading.Thread(target=go)
        thread.start()
        assert not gone.wait(0.05)
    assert gone.wait(10)
    thread.join()


def test_who_is_thrown_out_is_not_on_the_way_any_more() -> None:
    """An exception may come before the block has begun."""
    passage = Passage()
    block = passage.passing()
    block.__enter__()
    assert passage.in_use
    del block
    assert not passage.in_use
