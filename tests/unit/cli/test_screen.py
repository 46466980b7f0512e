"""Text that comes from anywhere, on a terminal of any width."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxsdk.cli.screen import Screen, cells, printable


@given(st.text(st.characters()))
def test_nothing_that_is_shown_controls_the_terminal(text: str) -> None:
    """Whatever a name holds, what is shown of it is printable, and plain text is shown as it is."""
    shown = printable(text)
    assert not shown or shown.isprintable()
    assert not text.isprintable() or shown == text


@pytest.mark.parametrize(
    ("text", "wide"), [("abc", 3), ("日本", 4), ("e\u0301", 1), ("\033[31mred\033[0m", 3), ("", 0)]
)
def test_columns_are_counted_as_a_terminal_counts_them(text: str, wide: int) -> None:
    """Wide characters take two columns, combining ones and styles none."""
    assert cells(text) == wide


@given(st.text(st.characters(categories=("L", "N", "P", "Zs"))), st.integers(4, 60))
def test_fitted_text_fits(text: str, room: int) -> None:
    """A shortened text takes no more room than there is; one that fits is left alone."""
    fitted = Screen().fit(text, room)
    assert cells(fitted) <= room
    assert cells(text) > room or fitted == text


@given(st.lists(st.text("abc/ü日\n", min_size=1), min_size=2), st.integers(30, 80))
def test_lists_of_names_fit_and_say_how_many_there_are(names: list[str], room: int) -> None:
    """A list of names that is too long ends with its length, and fits."""
    shown = Screen().names(names, room)
    assert cells(shown) <= room
    assert shown == " ".join(map(printable, names)) or shown.endswith(f"({len(names)} files)")
