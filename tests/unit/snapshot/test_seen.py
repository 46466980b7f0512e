"""Directories that are as they were are taken whole, and nothing that changed in one is missed."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from sandboxsdk.snapshot import StatCache
from sandboxsdk.store import TREE
from tests import trees
from tests.trees import Counting, aged


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Give four levels of directories with files and a link in them."""
    path = tmp_path / "place"
    (path / "a/b/c").mkdir(parents=True)
    (path / "other").mkdir()
    (path / "empty").mkdir()
    for name in ("f", "a/f", "a/b/f", "a/b/c/f", "a/b/c/g", "other/f"):
        (path / name).write_text(name)
    (path / "a/b/link").symlink_to("c/f")
    return path


def walk(sink: trees.Memory, place: Path, known: StatCache | None, **rules: Any) -> Any:
    """Walk with what is known; gives what was captured and what was learned."""
    learned = aged()
    return trees.walked(sink, place, known=known, learned=learned, **rules), learned


def test_what_is_as_it_was_is_not_put_together_again(place):
    """A walk through what did not change gives the same, and puts no directory together."""
    sink = Counting(TREE)
    first, known = walk(sink, place, None)
    assert set(known._seen) == {b"", b"a", b"a/b", b"a/b/c", b"other", b"empty"}
    taken = sink.taken
    again, learned = walk(sink, place, known)
    assert again == first
    assert sink.taken == taken
    assert learned._seen == known._seen


def test_what_lies_above_a_change_is_put_together(place):
    """Of a file that is changed in place, its directory and those above it are stored anew."""
    sink = Counting(TREE)
    _, known = walk(sink, place, None)
    (place / "a/b/c/g").write_text("changed")
    taken = sink.taken
    again, learned = walk(sink, place, known)
    assert again == trees.walked(trees.Memory(), place)
    assert sink.taken - taken == 4
    assert learned._seen[b"other"] is known._seen[b"other"]
    # And what was learned then holds as well.
    taken = sink.taken
    assert walk(sink, place, learned)[0] == again
    assert sink.taken == taken


def replaced(path: Path, new: Path) -> None:
    os.rename(path, path.with_name("gone"))
    os.rename(new, path)


EDITS = {
    "a new name": lambda p: (p / "a/b/new").write_text("new"),
    "a name less": lambda p: (p / "a/b/f").unlink(),
    "another name": lambda p: os.rename(p / "a/b/f", p / "a/b/h"),
    "names that trade places": lambda p: (
        os.rename(p / "a/b/c/f", p / "x"),
        os.rename(p / "a/b/c/g", p / "a/b/c/f"),
        os.rename(p / "x", p / "a/b/c/g"),
    ),
    "a new directory": lambda p: (p / "a/b/new").mkdir(),
    "a directory less": lambda p: (p / "empty").rmdir(),
    "a directory with all below it less": lambda p: shutil.rmtree(p / "a/b"),
    "another directory in its place": lambda p: replaced(p / "a/b", p / "other"),
    "a copy in its place": lambda p: (
        shutil.copytree(p / "a/b", p / "copy", symlinks=True),
        replaced(p / "a/b", p / "copy"),
    ),
    "a file in place of a directory": lambda p: (
        (p / "empty").rmdir(),
        (p / "empty").write_text("file"),
    ),
    "a link in place of a directory": lambda p: replaced(p / "a/b/c", p / "a/b/link"),
    "a directory in place of a file": lambda p: ((p / "a/f").unlink(), (p / "a/f").mkdir()),
    "another target": lambda p: (
        (p / "a/b/link").unlink(),
        (p / "a/b/link").symlink_to("c/g"),
    ),
    "the mode of a directory": lambda p: (p / "a/b").chmod(0o700),
    "the time of a directory": lambda p: os.utime(p / "a/b", ns=(5, 5)),
    "an attribute of a directory": lambda p: os.setxattr(p / "a/b", "user.a", b"1"),
    "the mode of a file": lambda p: (p / "a/b/c/f").chmod(0o600),
    "an attribute of a file": lambda p: os.setxattr(p / "a/b/c/f", "user.a", b"1"),
    "a second name in another directory": lambda p: os.link(p / "a/b/c/f", p / "other/new"),
    "a second name outside": lambda p: os.link(p / "a/b/c/f", p.parent / "outside"),
    "a pipe": lambda p: os.mkfifo(p / "a/b/pipe"),
}


@pytest.mark.parametrize("put_back", [False, True])
@pytest.mark.parametrize("edit", EDITS)
def test_no_edit_of_a_directory_is_missed(place, edit, put_back):
    """An edit is seen, also where all times are set back after it, and so is taking it back."""
    sink = trees.Memory()
    known = walk(sink, place, None)[1]
    times = {path: os.stat(path) for path in (place, *place.rglob("*")) if not path.is_symlink()}
    for path in times:
        assert edit == "a link in place of a directory" or path.exists()
    EDITS[edit](place)
    if put_back:
        for path, was in times.items():
            if path.exists() and not path.is_symlink():
                os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    fresh = trees.walked(sink, place)
    got, learned = walk(sink, place, known)
    assert got == fresh
    assert walk(sink, place, learned)[0] == fresh
    # What it does not name has to be put together from what is remembered.
    (place / "a/later").mkdir(parents=True, exist_ok=True)
    assert walk(sink, place, learned)[0] == trees.walked(sink, place)


def test_what_has_no_place_in_memory_keeps_its_directory_from_it(place):
    """Sockets, files of several names and pipes are looked at each time, and told each time."""
    os.mknod(place / "a/socket", stat.S_IFSOCK | 0o600)
    os.link(place / "other/f", place / "other/g")
    sink = trees.Memory()
    first, known = walk(sink, place, None)
    assert first.skipped == ("a/socket",)
    assert b"a" not in known._seen
    again, _ = walk(sink, place, known)
    assert again == first == trees.walked(sink, place)


def test_a_name_that_is_gone_when_it_is_its_turn(place, monkeypatch):
    """A directory that goes between the look at the one above it and its turn is not there."""
    sink = trees.Memory()
    _, known = walk(sink, place, None)
    real = StatCache.unchanged

    def unchanged(self: StatCache, path: bytes, *more: Any) -> Any:
        found = real(self, path, *more)
        if path == b"a" and (place / "a/b").exists():
            shutil.rmtree(place / "a/b")
        return found

    monkeypatch.setattr(StatCache, "unchanged", unchanged)
    got, learned = walk(sink, place, known)
    monkeypatch.undo()
    found = trees.nodes(sink, got.tree)
    assert {path for path in found if path.startswith(b"a/")} == {b"a/f"}
    assert walk(sink, place, learned)[0] == trees.walked(sink, place)


def test_what_is_excluded_is_told_each_time(place):
    """A directory with something in it that a rule excludes is listed again."""
    sink = trees.Memory()

    def exclude(path: bytes, is_directory: bool) -> bool:  # noqa: FBT001
        return path.endswith((b".log", b"other"))

    (place / "a/b/x.log").write_text("1")
    first, known = walk(sink, place, None, exclude=exclude)
    assert set(known._seen) == {b"a", b"a/b/c", b"empty"}
    (place / "a/b/y.log").write_text("new")
    again, _ = walk(sink, place, known, exclude=exclude)
    assert set(again.excluded) - set(first.excluded) == {b"a/b/y.log"}
    assert again == trees.walked(sink, place, exclude=exclude)


def test_another_generation_puts_every_directory_together(place, tmp_path):
    """Where objects may have gone, no directory is taken for stored."""
    _, known = walk(trees.Memory(), place, None)
    fd = os.open(tmp_path, os.O_RDONLY)
    known.save("scan", fd)
    same = StatCache.load("scan", fd, generation="g", has=set)
    other = StatCache.load("scan", fd, generation="h", has=set)
    os.close(fd)
    assert same._seen == known._seen
    assert not other._seen
    sink = Counting(TREE)
    walk(sink, place, other)
    assert sink.taken == 6
