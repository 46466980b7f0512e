"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxsdk.errors import UsageError
from sandboxsdk.units import format_seconds, format_size, parse_size

UNITS = {"": 1, "B": 1, "k": 1024, "KiB": 1024, "KB": 1000, "MiB": 1024**2, "M": 1024**2}
UNITS |= {"MB": 1000**2, "gib": 1024**3, "GB": 1000**3, "g": 1024**3, "TiB": 1024**4}
UNITS |= {"TB": 1000**4, "PiB": 1024**5, "PB": 1000**5}


@given(st.integers(1, 8000), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]))
def test_number_and_unit_multiply(number, unit, between):
    """A number with a unit is that many of them, with or without a space."""
    assert parse_size(f" {number}{between}{unit} ", what="x") == number * UNITS[unit]


@given(st.integers(1, 2**63 - 1))
def test_whole_number_of_bytes_is_kept_exactly(size):
    """An int comes back as it is, and so does its text."""
    assert parse_size(size, what="x") == size
    assert parse_size(str(size), what="x") == size


def test_fractions_are_cut_to_bytes():
    """Half a unit is a size."""
    assert parse_size("1.5GiB", what="x") == 3 * 512 * 1024**2
    assert parse_size("0.5kB", what="x") == 500


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "GiB", "4 XB", "4GiBB", "-1", "-4GiB", "+1", "1e3", "0", "0.1", "4,5G", "nan"),
        *("inf", "0x10", "٤GiB", "4\nGiB\n4", "1" * 5000, "9" * 60, "9" * 60 + ".5PiB", "4\0G"),
        *(0, -1, 2**63, 10**5000, True, False, None, 1.5, float("nan"), float("inf"), b"4GiB"),
        *(object(), [], {}, ["4GiB"], " " * 10**6),
    ],
    ids=lambda value: repr(value)[:20] if not isinstance(value, int) else "int",
)
def test_anything_else_is_refused_with_a_remedy(value):
    """What is no size raises UsageError, which names the setting and shows how to write one."""
    with pytest.raises(UsageError) as caught:
        parse_size(value, what="Limits.memory")
    assert str(caught.value).startswith("Limits.memory: ")
    assert "4GiB" in caught.value.hint


def test_unknown_unit_is_named():
    """The error says which unit it does not know."""
    with pytest.raises(UsageError, match="unknown unit XB"):
        parse_size("4XB", what="x")


@given(st.integers(0, 2**62))
def test_shown_size_is_near_the_true_one(size):
    """What is shown parses back to within rounding."""
    text = format_size(size)
    if size:
        assert parse_size(text, what="x") == pytest.approx(size, rel=0.06)
    else:
        assert text == "0 B"


def test_durations_have_three_digits():
    """Milliseconds below a second, whole seconds from a hundred on."""
    assert format_seconds(0.00421) == "4.21 ms"
    assert format_seconds(1.5312) == "1.53 s"
    assert format_seconds(1234.5) == "1234 s"
