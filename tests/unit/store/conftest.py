"""A store in a directory of the test, and what it was asked to write."""

from __future__ import annotations

import pytest

from sandboxsdk import disk
from sandboxsdk.store import BLOB, Store


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "store")


@pytest.fixture
def opened(path):
    """Open stores on the directory of this test; they are closed at its end."""
    stores = []

    def opening(**options):
        stores.append(Store(path, **options))
        return stores[-1]

    yield opening
    for store in stores:
        store.close()


@pytest.fixture
def store(opened):
    return opened()


@pytest.fixture
def calls(monkeypatch):
    """What was asked of the disk, by name, in order."""
    seen = []
    monkeypatch.setattr(disk, "watcher", lambda call, _: seen.append(call))
    return seen


def stored(store, *contents, kind=BLOB):
    """Commit some objects; gives their digests."""
    with store.writing() as writer:
        digests = [writer.add(kind, content) for content in contents]
        writer.commit()
    return digests
