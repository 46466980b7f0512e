"""What an upper lies over: written whole, and never believed when it is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxsdk.layers import (
    FILE,
    NOTHING,
    Stack,
    Torn,
    belongs,
    forget_stack,
    mark_upper,
    read_stack,
    unmark_upper,
    write_stack,
)

STACK = Stack(
    id="now",
    previous="before",
    bottom=b"b" * 32,
    tree=b"t" * 32,
    files=7,
    size=9,
    layers=("one", "two"),
    disk_bytes=11,
)


@pytest.fixture
def task(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_what_was_written_is_read(task: int) -> None:
    """Where nothing was written nothing lies below; the last one counts."""
    assert read_stack(task) is NOTHING
    write_stack(task, STACK)
    assert read_stack(task) == STACK
    write_stack(task, Stack(id="later"))
    assert read_stack(task) == Stack(id="later")
    forget_stack(task)
    forget_stack(task)
    assert read_stack(task) is NOTHING


def test_every_damage_is_noticed(task: int, tmp_path: Path) -> None:
    """Cut anywhere, and with any bit turned, it is torn: nobody lays files over a wrong tree."""
    write_stack(task, STACK)
    whole = (tmp_path / FILE).read_bytes()
    broken = [whole[:length] for length in range(len(whole))]
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        broken.append(bytes(flipped))
    for data in [*broken, whole + b"x"]:
        (tmp_path / FILE).write_bytes(data)
        with pytest.raises(Torn):
            read_stack(task)


def test_what_stands_in_its_place_is_no_stack(task: int, tmp_path: Path) -> None:
    """A link is not followed, a directory is not read, a FIFO is not waited for."""
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / FILE).symlink_to("elsewhere")
    with pytest.raises(Torn):
        read_stack(task)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    with pytest.raises(Torn):
        read_stack(task)
    (tmp_path / FILE).rmdir()
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(Torn):
        read_stack(task)


def test_an_upper_belongs_to_its_stack_or_the_one_before(tmp_path: Path) -> None:
    """Marked by hand of another stack, or unmarked over a stack, it does not."""
    upper = str(tmp_path)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    assert belongs(upper, NOTHING)
    assert belongs(upper, Stack(id="first"))  # It was made before there was any.
    assert not belongs(upper, STACK)
    for name, expected in (("now", True), ("before", True), ("other", False)):
        mark_upper(descriptor, Stack(id=name))
        assert belongs(upper, STACK) is expected
        assert not belongs(upper, NOTHING)
    unmark_upper(upper)
    assert belongs(upper, NOTHING)
    os.close(descriptor)
