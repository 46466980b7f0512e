"""The diff on uppers made by hand: every mark of the kernel, hostile trees, a moving view."""

from __future__ import annotations

import os
import resource
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sandboxsdk import syscalls
from sandboxsdk.errors import HostRefused
from sandboxsdk.model import Change
from sandboxsdk.workspace.difference import difference
from sandboxsdk.workspace.layer import Layer

_NOBODY = 65534


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Give an empty base."""
    (tmp_path / "base").mkdir()
    return tmp_path / "base"


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """Give an empty upper."""
    (tmp_path / "upper").mkdir()
    return tmp_path / "upper"


def _layer(path: Path) -> Layer:
    return Layer(os.open(path, os.O_PATH | os.O_DIRECTORY), path=str(path))


def _diff(base: Path, upper: Path) -> list[Change]:
    with _layer(base) as below, _layer(upper) as above:
        return difference(below, above)


def _told(base: Path, upper: Path) -> list[str]:
    return [f"{change.kind} {change.path}" for change in _diff(base, upper)]


def _put(path: Path, text: str = "text", mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _whiteout(path: Path) -> None:
    """Hide a name as the kernel does; since Linux 5.8 an ordinary user may."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def _mark(path: Path, name: str, value: bytes) -> None:
    os.setxattr(path, f"user.overlay.{name}", value)


def test_empty_upper_is_no_change(base: Path, upper: Path) -> None:
    """What the upper does not name is unchanged, whatever it is."""
    _put(base / "d" / "f")
    assert _told(base, upper) == []


def test_untouched_directories_are_not_read(base: Path, upper: Path) -> None:
    """The cost is that of the change: a directory without changes may as well be unreadable."""
    _put(base / "secret" / "f")
    _put(upper / "new")
    (base / "secret").chmod(0)
    try:
        assert _told(base, upper) == ["added new"]
    finally:
        (base / "secret").chmod(0o700)


def test_removed_names(base: Path, upper: Path) -> None:
    """A whiteout removes a name with all below it, each entry told; over nothing it is nothing."""
    _put(base / "f", "12345")
    _put(base / "d" / "e" / "g")
    (base / "d" / "l").symlink_to("/etc")
    for name in ("f", "d", "nothing"):
        _whiteout(upper / name)
    assert _told(base, upper) == [
        "removed d",
        "removed d/e",
        "removed d/e/g",
        "removed d/l",
        "removed f",
    ]
    assert _diff(base, upper)[-1] == Change(kind="removed", path="f", old_size=5, mode=0o644)


def test_opaque_directory_hides_the_old_one(base: Path, upper: Path) -> None:
    """What a replaced directory held is gone unless it is there again, at every depth below."""
    for name in ("same", "gone", "other", "sub/gone", "sub/same"):
        _put(base / "d" / name)
    for name in ("same", "sub/same"):
        _put(upper / "d" / name)
    _put(upper / "d" / "new", "new text")
    _put(upper / "d" / "other", "xxxx")
    _mark(upper / "d", "opaque", b"y")
    assert _told(base, upper) == [
        "removed d/gone",
        "added d/new",
        "modified d/other",
        "removed d/sub/gone",
    ]


def test_merged_directory_shows_the_old_one(base: Path, upper: Path) -> None:
    """A directory without a mark holds what the base's holds; other attributes mean nothing."""
    _put(base / "d" / "old")
    _put(upper / "d" / "new", "other text")
    _mark(upper / "d", "origin", b"y")
    _mark(upper / "d", "impure", b"y")
    assert _told(base, upper) == ["added d/new"]


def test_whiteouts_by_attribute(base: Path, upper: Path) -> None:
    """In a directory marked x, an empty file with the attribute is a whiteout; no other is."""
    for name in ("gone", "kept", "full", "emptied"):
        _put(base / "d" / name)
    for name, text in (("gone", ""), ("full", "text"), ("emptied", "")):
        _put(upper / "d" / name, text)
    for name in ("gone", "full"):
        _mark(upper / "d" / name, "whiteout", b"y")
    assert _told(base, upper) == ["modified d/emptied", "modified d/gone"]
    _mark(upper / "d", "opaque", b"x")
    assert _told(base, upper) == ["modified d/emptied", "removed d/gone"]


def test_whiteout_planted_in_the_base_is_nothing(base: Path, upper: Path) -> None:
    """Anybody can make a device 0:0; the view does not show it, so it can neither go nor change."""
    for name in ("planted", "replaced", "d/planted"):
        _whiteout(base / name)
    _whiteout(upper / "planted")
    _whiteout(upper / "d")
    _put(upper / "replaced")
    assert _told(base, upper) == ["removed d", "added replaced"]


def test_change_of_type_tells_what_was_below(base: Path, upper: Path) -> None:
    """A directory that became a file loses its entries; one that replaced a file brings its own."""
    _put(base / "d" / "e" / "f", "in the directory")
    _put(upper / "d", "a file")
    _put(base / "f")
    _put(upper / "f" / "g", "new")
    (base / "l").symlink_to("d")
    _put(upper / "l" / "e" / "f", "not behind the link")
    assert _told(base, upper) == [
        "type d",
        "removed d/e",
        "removed d/e/f",
        "type f",
        "added f/g",
        "type l",
        "added l/e",
        "added l/e/f",
    ]


def test_content_mode_and_target(base: Path, upper: Path) -> None:
    """Content is compared byte by byte to the end; same content and mode is no change."""
    big = "x" * (1 << 20)
    for name, old, new in (
        ("same", big + "a", big + "a"),
        ("last byte", big + "a", big + "b"),
        ("longer", "a", "ab"),
        ("empty", "", ""),
        ("mode", "a", "a"),
    ):
        _put(base / name, old)
        _put(upper / name, new)
    (upper / "mode").chmod(0o755)
    for name, target in (("link", "new"), ("same link", "old")):
        (base / name).symlink_to("old")
        (upper / name).symlink_to(target)
    (base / "d").mkdir(mode=0o755)
    (upper / "d").mkdir(mode=0o700)
    assert _told(base, upper) == [
        "mode d",
        "modified last byte",
        "modified link",
        "modified longer",
        "mode mode",
    ]


def test_moved_files(base: Path, upper: Path) -> None:
    """A file that went and came with the same content was renamed, whatever its mode."""
    _put(base / "old" / "f", "content")
    _put(base / "empty", "")
    _whiteout(upper / "old")
    _whiteout(upper / "empty")
    _put(upper / "new" / "f", "content", 0o755)
    _put(upper / "void", "")
    assert _told(base, upper) == [
        "removed empty",
        "added new",
        "renamed new/f",
        "removed old",
        "added void",
    ]
    assert _diff(base, upper)[2] == Change(
        kind="renamed", path="new/f", old_path="old/f", size=7, old_size=7, mode=0o755
    )


def test_nothing_but_regular_files_is_opened(base: Path, upper: Path) -> None:
    """FIFOs and sockets are compared by what they are, and nobody waits for a writer."""
    os.mkfifo(base / "fifo", 0o644)
    os.mkfifo(upper / "fifo", 0o600)
    _put(base / "was file")
    os.mkfifo(upper / "was file")
    os.mkfifo(base / "was fifo")
    _put(upper / "was fifo")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(upper, os.O_PATH)
        server.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    assert _told(base, upper) == ["mode fifo", "added socket", "type was fifo", "type was file"]


def test_links_are_never_followed(base: Path, upper: Path, tmp_path: Path) -> None:
    """A link to a directory is a link: nothing behind it is told, on either side."""
    _put(tmp_path / "outside" / "f")
    (upper / "new").symlink_to(tmp_path / "outside")
    (base / "old").symlink_to(tmp_path / "outside")
    _whiteout(upper / "old")
    assert _told(base, upper) == ["added new", "removed old"]


def test_any_name_is_told(base: Path, upper: Path) -> None:
    """Newlines and bytes that are no text come through; the order is that of the bytes."""
    names = [b"\xff", b"a\nb", b"\xf0\x9f\x98\x80", b" ", b"a-", b"a/x"]
    (upper / "a").mkdir()
    for name in names:
        (upper / os.fsdecode(name)).write_bytes(b"")
    found = [os.fsencode(change.path) for change in _diff(base, upper)]
    assert found == sorted([*names, b"a"])


@pytest.fixture
def deep() -> Iterator[Callable[[Path, int], None]]:
    """Give a maker of chains of directories with siblings at each level, and remove them."""
    made: list[tuple[Path, int]] = []

    def make(root: Path, depth: int) -> None:
        made.append((root, depth))
        here = os.open(root, os.O_RDONLY)
        for _ in range(depth):
            for name in ("d", "e"):
                os.mkdir(name, dir_fd=here)
            os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=here))
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)

    yield make
    # From the top, each level lifted out of the one above: no path is ever long.
    for root, depth in made:
        for _ in range(depth):
            (root / "e").rmdir()
            (root / "f").unlink()
            os.rename(root / "d", root / "top")
            for name in os.listdir(root / "top"):
                os.rename(root / "top" / name, root / name)
            (root / "top").rmdir()


def test_depth_is_no_limit(base: Path, upper: Path, deep: Callable[[Path, int], None]) -> None:
    """A tree 4,096 deep, far beyond any path, is told with few descriptors."""
    deep(upper, 4096)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 100, hard))
    try:
        changes = _diff(base, upper)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(changes) == 3 * 4096
    assert max(change.path.count("/") for change in changes) == 4095


def test_depth_of_the_base_is_no_limit_either(
    base: Path, upper: Path, deep: Callable[[Path, int], None]
) -> None:
    """The same for what was removed, and for a change at the bottom of both."""
    deep(base, 1500)
    deep(upper, 1500)
    assert _diff(base, upper) == []
    (upper / "f").write_text("changed")
    (upper / "d").rename(upper / "away")
    assert len(_diff(base, upper)) == 1 + 1 + 3 * 1499
    (upper / "away").rename(upper / "d")


def test_tree_without_end_is_refused(base: Path, upper: Path) -> None:
    """Paths that would fill the memory are an error with a name, not the end of the process."""
    for number in range(20):
        _put(upper / "directory" / str(number))
    with (
        _layer(base) as below,
        _layer(upper) as above,
        pytest.raises(HostRefused, match="list of changes exceeds 100 B"),
    ):
        difference(below, above, path_bytes_max=100)


def _diff_as_owner(base: Path, upper: Path) -> list[Change]:
    """Compare as the ordinary user who owns the trees, also in a test that root runs."""
    with _layer(base) as below, _layer(upper) as above:
        if os.geteuid() != 0:
            return difference(below, above)
        for path in (base, upper, *base.rglob("*"), *upper.rglob("*")):
            os.chown(path, _NOBODY, _NOBODY)
        syscalls.setfsids(_NOBODY, _NOBODY)
        try:
            return difference(below, above)
        finally:
            syscalls.setfsids(0, 0)


def test_unreadable_directory_is_an_error_with_a_remedy(base: Path, upper: Path) -> None:
    """A change must not be hidden by chmod 0: what cannot be listed is said, not left out."""
    _put(upper / "d" / "f")
    for mode in (0o000, 0o200, 0o400):
        (upper / "d").chmod(mode)
        try:
            with pytest.raises(HostRefused, match="upper/d") as caught:
                _diff_as_owner(base, upper)
            assert "chmod" in caught.value.hint
        finally:
            (upper / "d").chmod(0o700)


def test_unreadable_file_counts_as_changed(base: Path, upper: Path) -> None:
    """Content that cannot be read is never taken for the same content."""
    _put(base / "f")
    _put(upper / "f", mode=0o000)
    _put(base / "moved")
    _whiteout(upper / "moved")
    _put(upper / "to", mode=0o000)
    found = _diff_as_owner(base, upper)
    told = [(change.kind, change.path) for change in found]
    assert told == [("modified", "f"), ("removed", "moved"), ("added", "to")]


def test_descriptors_are_given_back(base: Path, upper: Path) -> None:
    """No descriptor outlives a diff, also one that fails."""
    for number in range(100):
        _put(base / str(number) / "d" / "f")
        _put(upper / str(number) / "d" / "f", str(number))
    before = len(os.listdir("/proc/self/fd"))
    assert len(_diff(base, upper)) == 100
    assert len(os.listdir("/proc/self/fd")) == before


def test_view_in_use_is_no_error(base: Path, upper: Path) -> None:
    """Names that change type or vanish between two looks crash nothing, and settle afterwards."""
    for name in ("a", "b"):
        _put(base / name / "d" / "f")
    over = threading.Event()

    def churn() -> None:
        number = 0
        while not over.is_set():
            number += 1
            name = upper / "ab"[number % 2]
            with suppress(OSError):
                _put(name / "d" / "f", "x" * (number % 5))
                (name / "d" / "f").rename(name / "g")
                (name / "d").rmdir()
                (name / "d").symlink_to("/")
                (name / "d").unlink()
                os.mkfifo(name / "d")
                (name / "d").unlink()
                (name / "g").unlink()
                _whiteout(name / "d")
                (name / "d").unlink()
                name.rmdir()
                _whiteout(name)
                name.unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(300):
            for change in _diff(base, upper):
                assert change.path.startswith(("a", "b"))
                assert not change.path.startswith(("a/d/etc", "b/d/etc"))
    finally:
        over.set()
        thread.join()
