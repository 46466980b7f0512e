"""What every test has: an environment of its own, and a Home when it asks for one."""

from __future__ import annotations

import itertools
import typing
import zlib
from pathlib import Path

import hypothesis
import pytest

if typing.TYPE_CHECKING:
    from sandboxsdk.home import Home

# No deadline: a shared machine is slow at times, and no assertion here is about time. No database:
# a test run leaves nothing in the tree, which may belong to somebody else.
hypothesis.settings.register_profile("sandboxsdk", deadline=None, database=None)
hypothesis.settings.load_profile("sandboxsdk")

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def clean_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Keep every test away from the user's own home: the default one is a fresh place per test."""
    fresh = tmp_path_factory.getbasetemp() / f"default-home-{next(_numbers)}"
    monkeypatch.setenv("SANDBOXSDK_HOME", str(fresh))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Give a fresh Home in a directory of this test; nothing in the environment names one."""
    from sandboxsdk.home import Home

    monkeypatch.delenv("SANDBOXSDK_HOME")
    return Home(tmp_path / "home")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Give ids that are the same in every worker, and short: no addresses, no long values."""
    text = repr(val)
    if " at 0x" in text:
        return f"{argname}-{type(val).__name__}"
    if len(text) > 60:
        return f"{argname}-{type(val).__name__}-{zlib.crc32(text.encode()):08x}"
    return None
