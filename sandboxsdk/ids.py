"""Identifiers: 16 characters of lower-case base32 (80 random bits), safe as file names and easy to
abbreviate.

They are random from the first character on, so that a short prefix already tells tasks apart; what
came first is said by a record's time, not by its id.
"""

from __future__ import annotations

import re
import secrets

# Crockford's alphabet: no i, l, o, u, so an id read aloud or copied by hand stays itself.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID = re.compile(f"[{_ALPHABET}]{{16}}")


def new_id() -> str:
    """Make an identifier that nothing else has."""
    bits = secrets.randbits(80)
    return "".join(_ALPHABET[bits >> shift & 31] for shift in range(75, -1, -5))


def is_id(text: str) -> bool:
    """Tell whether this is an identifier, whole and exactly."""
    return _ID.fullmatch(text) is not None
