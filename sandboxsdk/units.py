"""Sizes as people write them, and back. Pure."""

from __future__ import annotations

import re

from .errors import UsageError

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([A-Za-z]*)")
_TEXT_LENGTH_MAX = 64
_FACTORS = {
    "": 1,
    "b": 1,
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgtp", 1)},
    # Plain K, M, G are taken as binary, as Docker and the kernel's own interfaces take them.
    **{letter: 1024**power for power, letter in enumerate("kmgtp", 1)},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgtp", 1)},
}
_SIZE_MAX = 2**63 - 1


def parse_size(value: int | str, *, what: str) -> int:
    """Give a number of bytes: "4GiB" (1024-based), "4GB" (1000-based), "4g" (1024-based) or an int.

    Raises:
        UsageError: not a size, negative, zero, or beyond 2**63.
    """
    hint = 'write an int of bytes, or a number with a unit: "512MiB", "4GiB", "10GB"'
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UsageError(what=what, value=value, reason="is not a size", hint=hint)
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip()) if len(value) <= _TEXT_LENGTH_MAX else None
        if match is None:
            raise UsageError(what=what, value=value, reason="is not a size", hint=hint)
        factor = _FACTORS.get(match[2].lower())
        if factor is None:
            raise UsageError(what=what, value=value, reason=f"unknown unit {match[2]}", hint=hint)
        size = int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor
    else:
        size = value
    if not 0 < size <= _SIZE_MAX:
        raise UsageError(
            what=what, value=value, reason="must be above 0 and below 2**63", hint=hint
        )
    return size


def format_size(size: int) -> str:
    """Give a size in the largest binary unit that keeps it above 1."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if amount < 1024 or unit == "PiB":
            return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError(size)


def format_seconds(seconds: float) -> str:
    """Give a duration with three significant digits: 4.21 ms, 1.53 s."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"
