"""Whatever happens to a journal's last bytes, what was finished before stays."""

from __future__ import annotations

import contextlib
import os
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxsdk.errors import Corrupt
from sandboxsdk.journal import Journal

FACTS = st.dictionaries(st.text(max_size=5), st.integers(0, 9) | st.text(max_size=8), max_size=3)


@contextlib.contextmanager
def written(facts):
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(os.path.join(directory, "journal"))
        journal.begin("created", {})
        for data in facts:
            journal.append("noted", data)
        with open(journal.path, "rb") as file:
            yield journal, file.read()


def rewrite(journal, data):
    with open(journal.path, "wb") as file:
        file.write(data)


@settings(max_examples=60)
@given(st.lists(FACTS, max_size=4), FACTS, st.data())
def test_cut_anywhere_leaves_a_prefix(facts, more, data):
    """A file cut at any byte reads as a prefix of whole entries, and the next append follows it."""
    with written(facts) as (journal, whole):
        entries = journal.entries()
        cut = data.draw(st.integers(0, len(whole)))
        rewrite(journal, whole[:cut])
        count = whole[:cut].count(b"\n")
        assert journal.entries() == entries[:count]
        added = journal.append("noted", more)
        assert added.seq == count
        assert journal.entries() == [*entries[:count], added]
        with open(journal.path, "rb") as file:
            assert file.read().startswith(whole[: whole[:cut].rfind(b"\n") + 1])


@settings(max_examples=150)
@given(st.lists(FACTS, max_size=3), st.data())
def test_changed_byte_is_noticed(facts, data):
    """Any other byte, in the last line and its newline too, is Corrupt and names the line."""
    with written(facts) as (journal, whole):
        place = data.draw(st.integers(0, len(whole) - 1))
        flip = data.draw(st.integers(1, 255))
        rewrite(journal, whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        with pytest.raises(Corrupt) as caught:
            journal.entries()
        assert caught.value.line == whole[:place].count(b"\n") + 1


def test_every_byte_of_a_torn_line():
    """A line torn at each of its bytes is as if it had never been written."""
    with written([{"n": 1}]) as (journal, whole):
        start = whole.index(b"\n") + 1
        for cut in range(start, len(whole)):
            rewrite(journal, whole[:cut])
            assert len(journal.entries()) == 1
