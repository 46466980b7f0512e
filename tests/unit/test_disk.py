"""The one place through which everything that must last is written."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxsdk import disk
from sandboxsdk.errors import Denied, HostFull, HostRefused


@pytest.fixture
def place(tmp_path: Path) -> Iterator[int]:
    """Give a descriptor of an empty directory."""
    fd = disk.open_directory(str(tmp_path))
    yield fd
    os.close(fd)


@pytest.fixture
def calls() -> Iterator[list[str]]:
    """Give what the watcher was told."""
    told: list[str] = []
    disk.watcher = lambda call, arguments: told.append(call)
    yield told
    disk.watcher = None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_as_such(code: int) -> None:
    """Full disks and used up quotas are HostFull, and the path is named."""
    with (
        pytest.raises(HostFull, match="/some/where") as caught,
        disk.translated("x", "/some/where"),
    ):
        raise OSError(code, os.strerror(code))
    assert caught.value.hint


def test_other_refusals_say_what_was_done() -> None:
    """Any other error of the host is HostRefused with the operation, the path and the reason."""
    with pytest.raises(HostRefused) as caught, disk.translated("write to", "/p"):
        raise OSError(errno.EIO, "Input/output error")
    assert "write to" in str(caught.value)
    assert "/p" in str(caught.value)
    assert "Input/output error" in str(caught.value)
    with pytest.raises(HostRefused, match="odd"), disk.translated("write to", "/p"):
        raise OSError("odd")


def test_our_own_errors_stay_what_they_are() -> None:
    """Some of ours are OSErrors too, and say more."""
    with pytest.raises(Denied), disk.translated("x", "/p"):
        raise Denied(path="/p", reason="no")
    with pytest.raises(ValueError, match="x"), disk.translated("x", "/p"):
        raise ValueError("x")


def test_nothing_is_made_over_something(place: int, tmp_path: Path) -> None:
    """A new file takes no name that is taken, not even by a link that leads nowhere."""
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").write_text("x")
    for name in ("link", "file"):
        with pytest.raises(FileExistsError):
            disk.create(name, dir_fd=place)
        with pytest.raises(FileExistsError):
            disk.make_directory(name, dir_fd=place)
    (tmp_path / "target").mkdir()
    (tmp_path / "way").symlink_to("target")
    with pytest.raises(OSError, match="Not a directory"):
        disk.open_directory("way", dir_fd=place)
    assert not (tmp_path / "nowhere").exists()


def test_writing_is_finished(place: int, tmp_path: Path) -> None:
    """All bytes are written, at the offset, and the offset behind them is given."""
    fd = disk.create("f", 0o640, dir_fd=place)
    try:
        assert disk.write(fd, b"abc", 2) == 5
        assert disk.write(fd, memoryview(b"xy"), 5) == 7
        assert disk.write(fd, b"", 7) == 7
        disk.truncate(fd, 6)
        disk.sync_data(fd)
        disk.sync(fd)
        disk.write_out(fd)
    finally:
        os.close(fd)
    assert (tmp_path / "f").read_bytes() == b"\0\0abcx"


def test_names_change(place: int, tmp_path: Path) -> None:
    """Renaming replaces, exchanges, or refuses to replace."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        disk.rename_new(b"a", b"b", old_dir=place, new_dir=place)
    disk.exchange(b"a", b"b", first_dir=place, second_dir=place)
    assert (tmp_path / "a").read_text() == "b"
    disk.rename_new(b"a", b"c", old_dir=place, new_dir=place)
    disk.rename("c", "b", old_dir=place, new_dir=place)
    assert os.listdir(tmp_path) == ["b"]
    disk.make_hard_link("b", "d", old_dir=place, new_dir=place)
    assert (tmp_path / "b").stat().st_nlink == 2
    disk.remove("d", dir_fd=place)
    disk.make_directory("e", dir_fd=place)
    disk.remove_directory("e", dir_fd=place)
    assert os.listdir(tmp_path) == ["b"]


def test_metadata_is_set_on_what_is_open(place: int, tmp_path: Path) -> None:
    """Modes without set-id bits and times, also through O_PATH, and never of a link's target."""
    (tmp_path / "f").write_text("x")
    disk.make_link("f", "link", dir_fd=place)
    disk.make_fifo("fifo", dir_fd=place)
    for name, path_only in (("f", False), ("f", True), ("fifo", True)):
        fd = os.open(name, os.O_PATH if path_only else os.O_RDONLY, dir_fd=place)
        try:
            disk.set_mode(fd, 0o6751, path_only=path_only)
            disk.set_owner(fd, os.geteuid(), os.getegid(), path_only=path_only)
            disk.set_times(fd, 1_000_000_001, path_only=path_only)
        finally:
            os.close(fd)
        found = (tmp_path / name).stat()
        assert stat.S_IMODE(found.st_mode) == 0o751
        assert found.st_mtime_ns == 1_000_000_001
    disk.set_times_of_entry("link", 5, dir_fd=place)
    assert os.lstat(tmp_path / "link").st_mtime_ns == 5
    assert (tmp_path / "f").stat().st_mtime_ns == 1_000_000_001


def test_attributes(place: int, tmp_path: Path) -> None:
    """They are set and removed, where the file system has them."""
    (tmp_path / "f").write_text("x")
    fd = os.open("f", os.O_RDONLY, dir_fd=place)
    try:
        disk.set_attribute(fd, b"user.note", b"\0\xff")
        assert os.getxattr(tmp_path / "f", "user.note") == b"\0\xff"
        disk.remove_attribute(fd, "user.note")
        assert "user.note" not in os.listxattr(tmp_path / "f")
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
    finally:
        os.close(fd)


def test_a_file_is_replaced_whole(place: int, tmp_path: Path, calls: list[str]) -> None:
    """The content is on disk before it has the name, and the name when it returns."""
    disk.replace("f", b"new", dir_fd=place, durable=True)
    assert calls == ["create", "write", "sync_data", "rename", "sync"]
    calls.clear()
    disk.replace("f", b"newer", dir_fd=place, durable=False)
    assert calls == ["create", "write", "rename"]
    assert (tmp_path / "f").read_bytes() == b"newer"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("bad", ["create", "write", "sync_data", "rename"])
def test_a_failed_replacement_leaves_the_old_file(place: int, tmp_path: Path, bad: str) -> None:
    """Whatever call fails, the old content has the name, and nothing else is left."""

    def fail(call: str, arguments: object) -> None:
        if call == bad:
            raise OSError(errno.EIO, "injected")

    disk.replace("f", b"old", dir_fd=place, durable=True)
    before = set(os.listdir("/proc/self/fd"))
    disk.watcher = fail
    try:
        with pytest.raises(OSError, match="injected"):
            disk.replace("f", b"new", dir_fd=place, durable=True)
    finally:
        disk.watcher = None
    assert (tmp_path / "f").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]
    # Those that other tests have left may go at any time.
    assert set(os.listdir("/proc/self/fd")) <= before


def test_copies_keep_holes(place: int, tmp_path: Path) -> None:
    """Content is copied, holes take no space, and a file that has shrunk is no error."""
    data = os.urandom(100_000)
    with open(tmp_path / "a", "wb") as file:
        file.truncate(50 << 20)
        for offset in (0, 20 << 20, (50 << 20) - len(data)):
            file.seek(offset)
            file.write(data)
    source = os.open(tmp_path / "a", os.O_RDONLY)
    target, longer = disk.create("b", dir_fd=place), disk.create("c", dir_fd=place)
    try:
        disk.copy(target, source, 50 << 20)
        disk.copy(longer, source, 60 << 20)
    finally:
        for fd in (source, target, longer):
            os.close(fd)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert (tmp_path / "b").stat().st_blocks * 512 < 10 << 20
    assert (tmp_path / "c").stat().st_size == 60 << 20


def test_the_watcher_may_stop_a_call(place: int, tmp_path: Path) -> None:
    """It is told before anything happens."""

    def refuse(call: str, arguments: object) -> None:
        raise OSError(errno.EROFS, call)

    (tmp_path / "f").write_text("x")
    disk.watcher = refuse
    try:
        for call in (
            lambda: disk.create("new", dir_fd=place),
            lambda: disk.remove("f", dir_fd=place),
            lambda: disk.rename("f", "g", old_dir=place, new_dir=place),
            lambda: disk.make_directory("d", dir_fd=place),
            lambda: disk.make_link("x", "l", dir_fd=place),
            lambda: disk.make_fifo("p", dir_fd=place),
        ):
            with pytest.raises(OSError, match="Errno 30"):
                call()
    finally:
        disk.watcher = None
    assert os.listdir(tmp_path) == ["f"]
