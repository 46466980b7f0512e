"""What a walk through a directory finds, and what it notices when it walks again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxsdk.cli.survey import Survey
from sandboxsdk.errors import WorkspaceInvalid


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "folder" / "inner").mkdir(parents=True)
    (root / "small").mkdir()
    (root / "top.py").write_text("self\n")
    (root / "folder" / "deep.txt").write_text("text\n")
    (root / "folder" / "inner" / "data.bin").write_bytes(bytes(1000))
    (root / "small" / "link.py").symlink_to(root / "top.py")
    return root


def test_a_walk_counts_and_finds_what_may_be_changed(tree: Path) -> None:
    """Entries, bytes, texts from the top down, and the folders at the top with what is in them."""
    survey = Survey(str(tree))
    assert (survey.entries, survey.size) == (7, 1010)
    assert survey.texts == ["top.py", "folder/deep.txt"]
    assert survey.folders == {"folder": 4, "small": 2}


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "top.py").write_text("this\n"),
        lambda tree: (tree / "folder" / "inner" / "data.bin").chmod(0o600),
        lambda tree: (tree / "small").rename(tree / "big"),
        lambda tree: (tree / "small" / "link.py").unlink(),
        lambda tree: (tree / "folder" / "new").touch(),
        lambda tree: os.utime(tree / "top.py", (1, 1)),
    ],
    ids=["write", "chmod", "rename", "remove", "add", "utime"],
)
def test_every_kind_of_change_is_noticed(tree: Path, change: Callable[[Path], object]) -> None:
    """The fingerprint of a directory differs after anything in it was changed, and only then."""
    before = Survey(str(tree))
    assert Survey(str(tree)).fingerprint == before.fingerprint
    # Times of a kernel that counts in ticks need a moment to differ.
    while _now(tree.parent) <= before.newest:
        pass
    change(tree)
    assert Survey(str(tree)).fingerprint != before.fingerprint


def _now(place: Path) -> int:
    """Ask the file system for the time."""
    (place / "clock").touch()
    return (place / "clock").stat().st_ctime_ns


def test_folders_that_a_box_cannot_empty_are_not_offered(tree: Path) -> None:
    """A folder with a read-only directory in it is not one of those that a box may remove."""
    (tree / "folder" / "inner").chmod(0o500)
    assert set(Survey(str(tree)).folders) == {"small"}


@pytest.mark.parametrize("name", ["missing", "tree/top.py"])
def test_what_is_no_directory_is_refused(tree: Path, name: str) -> None:
    """A path that cannot be walked is an error that names it."""
    with pytest.raises(WorkspaceInvalid, match=name):
        Survey(str(tree.parent / name))
