"""What tests of whole boxes share."""

from __future__ import annotations

import itertools
import random

import pytest

_numbers = itertools.count()


@pytest.fixture
def box(home):
    """Give an entered box without a directory."""
    from sandboxsdk import Sandbox

    with Sandbox(home=home) as box:
        yield box


@pytest.fixture
def mark() -> str:
    """Give an argument of sleep that no other process of this machine has."""
    return f"9{random.SystemRandom().randrange(10**9):09}.{next(_numbers)}"
