"""What was changed in a directory since a moment, as the kernel's times and noted names tell it."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandboxsdk import clock
from sandboxsdk.model import MovedSince
from sandboxsdk.snapshot import Captured, Moved, excluding, level, note_names, read_names
from sandboxsdk.snapshot import moved as product
from tests import trees


class Place:
    """A directory of a user, one beside it, and the moment from which on it is looked at."""

    def __init__(self, path: Path) -> None:
        self.work, self.aside = path / "work", path / "aside"
        for name in ("f", "d/g", "d/h", "e/x"):
            (self.work / name).parent.mkdir(parents=True, exist_ok=True)
            (self.work / name).write_text(name)
        (self.work / "link").symlink_to("f")
        (self.aside / "d").mkdir(parents=True)
        for name in ("g", "h", "old"):
            (self.aside / "d" / name).write_text("aside")
        fd = os.open(self.work, os.O_PATH | os.O_DIRECTORY)
        try:
            self.noted = note_names(fd, 100, None)
        finally:
            os.close(fd)
        self.since: int = clock.now_ns()
        clock.pass_tick(self.since)

    def captured(self, **rules: Any) -> Captured:
        return trees.walked(trees.Memory(), self.work, since=self.since, **rules)

    def judge(self, *, with_names: bool) -> Moved:
        assert self.noted is not None
        return Moved(self.captured().moved, read_names(self.noted) if with_names else None)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def told(place: Place, **rules: Any) -> tuple[list[str], list[tuple[str, bool]]]:
    """Give the entries, and the directories with whether their list of names is younger."""
    moved = place.captured(**rules).moved
    for path, inode, _ in moved.directories:
        assert inode == (place.work / path).stat().st_ino
    return list(moved.entries), [(path, listed) for path, _, listed in moved.directories]


# --- What a capture tells -------------------------------------------------------------------------


def test_nothing_is_told_where_nothing_changed(place):
    """Neither of what is older, nor where nobody asked."""
    assert place.captured().moved == MovedSince()
    (place.work / "f").write_text("edited")
    assert trees.walked(trees.Memory(), place.work).moved == MovedSince()


def test_what_is_younger_is_told(place):
    """Files, links and FIFOs; directories with their inode, the root with an empty path."""
    (place.work / "f").write_text("edited")
    os.mkfifo(place.work / "d" / "fifo")
    (place.work / "d" / "n").symlink_to("x")
    (place.work / "e").chmod(0o700)
    assert told(place) == (["d/fifo", "d/n", "f"], [("d", True), ("e", False)])
    (place.work / "new").mkdir()
    assert told(place)[1] == [("", True), ("d", True), ("e", False), ("new", True)]


def test_times_that_are_set_back_hide_nothing(place):
    """Nobody can set a ctime; a file's mtime that lies ahead is no change."""
    (place.work / "f").write_text("edited")
    os.utime(place.work / "f", ns=(0, 0))
    (place.work / "d" / "new").touch()
    os.utime(place.work / "d", ns=(0, 0))
    assert told(place) == (["d/new", "f"], [("d", False)])


def test_what_is_excluded_is_not_told(place):
    """It is no part of the capture."""
    for name in ("f", "d/g", "e/x"):
        (place.work / name).write_text("edited")
    (place.work / "e" / "more").touch()
    assert told(place, exclude=excluding(["e/", "f"])) == (["d/g"], [])


@pytest.mark.parametrize(("most", "size"), [(3, 1 << 18), (1000, 200)])
def test_more_than_is_told_is_said(place, monkeypatch, most, size):
    """What does not fit is not told, but that there is more is; then everything may have moved."""
    monkeypatch.setattr(product, "_ENTRIES_MAX", most)
    monkeypatch.setattr(product, "_BYTES_MAX", size)
    for number in range(20):
        (place.work / f"n{number}").touch()
    moved = place.captured().moved
    assert moved.more
    assert len(moved.entries) + len(moved.directories) <= most
    for judge in (Moved(moved, None), place.judge(with_names=True)):
        assert judge(b"e/x", True)
        assert judge(b"never", False)


def test_nothing_is_looked_up_without_a_moment():
    """Without a moment an entry costs one comparison."""
    young = product.Younger(None)
    found = os.stat("/")
    young.see(level.Level(b"", None, found), b"x", found)
    assert young.told() == MovedSince()
    assert stat.S_ISDIR(found.st_mode)


# --- What has moved -------------------------------------------------------------------------------


def edit(place: Place) -> None:
    (place.work / "d" / "g").write_text("edited")


def replace(place: Place) -> None:
    (place.work / "d" / "tmp").write_text("edited")
    (place.work / "d" / "tmp").rename(place.work / "d" / "g")


def rename_in(place: Place) -> None:
    (place.aside / "d" / "old").rename(place.work / "d" / "g")


def delete(place: Place) -> None:
    (place.work / "d" / "g").unlink()


def add(place: Place) -> None:
    (place.work / "d" / "n").touch()


def change_mode(place: Place) -> None:
    (place.work / "d" / "g").chmod(0o600)


def change_mode_of_directory(place: Place) -> None:
    (place.work / "d").chmod(0o700)


def put_directory(place: Place) -> None:
    shutil.rmtree(place.work / "d")
    (place.aside / "d").rename(place.work / "d")


def swap_directory(place: Place) -> None:
    (place.work / "d").rename(place.aside / "was")
    (place.aside / "d").rename(place.work / "d")


def remove_directory(place: Place) -> None:
    shutil.rmtree(place.work / "d")


def move_below(place: Place) -> None:
    (place.aside / "d").rename(place.work / "d" / "sub")


def add_at_the_top(place: Place) -> None:
    (place.work / "top").touch()


def relink(place: Place) -> None:
    (place.work / "link").unlink()
    (place.work / "link").symlink_to("d")


# Of each path: whether base has it, whether it has moved where names were noted, and where none
# were. What is not among them is unchanged: see UNCHANGED.
Row = tuple[str, bool, bool, bool]
ROWS: dict[Callable[[Place], None], list[Row]] = {
    edit: [("d/g", True, True, True), ("d/h", True, False, False), ("d/n", False, False, False)],
    replace: [("d/g", True, True, True), ("d/h", True, False, False), ("d/n", False, False, True)],
    rename_in: [("d/g", True, True, True), ("d/h", True, False, False)],
    delete: [
        ("d/g", False, True, True),
        ("d/g/x", False, False, True),
        ("d/h", True, False, False),
        ("d/n", False, False, True),
    ],
    add: [
        ("d/n", True, True, True),
        ("d/h", True, False, False),
        ("d", True, False, False),
        ("d/other", False, False, True),
    ],
    change_mode: [("d/g", True, True, True), ("d/h", True, False, False)],
    change_mode_of_directory: [
        ("d", True, True, True),
        ("d/g", True, False, False),
        ("d/n", False, False, False),
    ],
    put_directory: [
        ("d", True, True, True),
        ("d/g", True, True, True),
        ("d/old", True, True, True),
        ("d/n", False, True, True),
        ("f", True, False, False),
        ("n", False, False, True),
    ],
    swap_directory: [("d/g", True, True, True), ("d/n", False, True, True)],
    remove_directory: [
        ("d", False, True, True),
        ("d/g", False, True, True),
        ("n", False, False, True),
    ],
    move_below: [
        ("d/sub", True, True, True),
        ("d/sub/g", True, True, True),
        ("d/sub/n", False, True, True),
        ("d/g", True, False, False),
        ("d", True, False, False),
    ],
    add_at_the_top: [
        ("top", True, True, True),
        ("f", True, False, False),
        ("d", True, False, False),
        ("d/g", True, False, False),
        ("other", False, False, True),
    ],
    relink: [("link", True, True, True), ("f", True, False, False)],
}
UNCHANGED: list[Row] = [("e", True, False, False), ("e/x", True, False, False)]


@pytest.mark.parametrize("with_names", [True, False])
@pytest.mark.parametrize("how", ROWS, ids=lambda how: how.__name__)
def test_what_has_moved(place, how, with_names):
    """Whatever the user did before base was read: the paths that it touched have moved, those
    beside it have not.
    """
    how(place)
    judge = place.judge(with_names=with_names)
    for path, present, noted, guessed in [*ROWS[how], *UNCHANGED]:
        wanted = noted if with_names else guessed
        assert judge(path.encode(), present) is wanted, (path, present)


def test_a_new_file_elsewhere_is_the_tasks_own_where_names_are_known(place):
    """What the user does in one directory says nothing of new names in another."""
    add_at_the_top(place)
    judge = place.judge(with_names=True)
    for path in (b"e/new", b"e/new/deep", b"d/new", b"n/e/w"):
        assert not judge(path, False)


def test_an_inode_that_is_used_anew_by_another_kind_is_another(place):
    """A directory with the number of a file that is gone is not what was there."""
    inode = (place.work / "e").stat().st_ino
    since = MovedSince(directories=(("", 1, True), ("f", inode, True)))
    assert place.noted is not None
    names = read_names(place.noted)
    assert names is not None
    assert Moved(since, names)(b"f/x", True)
    assert names.was_directory(b"e", inode)
    assert not names.was_directory(b"f", (place.work / "f").stat().st_ino)
