"""A directory into a tree: every type of entry, and everything that changes meanwhile.

The stat cache and overlay's uppers have tests of their own beside this one.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sandboxsdk.errors import Denied, HostRefused, LimitExceeded
from sandboxsdk.host import Cursor, has_openat2, remove_tree
from sandboxsdk.snapshot import attributes, excluding, measure, restore_to, steady, totals_of
from sandboxsdk.snapshot import tree as t
from sandboxsdk.store import BLOB, Store
from tests import trees

ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="only root may do this")
as_user = pytest.mark.skipif(ROOT, reason="root may read everything")
TMPFS = "/dev/shm"
MOUNTING = Path(__file__).parents[2] / "programs" / "mounting.py"
# The door has a function of this name.
module = importlib.import_module("sandboxsdk.snapshot.capture")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Give an empty directory, and check that nothing stays open."""
    path = tmp_path / "place"
    path.mkdir(mode=0o755)
    before = set(os.listdir("/proc/self/fd"))
    yield path
    monkeypatch.undo()
    assert set(os.listdir("/proc/self/fd")) <= before, "descriptors leaked"
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        remove_tree(fd, b"place")
    finally:
        os.close(fd)


@pytest.fixture
def sink():
    return trees.Memory()


class Meddling(trees.Memory):
    """A sink that lets somebody act while a file's content is taken."""

    def __init__(self, act):
        super().__init__()
        self.act = act
        self.blobs = 0

    def add(self, kind, data):
        if kind == BLOB:
            self.blobs += 1
            self.act(self.blobs, data)
        return super().add(kind, data)


def below(path, *names):
    return os.path.join(os.fsencode(path), *names)


# --- Types and metadata ---------------------------------------------------------------------------


def test_an_empty_directory(place, sink):
    """A directory without entries is one object, with its own metadata."""
    place.chmod(0o1751)
    os.utime(place, ns=(5, -7_000_000_001))
    got = trees.walked(sink, place)
    assert got.totals == (0, 0)
    assert (got.skipped, got.changed, got.mounts) == ((), (), ())
    found = t.read_directory(sink, got.tree)
    assert found == t.Directory(0o1751, -7_000_000_001, os.geteuid(), os.getegid(), (), [])
    assert len(sink.objects) == 1


def test_every_type_with_its_metadata(place, sink):
    """Files, directories, links, FIFOs and sockets are told with mode, times, owner, attributes."""
    (place / "file").write_bytes(b"content")
    (place / "empty").touch()
    (place / "link").symlink_to("../nowhere/\udcff")
    os.mkfifo(place / "fifo", 0o620)
    with socket.socket(socket.AF_UNIX) as listener:
        # The path of a socket has 107 bytes, and that of a temporary directory may have more.
        with contextlib.chdir(place):
            listener.bind("s")
    (place / "d" / "e").mkdir(parents=True)
    (place / "d" / "e" / "f").write_bytes(b"x" * 10)
    for name in ("file", "d", "d/e"):
        os.setxattr(place / name, "user.b", b"\0\xff")
        os.setxattr(place / name, "user.a", b"")
    os.chmod(place / "file", 0o6751)
    os.chmod(place / "d", 0o3711)
    os.utime(place / "file", ns=(1, -(10**18) - 1))
    os.utime(place / "link", ns=(1, 123_456_789), follow_symlinks=False)
    got = trees.walked(sink, place)
    assert got.tree == trees.capture(sink, place)
    assert got.totals == (3, 17) == totals_of(sink, got.tree)
    assert got.skipped == ("s",)
    found = trees.nodes(sink, got.tree)
    assert found[b"file"].mode == 0o6751
    assert found[b"file"].mtime == -(10**18) - 1
    assert found[b"file"].attributes == ((b"user.a", b""), (b"user.b", b"\0\xff"))
    assert found[b"d"].mode == 0o3711
    assert found[b"d/e"].attributes == found[b"file"].attributes
    assert found[b"link"].content == b"../nowhere/\xff"
    assert found[b"link"].mtime == 123_456_789
    assert found[b"fifo"].kind == t.FIFO
    assert found[b"s"].kind == t.SOCKET
    assert found[b"empty"] == t.Node(
        b"empty", t.FILE, 0o644 & ~umask(), found[b"empty"].mtime, os.geteuid(), os.getegid()
    )


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


@as_root
def test_devices_and_owners(place, sink):
    """Devices are named, never opened, and told as skipped; owners are told as they are."""
    os.mknod(place / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(place / "block", 0o600 | stat.S_IFBLK, os.makedev(7, 200))
    os.mknod(place / "zero", 0o600 | stat.S_IFCHR, 0)
    (place / "f").write_bytes(b"x")
    (place / "l").symlink_to("f")
    os.chown(place / "f", 1234, 2**32 - 2)
    os.chown(place / "l", 77, 78, follow_symlinks=False)
    os.chown(place, 5, 6)
    got = trees.walked(sink, place)
    found = trees.nodes(sink, got.tree)
    assert got.skipped == ("block", "null", "zero")
    assert (found[b"null"].kind, found[b"null"].size) == (t.CHARACTER, os.makedev(1, 3))
    assert (found[b"block"].kind, found[b"block"].size) == (t.BLOCK, os.makedev(7, 200))
    assert (found[b"f"].uid, found[b"f"].gid) == (1234, 2**32 - 2)
    assert (found[b"l"].uid, found[b"l"].gid) == (77, 78)
    assert (found[b"."].uid, found[b"."].gid) == (5, 6)


def test_names_are_bytes(place, sink):
    """Newlines, escapes, bytes that are no text, and names of 255 bytes come back as they are."""
    names = [
        b"\n",
        b"a\nb",
        b"\x1b[2J",
        b"\xff\xfe",
        b"n" * 255,
        b" ",
        b"-",
        b"...",
        b"\xc3\xa4",
        b"*",
    ]
    for name in names:
        with open(below(place, name), "wb") as file:
            file.write(name)
        os.makedirs(below(place, b"d", name, name))
    got = trees.walked(sink, place)
    found = trees.nodes(sink, got.tree)
    assert all(trees.content(sink, found[name]) == name for name in names)
    assert all(found[b"d/" + name + b"/" + name].kind == t.DIRECTORY for name in names)
    assert got.tree == trees.capture(sink, place)


@pytest.mark.parametrize("mtime", [2**63 - 1, 2**63, 2**63 + 10**15, -(2**63), -(2**63) - 10**12])
def test_times_beyond_64_bits_are_the_nearest_ones(tmp_path, mtime):
    """A file of the year 2300 can be captured and read back, with the last year there is."""
    sink = trees.Memory()
    with tmpfs_directory(tmp_path) as place:
        for name in ("f", "d/g"):
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_bytes(b"x")
            os.utime(place / name, ns=(0, mtime))
        (place / "l").symlink_to("f")
        os.utime(place / "l", ns=(0, mtime), follow_symlinks=False)
        os.utime(place / "d", ns=(0, mtime))
        real = os.stat(place / "f").st_mtime_ns
        learned = trees.StatCache("g")
        got = trees.walked(sink, place, learned=learned)
        fd = os.open(tmp_path, os.O_RDONLY)
        learned.save("scan", fd)
        os.close(fd)
    expected = min(max(real, t.MTIME_MIN), t.MTIME_MAX)
    found = trees.nodes(sink, got.tree)
    assert {found[path].mtime for path in (b"f", b"d/g", b"l", b"d")} == {expected}


@contextlib.contextmanager
def tmpfs_directory(fallback: Path):
    """Give a directory on tmpfs, which keeps any time and any size, if there is one."""
    base = TMPFS if os.access(TMPFS, os.W_OK) else fallback
    path = Path(base) / f"sandboxsdk-{os.getpid()}-{random.randrange(10**9)}"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


# --- Contents -------------------------------------------------------------------------------------


def patterned(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize(
    "ranges",
    [
        [],
        [(0, 1)],
        [(1 << 20, 4096)],
        [(0, 4096), (3 << 20, 5)],
        [(0, 4096), (1 << 20, 4096), (9 << 20, 70_000)],
        [((20 << 20) - 3, 3)],
    ],
)
def test_holes_stay_holes(place, sink, ranges):
    """Of a sparse file the data is stored and the holes are told, wherever they are."""
    size = 20 << 20
    expected = bytearray(size)
    with open(place / "f", "wb") as file:
        file.truncate(size)
        for start, length in ranges:
            data = patterned(length)
            os.pwrite(file.fileno(), data, start)
            expected[start : start + length] = data
    got = trees.walked(sink, place)
    node = trees.nodes(sink, got.tree)[b"f"]
    assert got.totals == (1, size)
    assert trees.content(sink, node) == bytes(expected)
    assert node.kind == t.PARTS
    stored = sum(len(data) for kind, data in sink.objects.values() if kind == BLOB)
    assert stored <= sum((length + 8191) // 4096 * 4096 for _, length in ranges)


def test_a_file_of_8_eib(tmp_path, sink):
    """The largest file that a file system takes costs what its data costs."""
    with tmpfs_directory(tmp_path) as place:
        with open(place / "f", "wb") as file:
            file.write(b"begin")
            size = 1 << 40
            for wanted in (2**63 - 1, (1 << 44) - 4096):
                with contextlib.suppress(OSError):
                    file.truncate(wanted)
                    size = wanted
                    break
            else:
                file.truncate(size)
            os.pwrite(file.fileno(), b"end", size - 8192)
        got = trees.walked(sink, place)
        node = trees.nodes(sink, got.tree)[b"f"]
    assert node.size == size
    parts = t.read_parts(sink, node)
    assert sum(part.length for part in parts) == size
    assert sum(part.length for part in parts if part.content) <= 3 * 4096


def test_a_byte_more_in_a_large_file_costs_few_new_ones(place, tmp_path):
    """A large file is cut by its content: after an insertion most of it is known already."""
    data = patterned(20 << 20)
    (place / "f").write_bytes(data)
    store = Store(str(tmp_path / "store"))
    try:
        with store.writing() as writer:
            first = trees.walked(writer, place)
            size = writer.commit()
        assert size > 20 << 20
        (place / "f").write_bytes(data[: 5 << 20] + b"!" + data[5 << 20 :])
        with store.writing() as writer:
            second = trees.walked(writer, place)
            grown = writer.commit()
        assert grown < 5 << 20
        for got, expected in ((first, data), (second, data[: 5 << 20] + b"!" + data[5 << 20 :])):
            node = trees.nodes(store, got.tree)[b"f"]
            assert node.kind == t.PARTS
            assert trees.content(store, node) == expected
    finally:
        store.close()


@pytest.mark.parametrize("size", [1, 4095, 4 << 20, (4 << 20) + 1, 9 << 20])
def test_sizes_around_the_border_of_parts(place, sink, size):
    """Files just below and above the size where they are cut come back byte by byte."""
    (place / "f").write_bytes(data := patterned(size))
    got = trees.walked(sink, place)
    node = trees.nodes(sink, got.tree)[b"f"]
    assert trees.content(sink, node) == data
    assert node.kind == (t.FILE if size <= 4 << 20 else t.PARTS)


def test_more_parts_than_a_tree_holds_is_an_error_that_names_the_file(place, sink, monkeypatch):
    """A file in too many pieces is refused with its path."""
    monkeypatch.setattr(t, "PARTS_MAX", 1)
    (place / "d").mkdir()
    with open(place / "d" / "f", "wb") as file:
        file.truncate(8 << 20)
        os.pwrite(file.fileno(), b"x", 4 << 20)
    with pytest.raises(LimitExceeded, match=r"/w/d/f: .*parts"):
        trees.walked(sink, place, shown="/w/")


# --- Hard links -----------------------------------------------------------------------------------


def test_names_of_one_file(place, tmp_path, sink):
    """Names of one inode share a number, across directories too; a name outside does not count."""
    (place / "a").write_bytes(b"one")
    (place / "d" / "e").mkdir(parents=True)
    os.link(place / "a", place / "d" / "b")
    os.link(place / "a", place / "d" / "e" / "c")
    (place / "x").write_bytes(b"one")
    os.link(place / "x", tmp_path / "outside")
    os.mkfifo(place / "p")
    os.link(place / "p", place / "q")
    got = trees.walked(sink, place)
    found = trees.nodes(sink, got.tree)
    group = {found[path].link for path in (b"a", b"d/b", b"d/e/c")}
    assert len(group) == 1
    assert 0 not in group
    assert found[b"x"].link == 0
    assert found[b"p"].link == found[b"q"].link != 0
    assert found[b"p"].link not in group
    assert got.totals == (4, 12) == totals_of(sink, got.tree)
    assert trees.walked(trees.Memory(), place).tree == got.tree


def test_a_file_of_many_names_is_read_once(place):
    """However many names a file has, its content is read once."""
    sink = Meddling(lambda count, data: None)
    (place / "f").write_bytes(b"content")
    (place / "d").mkdir()
    for number in range(300):
        os.link(place / "f", place / "d" / str(number))
    got = trees.walked(sink, place)
    assert sink.blobs == 1
    found = trees.nodes(sink, got.tree)
    assert len({node.link for node in found.values() if node.is_file}) == 1
    assert got.totals == (301, 301 * 7)


def test_a_file_that_changes_between_its_names_stays_restorable(place, tmp_path, monkeypatch):
    """Names of one file that were read differently are told as different files, never as one."""

    def act(name):
        if name == "b":
            with open(place / "b", "ab") as file:
                file.write(b"+")

    (place / "a").write_bytes(b"one")
    for name in ("b", "c"):
        os.link(place / "a", place / name)
    sink = trees.Memory()
    with monkeypatch.context() as patch:
        Racing(patch, act, early=False)
        got = trees.walked(sink, place)
    found = trees.nodes(sink, got.tree)
    assert trees.content(sink, found[b"a"]) == b"one"
    assert trees.content(sink, found[b"b"]) == trees.content(sink, found[b"c"]) == b"one+"
    assert found[b"a"].link == 0
    assert found[b"b"].link == found[b"c"].link != 0
    assert got.totals == totals_of(sink, got.tree)
    restore_to(sink, got.tree, str(tmp_path / "out"), owners=None, durable=False)
    assert (tmp_path / "out" / "a").read_bytes() == b"one"


# --- What is refused, left out, opened up ---------------------------------------------------------


@as_user
@pytest.mark.parametrize("what", ["file", "directory", "unsearchable"])
def test_what_may_not_be_read_is_named(place, sink, what):
    """An unreadable file or directory fails with its path; excluded, it is nobody's business."""
    (place / "sub").mkdir()
    if what == "file":
        (place / "sub" / "x").write_bytes(b"secret")
        (place / "sub" / "x").chmod(0)
    else:
        (place / "sub" / "x").mkdir()
        (place / "sub" / "x" / "f").touch()
        (place / "sub" / "x").chmod(0 if what == "directory" else 0o400)
    with pytest.raises(Denied, match="/w/sub/x: may not be read") as caught:
        trees.walked(sink, place, shown="/w/")
    assert "exclude" in caught.value.hint
    got = trees.walked(sink, place, exclude=excluding(["x"]))
    assert set(trees.nodes(sink, got.tree)) == {b".", b"sub"}
    (place / "sub" / "x").chmod(0o700)


MODES = (0, 0o200, 0o111, 0o4000, 0o2000, 0o6001, 0o1000)


@as_user
def test_what_is_ours_and_closed_is_opened_up_and_closed_again(place, sink):
    """With `unlock`, files and directories of mode 000 are read, and are afterwards as before."""
    paths = {}
    inner = place
    for number, mode in enumerate(MODES):
        inner = inner / f"d{number}"
        inner.mkdir()
        (inner / "f").write_bytes(b"%d" % number)
        paths[inner], paths[inner / "f"] = mode, mode
    for path, mode in reversed(paths.items()):
        path.chmod(mode)
    got = trees.walked(sink, place, unlock=True)
    found = trees.nodes(sink, got.tree)
    for path, mode in paths.items():
        node = found[os.fsencode(path.relative_to(place))]
        assert (node.mode, str(path)) == (mode, str(path))
        if node.is_file:
            assert trees.content(sink, node) == path.parent.name[1:].encode()
        assert stat.S_IMODE(path.lstat().st_mode) == mode
        path.chmod(0o700)  # So that what is below can be looked at.


@as_user
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_what_was_opened_up_is_closed_after_an_error(place, sink, depth):
    """Whatever happens on the way, every directory has its own mode again, not another's."""
    inner = place
    modes = {}
    for number in range(depth):
        inner = inner / f"d{number}"
        inner.mkdir()
        modes[inner] = (0o000, 0o100, 0o010, 0o001)[number]
    (inner / "f").write_bytes(b"x")
    for path, mode in reversed(modes.items()):
        path.chmod(mode)

    def exclude(path, is_directory):
        if path.endswith(b"/f"):
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        trees.walked(sink, place, unlock=True, exclude=exclude)
    for path, mode in modes.items():
        assert stat.S_IMODE(path.lstat().st_mode) == mode
        path.chmod(0o700)


@as_user
@pytest.mark.parametrize("mode", [0o000, 0o100, 0o400, 0o3000])
def test_the_root_itself_is_opened_up_and_closed_again(place, sink, mode):
    """A guest may close the workspace itself: that is captured too, and put back."""
    (place / "d").mkdir()
    (place / "d" / "f").write_bytes(b"x")
    (place / "d").chmod(mode)
    before = os.lstat(place / "d")
    got = trees.walked(sink, place / "d", unlock=True)
    found = trees.nodes(sink, got.tree)
    assert set(found) == {b".", b"f"}
    assert found[b"."].mode == mode
    after = os.lstat(place / "d")
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    with pytest.raises(Denied, match="may not be read"):
        trees.walked(sink, place / "d")
    with pytest.raises(RuntimeError):
        trees.walked(sink, place / "d", unlock=True, progress=broken)
    assert os.lstat(place / "d").st_mode == before.st_mode


def broken(files, size):
    raise RuntimeError


@as_user
def test_only_what_is_ours_is_opened_up(sink):
    """With `unlock` too, what belongs to somebody else stays closed and is named."""
    with pytest.raises(Denied, match="may not be read"):
        trees.walked(
            sink, "/root" if not os.access("/root", os.R_OK) else "/proc/1/fd", unlock=True
        )


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (
            ["*.log"],
            (
                "a build build/a.txt build/inner build/inner/k d d/build d/keep.txt keep.txt "
                "n\nm n\nm/secret"
            ),
        ),
        (["build/"], "a a.log d d/a.log d/build d/keep.txt keep.txt n\nm n\nm/secret"),
        (["/build"], "a a.log d d/a.log d/build d/keep.txt keep.txt n\nm n\nm/secret"),
        (["*", "!keep.txt"], "keep.txt"),
        (
            ["d/*", "!d/keep.txt"],
            (
                "a a.log build build/a.log build/a.txt build/inner build/inner/k d d/keep.txt "
                "keep.txt n\nm n\nm/secret"
            ),
        ),
        (
            ["build/inner", "!build/inner/k"],
            (
                "a a.log build build/a.log build/a.txt d d/a.log d/build d/keep.txt keep.txt "
                "n\nm n\nm/secret"
            ),
        ),
        (
            ["**/a.*"],
            "a build build/inner build/inner/k d d/build d/keep.txt keep.txt n\nm n\nm/secret",
        ),
        (["secret", "build", "d"], "a a.log keep.txt n\nm"),
        (["keep.tx?", "build", "d", "n?m"], "a a.log"),
    ],
)
def test_patterns_leave_out_what_git_would(place, sink, patterns, left):
    """Excluded paths are neither looked at nor told; patterns mean what they mean to git."""
    (place / "build" / "inner").mkdir(parents=True)
    (place / "d").mkdir()
    (place / "n\nm").mkdir()
    names = ("a", "a.log", "keep.txt", "build/a.log", "build/a.txt", "build/inner/k")
    for name in (*names, "d/a.log", "d/keep.txt", "d/build", "n\nm/secret"):
        (place / name).write_text(name)
    got = trees.walked(sink, place, exclude=excluding(patterns))
    told = {os.fsdecode(path) for path in trees.nodes(sink, got.tree)} - {"."}
    assert told == set(left.split(" "))
    assert got.totals == totals_of(sink, got.tree)


@pytest.mark.parametrize("covered", ["directory", "file"])
@pytest.mark.parametrize("device", ["same", "other"])
@pytest.mark.parametrize("walk", ["openat2", "components"])
def test_other_mounts_are_refused_or_recorded_empty(tmp_path, covered, device, walk):
    """What is mounted below, also a single file of the same file system, is never read."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-B", MOUNTING, tmp_path, covered, device, walk],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env=environment,
    )
    if done.stdout.startswith("no namespaces"):
        pytest.skip(done.stdout)
    assert done.stdout == "fine\n", done.stdout + done.stderr


def test_fifos_are_never_opened(place, sink):
    """A FIFO without a writer, or with one, is told and not touched: nobody is waited for."""
    os.mkfifo(place / "p")
    os.mkfifo(place / "q")
    writer = os.open(place / "q", os.O_RDWR | os.O_NONBLOCK)
    os.write(writer, b"waiting")
    try:
        found = trees.nodes(sink, trees.walked(sink, place).tree)
        assert os.read(writer, 100) == b"waiting"
    finally:
        os.close(writer)
    assert {found[b"p"].kind, found[b"q"].kind} == {t.FIFO}


# --- What changes meanwhile -----------------------------------------------------------------------


def test_a_file_that_changed_while_it_was_read_is_read_again(place):
    """One change meanwhile costs one more reading, and what is stored is the file as it is."""

    def act(count, data):
        if count == 1:
            (place / "f").write_bytes(b"new content")

    (place / "f").write_bytes(b"old")
    sink = Meddling(act)
    learned = trees.StatCache("g")
    got = trees.walked(sink, place, learned=learned)
    assert got.changed == ()
    assert trees.content(sink, trees.nodes(sink, got.tree)[b"f"]) == b"new content"
    assert got.totals == (1, 11)
    assert sink.blobs == 2


@pytest.mark.parametrize("how", ["same size", "longer", "shorter", "touch", "chmod", "attribute"])
def test_a_file_that_keeps_changing_is_flagged_and_not_remembered(place, how):
    """After some readings it is stored as read, named, and read again next time."""

    def act(count, data):
        path = place / "d" / "f"
        if how == "same size":
            path.write_bytes(b"%05d" % count)
        elif how == "longer":
            path.write_bytes(b"x" * (5 + count))
        elif how == "shorter":
            path.write_bytes(b"x" * max(0, 5 - count))
        elif how == "touch":
            os.utime(path, ns=(count, count))
        elif how == "chmod":
            path.chmod(0o600 + count)
        else:
            os.setxattr(path, "user.count", b"%d" % count)

    (place / "d").mkdir()
    (place / "d" / "f").write_bytes(b"begin")
    learned = trees.StatCache("g")
    learned._began += 10**18  # As if all of it were long ago.
    sink = Meddling(act)
    got = trees.walked(sink, place, learned=learned)
    assert got.changed == ("d/f",)
    assert sink.blobs == 3
    assert not learned._rows
    node = trees.nodes(sink, got.tree)[b"d/f"]
    assert len(trees.content(sink, node)) == node.size == got.totals.bytes


def test_a_file_that_grows_without_end_is_bounded(place):
    """Never more is read than the file had when it was opened, however fast it grows."""
    path = place / "f"
    path.write_bytes(b"x" * (5 << 20))
    taken = []

    def act(count, data):
        taken.append(len(data))
        with open(path, "ab") as file:
            file.write(b"y" * (1 << 20))

    sink = Meddling(act)
    got = trees.walked(sink, place)
    assert got.changed == ("f",)
    assert sum(taken) < 64 << 20
    node = trees.nodes(sink, got.tree)[b"f"]
    assert len(trees.content(sink, node)) == node.size


@pytest.mark.parametrize("size", [10, 9 << 20])
@pytest.mark.parametrize("left", [0, 5])
def test_a_file_that_shrinks_is_stored_as_read(place, size, left):
    """A file cut short in the middle of a reading is read again, and never padded."""

    def act(count, data):
        os.truncate(place / "f", left)

    (place / "f").write_bytes(b"0123456789" * (size // 10))
    sink = Meddling(act)
    got = trees.walked(sink, place)
    node = trees.nodes(sink, got.tree)[b"f"]
    assert node.size == left == got.totals.bytes
    assert trees.content(sink, node) == b"0123456789"[:left]


def test_a_sparse_file_that_shrinks_is_stored_as_read(place):
    """The same for a file with holes, whose extents are gone meanwhile."""

    def act(count, data):
        os.truncate(place / "f", 4096)

    with open(place / "f", "wb") as file:
        file.write(b"begin")
        file.truncate(50 << 20)
        os.pwrite(file.fileno(), b"end", 40 << 20)
    got = trees.walked(sink := Meddling(act), place)
    node = trees.nodes(sink, got.tree)[b"f"]
    assert trees.content(sink, node) == b"begin".ljust(4096, b"\0")
    assert got.totals == (1, 4096)


class Racing:
    """Stands for `os.scandir` of the walk: lists in order, and lets somebody act before each entry.

    With `early`, entries were looked at before that.
    """

    def __init__(self, monkeypatch, act, *, early=True):
        self._act, self._early, self._real = act, early, os.scandir
        monkeypatch.setattr(os, "scandir", self)

    @contextlib.contextmanager
    def __call__(self, fd):
        with self._real(fd) as entries:
            yield self._acting(sorted(entries, key=lambda entry: entry.name))

    def _acting(self, entries):
        if self._early:
            for entry in entries:
                entry.stat(follow_symlinks=False)  # It remembers the answer.
        for entry in entries:
            self._act(entry.name)
            yield entry


class Listed:
    def __init__(self, name, found):
        self.name, self._found = name, found

    def stat(self, *, follow_symlinks):
        return self._found


def replaced(path, by, secret):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    if by == "file":
        path.write_bytes(b"new")
    elif by == "directory":
        path.mkdir()
        (path / "inner").write_bytes(b"inner")
    elif by == "link to a file":
        path.symlink_to(secret / "file")
    elif by == "link to a directory":
        path.symlink_to(secret)
    elif by == "fifo":
        os.mkfifo(path)
    elif by == "socket":
        here = os.getcwd()
        with socket.socket(socket.AF_UNIX) as listener:
            os.chdir(path.parent)
            listener.bind(path.name)
            os.chdir(here)


@pytest.fixture(params=["openat2", "components"])
def walker(request, monkeypatch):
    """Walk with openat2, and as on a kernel without it."""
    if request.param == "components":
        monkeypatch.setattr(module, "has_openat2", lambda: False)
    elif not has_openat2():
        pytest.skip("this kernel has no openat2")


KINDS = ["nothing", "file", "directory", "link to a file", "link to a directory", "fifo", "socket"]


@pytest.mark.parametrize("before", ["file", "directory", "link to a file"])
@pytest.mark.parametrize("after", KINDS)
def test_an_entry_that_becomes_another_is_taken_as_what_it_is(
    place, tmp_path, sink, monkeypatch, walker, before, after
):
    """Between listing and opening anything may come in its place: nothing is followed."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_bytes(b"secret")
    (place / "x").touch()
    replaced(place / "x", before, secret)
    (place / "a").touch()
    swapped = []

    def act(name):
        if name == "x" and not swapped:
            swapped.append(name)
            replaced(place / "x", after, secret)

    Racing(monkeypatch, act)
    got = trees.walked(sink, place)
    monkeypatch.undo()
    found = trees.nodes(sink, got.tree)
    now = trees.nodes(sink, trees.walked(sink, place).tree)
    assert found.keys() == now.keys()
    for path in found.keys() - {b"."}:
        assert found[path].kind == now[path].kind
        assert found[path].content == now[path].content or found[path].kind == t.DIRECTORY
    assert not any(data == b"secret" for _, data in sink.objects.values())
    assert got.totals == totals_of(sink, got.tree)


@pytest.mark.parametrize("by", ["nothing", "file", "link to a directory", "fifo"])
def test_a_directory_that_goes_before_it_is_entered(place, tmp_path, sink, monkeypatch, walker, by):
    """A directory that was listed may be a link when it is entered: it is not followed."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_bytes(b"secret")
    (place / "d").mkdir()
    (place / "d" / "f").write_bytes(b"inside")
    entered = Cursor.enter

    def enter(self, name):
        if name == b"d" and (place / "d").is_dir() and not (place / "d").is_symlink():
            replaced(place / "d", by, secret)
        return entered(self, name)

    monkeypatch.setattr(Cursor, "enter", enter)
    got = trees.walked(sink, place)
    found = trees.nodes(sink, got.tree)
    kinds = {"file": t.FILE, "link to a directory": t.SYMLINK, "fifo": t.FIFO}
    assert found.get(b"d", t.Node(b"", -1)).kind == kinds.get(by, -1)
    assert set(found) - {b".", b"d"} == set()
    assert got.totals == totals_of(sink, got.tree)


def test_a_directory_that_flickers_is_tried_again_and_then_named(place, sink, monkeypatch):
    """One swap to a link and back costs one more try; one at each try ends in an error."""
    (place / "d").mkdir()
    (place / "d" / "f").write_bytes(b"inside")
    entered = Cursor.enter
    left = [2]

    def enter(self, name):
        if left[0] > 0:
            left[0] -= 1
            raise OSError(errno.ELOOP, "is a link at the moment")
        return entered(self, name)

    monkeypatch.setattr(Cursor, "enter", enter)
    assert b"d/f" in trees.nodes(sink, trees.walked(sink, place).tree)
    left[0] = 10**6
    with pytest.raises(Denied, match="/w/d: keeps changing its type"):
        trees.walked(sink, place, shown="/w/")


def test_a_file_that_flickers_ends_in_an_error(place, sink, monkeypatch):
    """A name that is something else at each look is given up, with its path."""
    (place / "f").write_bytes(b"x")

    def read_file(*arguments, **options):
        raise OSError(errno.ESTALE, "is something else")

    monkeypatch.setattr(module, "read_file", read_file)
    with pytest.raises(Denied, match="/w/f: keeps changing its type"):
        trees.walked(sink, place, shown="/w/")


def test_an_error_of_the_disk_names_the_file(place, sink, monkeypatch):
    """What the disk answers about one file is told with the path of the file."""
    (place / "d").mkdir()
    (place / "d" / "f").write_bytes(b"x")

    def store_content(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(steady, "store_content", store_content)
    with pytest.raises(HostRefused, match=r"/w/d/f.*Input/output error"):
        trees.walked(sink, place, shown="/w/")


def test_errors_of_the_sink_go_through(place):
    """What the store says of itself is not told as an error of the file that was read."""
    (place / "f").write_bytes(b"x")

    def act(count, data):
        raise Denied(path="store", reason="is read only")

    with pytest.raises(Denied, match="store: is read only"):
        trees.walked(Meddling(act), place)


def test_a_name_that_is_listed_twice_counts_once(place, sink, monkeypatch):
    """While others rename, a directory may list a name twice: the tree has it once."""
    (place / "d").mkdir()
    (place / "d" / "f").write_bytes(b"inside")
    (place / "f").write_bytes(b"file")
    os.link(place / "f", place / "g")
    expected = trees.walked(sink, place)
    real = os.scandir

    @contextlib.contextmanager
    def twice(fd):
        with real(fd) as entries:
            listed = list(entries)
            yield iter(listed + listed)

    monkeypatch.setattr(os, "scandir", twice)
    assert trees.walked(sink, place) == expected


def test_a_file_of_two_names_that_goes_meanwhile(place, sink, monkeypatch):
    """A hard link that is listed twice and gone at the second look leaves a whole tree."""
    (place / "f").write_bytes(b"file")
    os.link(place / "f", place / "g")
    real = os.scandir

    @contextlib.contextmanager
    def twice(fd):
        with real(fd) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
            found = {entry.name: entry.stat(follow_symlinks=False) for entry in listed}

        def giving():
            yield from (Listed(name, found[name]) for name in found)
            (place / "g").chmod(0o600)
            again = os.stat(place / "g")
            os.unlink(place / "g")
            yield Listed("g", again)

        yield giving()

    monkeypatch.setattr(os, "scandir", twice)
    got = trees.walked(sink, place)
    assert set(trees.nodes(sink, got.tree)) == {b".", b"f"}
    assert got.totals == (1, 4)
    assert trees.nodes(sink, got.tree)[b"f"].link == 0


def test_a_directory_that_fills_while_it_is_listed_ends(place, sink, monkeypatch):
    """Names that come and go for ever while they are listed end in an error that says where."""
    (place / "d").mkdir()
    monkeypatch.setattr(module, "ENTRIES_MAX", 50)
    found = os.lstat(place)

    @contextlib.contextmanager
    def endless(fd):
        def giving():
            number = 0
            while True:
                number += 1
                yield Listed(f"gone{number}", os.stat_result((0o100644, *found[1:])))

        yield giving()

    monkeypatch.setattr(os, "scandir", endless)
    with pytest.raises(LimitExceeded, match="more than 50 entries"):
        trees.walked(sink, place, shown="/w/")


# --- Size and shape -------------------------------------------------------------------------------


def test_very_deep_trees_take_few_descriptors(place, monkeypatch):
    """4,096 levels of long names are walked with a handful of descriptors, and little memory."""
    name = b"n" * 255
    fd = os.open(place, os.O_RDONLY)
    for level in range(4096):
        os.mkdir(name, dir_fd=fd)
        below_it = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below_it
        if level % 512 == 511:
            with open(os.open(b"f", os.O_WRONLY | os.O_CREAT, dir_fd=fd), "wb") as file:
                file.write(b"%d" % level)
    os.close(fd)
    most = 0

    def act(count, data):
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")))

    before = len(os.listdir("/proc/self/fd"))
    sink = Meddling(act)
    learned = trees.StatCache("g")
    learned._began += 10**18
    got = trees.walked(sink, place, learned=learned)
    assert got.totals == (8, sum(len(str(level)) for level in range(511, 4096, 512)))
    assert most - before <= 8 + 16
    assert len(sink.objects) == 4097 + 8
    # What has no path that the kernel would take is not remembered, and read again.
    assert not learned._rows
    assert trees.walked(sink, place, known=learned).tree == got.tree


def test_too_many_levels_are_refused(place, sink, monkeypatch):
    """What could not be restored is not captured: a limit on levels, told as such."""
    monkeypatch.setattr(measure, "DEPTH_MAX", 5)
    (place / "a/b/c/d").mkdir(parents=True)
    trees.walked(sink, place)
    (place / "a/b/c/d/e").mkdir()
    with pytest.raises(LimitExceeded, match="more than 5 levels"):
        trees.walked(sink, place)


def test_a_very_full_directory(place, sink):
    """100,000 entries in one directory are taken, in one object, and progress is told meanwhile."""
    for number in range(100_000):
        os.symlink(b"t", below(place, b"%06d" % number))
    told = []
    got = trees.walked(sink, place, progress=lambda files, size: told.append((files, size)))
    assert len(t.read_directory(sink, got.tree).nodes) == 100_000
    assert len(told) > 50


def test_progress_counts_files_and_bytes(place, sink):
    """Progress is told per directory and ends with what the tree holds."""
    for number in range(5):
        (place / f"d{number}").mkdir()
        (place / f"d{number}" / "f").write_bytes(b"x" * number)
    told = []
    got = trees.walked(sink, place, progress=lambda files, size: told.append((files, size)))
    assert told[-1] == got.totals == (5, 10)
    assert told == sorted(told)
    assert len(told) == 6


def test_large_attributes_are_refused_with_the_path(place, sink, monkeypatch):
    """More attributes than a tree takes are an error that says of which file."""
    monkeypatch.setattr(attributes, "ATTRIBUTES_BYTES_MAX", 100)
    (place / "d").mkdir()
    (place / "d" / "f").touch()
    os.setxattr(place / "d" / "f", "user.large", b"x" * 200)
    with pytest.raises(LimitExceeded, match=r"/w/d/f: .*attributes"):
        trees.walked(sink, place, shown="/w/")
    (place / "d" / "f").unlink()
    os.setxattr(place / "d", "user.large", b"x" * 200)
    with pytest.raises(LimitExceeded, match=r"/w/d: .*attributes"):
        trees.walked(sink, place, shown="/w/")


def test_skipped_paths_are_told_up_to_a_bound(place, sink):
    """Very many sockets, or very long paths of them, do not make the answer long."""
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(place)
        try:
            listener.bind("s")
        finally:
            os.chdir(here)
    for number in range(1500):
        os.link(place / "s", place / f"s{number:04}")
    got = trees.walked(sink, place)
    assert len(got.skipped) == 1000
    assert list(got.skipped) == sorted(got.skipped)


@pytest.mark.parametrize("at", range(1, 12))
def test_an_interrupt_leaves_nothing_open(place, at):
    """Wherever Ctrl-C comes, no descriptor stays open (the fixture looks)."""
    for name in ("a", "d/b", "d/e/c"):
        (place / name).parent.mkdir(exist_ok=True, parents=True)
        (place / name).write_bytes(os.fsencode(name))
    calls = [0]

    def exclude(path, is_directory):
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt
        return False

    with contextlib.suppress(KeyboardInterrupt):
        trees.walked(trees.Memory(), place, exclude=exclude)

    def act(count, data):
        if count == at:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        trees.walked(Meddling(act), place)


def test_busy_writers_are_never_mixed_up(place, tmp_path):
    """Under writers that rename and rewrite, a file that is replaced is a version that existed, and
    one that is written in place is as long as it is said to be.
    """
    versions = [bytes([65 + number]) * (3000 + number) for number in range(8)]
    for name in ("a", "b", "c"):
        (place / name).write_bytes(versions[0])
    stop = threading.Event()

    def work(seed):
        chance = random.Random(seed)
        while not stop.is_set():
            fresh = tmp_path / f"fresh{seed}"
            fresh.write_bytes(chance.choice(versions))
            os.rename(fresh, place / chance.choice("ab"))
            with open(place / "c", "r+b") as file:
                file.write(chance.choice(versions))
                file.truncate(chance.randrange(3000))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(60):
            sink = trees.Memory()
            got = trees.walked(sink, place)
            for path, node in trees.nodes(sink, got.tree).items():
                data = trees.content(sink, node) if node.is_file else b""
                assert len(data) == node.size
                assert path not in (b"a", b"b") or data in versions
            assert got.totals == totals_of(sink, got.tree)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
