"""The names below a directory, noted down and read again."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxsdk.codec import encode_msgpack
from sandboxsdk.snapshot import Exclude, Names, excluding, note_names, read_names


@pytest.fixture
def note(tmp_path):
    """Give what notes the names in the directory of this test."""

    def note(limit: int = 1000, exclude: Exclude | None = None) -> bytes | None:
        fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
        try:
            return note_names(fd, limit, exclude)
        finally:
            os.close(fd)

    return note


def read(data: bytes | None) -> Names:
    assert data is not None
    names = read_names(data)
    assert names is not None
    return names


def test_every_name_is_noted(tmp_path, note):
    """Also odd ones and those below; links are names, and nobody looks where they lead."""
    odd = b"\xff\n name"
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / os.fsdecode(odd)).touch()
    (tmp_path / "up").symlink_to("..")
    (tmp_path / "loop").symlink_to("d")
    os.mkfifo(tmp_path / "fifo")
    names = read(note())
    for path in (b"d", b"d/e", b"d/e/" + odd, b"up", b"loop", b"fifo"):
        assert path in names
    for path in (b"", b"loop/e", b"up/d", b"d/", b"x"):
        assert path not in names
    for path in (b"d", b"d/e"):
        inode = os.lstat(os.path.join(os.fsencode(tmp_path), path)).st_ino
        assert names.was_directory(path, inode)
        assert not names.was_directory(path, inode + 1)
    assert not names.was_directory(b"fifo", os.lstat(tmp_path / "fifo").st_ino)


def test_too_many_names_are_not_noted(tmp_path, note):
    """Exactly as many as are allowed are."""
    for number in range(5):
        (tmp_path / f"d{number}").mkdir()
        (tmp_path / f"d{number}" / "f").touch()
    assert note(10) is not None
    assert note(9) is None
    assert note(0) is None


def test_an_empty_directory_has_no_names(note):
    """That nothing was there is known."""
    assert b"x" not in read(note(0))


def test_what_is_excluded_is_not_noted(tmp_path, note):
    """It is not gone into, and does not count."""
    (tmp_path / "big").mkdir()
    for number in range(20):
        (tmp_path / "big" / str(number)).touch()
    (tmp_path / "f").touch()
    names = read(note(1, excluding(["big/"])))
    assert b"f" in names
    assert b"big" not in names


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_may_not_be_read_is_not_noted(tmp_path, note):
    """Half of the names would be worse than none."""
    (tmp_path / "d").mkdir(mode=0)
    assert note() is None
    (tmp_path / "d").chmod(0o700)


def test_no_descriptor_stays_open(tmp_path, note):
    """Whether it ends early or not."""
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "f").touch()
    before = set(os.listdir("/proc/self/fd"))
    for limit in (0, 1, 2, 3):
        note(limit)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_damage_is_never_an_error(tmp_path, note):
    """Cut off anywhere it is damaged; with a byte flipped it is damaged or other names."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").touch()
    data = note()
    for length in range(len(data)):
        assert read_names(data[:length]) is None
    for at in range(len(data)):
        for bit in range(8):
            flipped = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            read_names(flipped)
    assert read_names(data + b"\0") is None
    assert read_names(bytes(len(data))) is None


@pytest.mark.parametrize(
    "forged",
    [
        [],
        [[b"a"], []],
        [[], [1]],
        [[b"a"], ["1"]],
        [["a"], [1]],
        [[b"a"], [1.5]],
        {"paths": [], "inodes": []},
        None,
    ],
)
def test_what_is_no_list_of_names_is_damaged(forged):
    """Whoever wrote it."""
    assert read_names(encode_msgpack(forged)) is None


@settings(max_examples=200)
@given(data=st.binary(max_size=100))
def test_any_bytes_are_read_or_damaged(data: bytes) -> None:
    """Nothing else comes of it."""
    make: Callable[[bytes], Names | None] = read_names
    names = make(data)
    assert names is None or b"never there" not in names
