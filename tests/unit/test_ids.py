"""Identifiers are random, short and safe as names of files."""

from __future__ import annotations

import pytest

from sandboxsdk.ids import is_id, new_id


def test_new_ids_differ_from_the_first_characters_on():
    """A thousand ids are distinct, and so is nearly every beginning of five characters."""
    made = [new_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert len({one[:5] for one in made}) > 950


def test_new_ids_are_ids():
    """What is made is recognised; it has 16 characters, none easily misread."""
    for _ in range(200):
        made = new_id()
        assert is_id(made)
        assert len(made) == 16
        assert not set(made) & set("ilou")


@pytest.mark.parametrize(
    "text", ["", "a" * 15, "a" * 17, "A" * 16, "../../etc/passwd", "a" * 15 + "\n", "l" * 16]
)
def test_other_text_is_no_id(text):
    """Length, alphabet and end are checked exactly."""
    assert not is_id(text)
