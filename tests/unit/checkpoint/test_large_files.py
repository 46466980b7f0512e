"""Files that are stored in parts are told apart by what they hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxsdk import Home, Task, Workspace

LENGTH = 6_000_000


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "large").write_bytes(os.urandom(LENGTH))
    with open(tmp_path / "work" / "sparse", "wb") as file:
        file.truncate(LENGTH)
    return tmp_path / "work"


def test_a_large_file_that_keeps_its_size_is_modified(place: Path, home: Home) -> None:
    """What is there now is in no store yet, and need not be to be told from what was."""
    task = Task.create("t", workspace=Workspace.direct(place), home=home)
    with task.attach():
        made = task.checkpoint_history().take("a")
        for name in ("large", "sparse"):
            with open(place / name, "r+b") as file:
                file.seek(LENGTH // 2)
                file.write(b"y")
        assert [(change.kind, change.path) for change in task.diff(made)] == [
            ("modified", "large"),
            ("modified", "sparse"),
        ]


def test_a_hole_that_is_filled_with_zeros_is_no_change(place: Path, home: Home) -> None:
    """Once both are in the store, bytes count, and not how they lie on disk."""
    task = Task.create("t", workspace=Workspace.direct(place), home=home)
    with task.attach():
        first = task.checkpoint_history().take("a")
        (place / "sparse").write_bytes(bytes(LENGTH))
        second = task.checkpoint_history().take("b")
        assert first.tree != second.tree
        assert task.diff(first, second) == []
