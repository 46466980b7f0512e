"""The pytest plugin of sandboxsdk.

It loads in every test run of its environment, so it imports pytest alone.

So far it only makes the marker `sandbox` known; the fixtures come with a later release.
"""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, so that a suite with `--strict-markers` may use it."""
    config.addinivalue_line("markers", "sandbox(**options): settings of the test's sandbox")
