"""What is restored is the tree, whole or not at all, and in place only what differs is touched."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import signal
import socket
import stat
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxsdk import clock, disk
from sandboxsdk.errors import (
    Corrupt,
    Denied,
    FileConflict,
    HostFull,
    HostRefused,
    LimitExceeded,
    SandboxError,
    UsageError,
)
from sandboxsdk.snapshot import restore_in_place, restore_to
from sandboxsdk.snapshot import tree as t
from sandboxsdk.snapshot.restore import Restored, uninterrupted
from sandboxsdk.snapshot.writing import is_leftover
from tests.integration.crash.failing import open_files
from tests.trees import Memory, below, capture, directory, file, sparse, symlink, tree

ROOT = os.geteuid() == 0
NOT_ROOT = pytest.mark.skipif(ROOT, reason="root has every right")


@pytest.fixture
def sink():
    return Memory()


@pytest.fixture
def place(tmp_path):
    """Give a path for a restored directory, alone in its parent."""
    (tmp_path / "parent").mkdir()
    yield tmp_path / "parent" / "it"
    for folder, names, _ in os.walk(tmp_path):
        for name in names:
            inner = os.path.join(folder, name)
            if not os.path.islink(inner):
                os.chmod(inner, 0o700)


def make(sink: Memory, digest: bytes, where: Path, **more) -> Restored:
    return restore_to(sink, digest, str(where), **{"owners": None, "durable": False, **more})


def turn(sink: Memory, where: Path, target: bytes, current: bytes | None = None, **more):
    """Restore in place what lies there."""
    fd = os.open(where, os.O_PATH | os.O_DIRECTORY)
    try:
        current = capture(sink, where) if current is None else current
        return restore_in_place(
            sink, fd, current=current, target=target, **{"owners": None, **more}
        )
    finally:
        os.close(fd)


@contextlib.contextmanager
def watched(watcher):
    """Have every writing call looked at."""
    disk.watcher = watcher
    try:
        yield
    finally:
        disk.watcher = None


def mine(sink: Memory, digest: bytes) -> bytes:
    """Give the tree as it looks when we own all of it, without what is never written."""
    found = t.read_directory(sink, digest)
    nodes = []
    for node in found.nodes:
        own = {"uid": os.geteuid(), "gid": os.getegid()}
        if node.kind == t.DIRECTORY:
            own = {"content": mine(sink, node.content)}
        elif node.is_file:
            own["mode"] = node.mode & 0o777
        nodes.append(msgspec.structs.replace(node, **own))
    return t.write_directory(
        sink,
        t.Directory(
            found.mode & 0o1777,
            found.mtime,
            os.geteuid(),
            os.getegid(),
            found.attributes,
            [node for node in nodes if node.kind not in (t.SOCKET, t.CHARACTER, t.BLOCK)],
        ),
    )


BLOCK = b"x" * (1 << 16)


def everything(sink: Memory) -> bytes:
    """Give a tree with one of each."""
    one, two = (b"user.one", b"1"), (b"user.two", bytes(range(256)))
    odd = b"\xff\x01\n caf\xc3\xa9"
    return tree(
        sink,
        {
            b"empty": b"",
            b"small": b"data",
            odd: {odd: b"odd", b"l" * 255: "m" * 4000},
            b"modes": {
                bytes([65 + n]): file(sink, bytes([65 + n]), b"m", mode=mode, mtime=n * 10**9 + 1)
                for n, mode in enumerate((0o000, 0o400, 0o755, 0o777, 0o4755, 0o1644))
            },
            b"old": file(sink, b"old", b"x", mtime=-(10**9) + 5),
            b"link": symlink(b"link", b"/etc/passwd", mtime=5),
            b"fifo": t.Node(b"fifo", t.FIFO, 0o640, 7),
            b"socket": t.Node(b"socket", t.SOCKET, 0o640, 7),
            b"sparse": sparse(sink, b"sparse", [1 << 30, BLOCK, 1 << 20, BLOCK]),
            b"attributes": file(sink, b"attributes", b"x", attributes=(one, two), mode=0o400),
            b"one": file(sink, b"one", b"shared", link=3),
            b"other": {b"two": file(sink, b"two", b"shared", link=3)},
            b"closed": below(
                b"closed", directory(sink, [file(sink, b"f", b"x")], mode=0o000, mtime=11)
            ),
            b"read-only": below(
                b"read-only",
                directory(
                    sink,
                    [below(b"d", directory(sink, [file(sink, b"f", b"x")], mode=0o555))],
                    mode=0o1555,
                    attributes=(one,),
                ),
            ),
        },
        mode=0o750,
        mtime=99,
    )


def test_a_new_directory_holds_exactly_the_tree(sink, place):
    """Names, contents, modes, times, attributes, holes and links are those of the tree."""
    done = make(sink, everything(sink), place)
    assert done.skipped == ("socket",)
    assert done.written == 25
    assert stat.S_IMODE(os.lstat(place / "closed").st_mode) == 0
    assert os.lstat(place / "closed").st_mtime_ns == 11
    one, two = os.stat(place / "one"), os.stat(place / "other" / "two")
    assert (one.st_ino, one.st_nlink) == (two.st_ino, 2)
    assert os.stat(place / "sparse").st_blocks * 512 < 1 << 20
    assert os.listdir(place.parent) == ["it"]
    # An ordinary user cannot look into all of it.
    for name in ("modes/A", "closed", "read-only/d", "read-only"):
        os.chmod(place / name, 0o700)
    found = capture(sink, place)
    assert differing(sink, found, mine(sink, everything(sink))) <= {
        b"modes/A",
        b"closed",
        b"read-only",
        b"read-only/d",
    }


def differing(sink: Memory, one: bytes, two: bytes, path: bytes = b"") -> set[bytes]:
    """Give the paths that differ; link numbers are only compared for being there."""
    first, second = t.read_directory(sink, one), t.read_directory(sink, two)
    found = set()
    if msgspec.structs.replace(first, nodes=()) != msgspec.structs.replace(second, nodes=()):
        found.add(path)
    left, right = ({n.name: n for n in d.nodes} for d in (first, second))
    for name in left.keys() | right.keys():
        inner = path + b"/" + name if path else name
        a, b = left.get(name), right.get(name)
        if a is not None and b is not None and a.kind == b.kind == t.DIRECTORY:
            found |= differing(sink, a.content, b.content, inner)
        elif (
            a is None
            or b is None
            or msgspec.structs.replace(a, link=bool(a.link))
            != msgspec.structs.replace(b, link=bool(b.link))
        ):
            found.add(inner)
    return found


def test_an_empty_directory_is_taken(sink, place):
    """What is there and empty is replaced, and gets the tree's own mode."""
    place.mkdir(mode=0o777)
    make(sink, tree(sink, {b"a": b"1"}, mode=0o700), place, durable=True)
    assert os.listdir(place) == ["a"]
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert os.listdir(place.parent) == ["it"]


def test_durable_means_synced_before_and_after_the_name(sink, place):
    """All of the file system is synced before the rename, the parent after it."""
    calls = []
    with watched(lambda call, _: calls.append(call)):
        make(sink, tree(sink, {b"a": b"1"}), place, durable=True)
    assert calls[-3:] == ["sync_file_system", "rename", "sync"]
    calls.clear()
    with watched(lambda call, _: calls.append(call)):
        make(sink, tree(sink, {b"a": b"1"}), place.with_name("other"))
    assert not {call for call in calls if "sync" in call}


def test_a_relative_path_and_a_slash_at_the_end_work(sink, place, monkeypatch):
    """A path is taken as the shell would take it."""
    monkeypatch.chdir(place.parent)
    digest = tree(sink, {b"a": b"1"})
    for name in ("one", "./two", "three/"):
        make(sink, digest, name)  # type: ignore[arg-type]
    restore_to(sink, digest, "four///", owners=None, durable=False)
    assert sorted(os.listdir()) == ["four", "one", "three", "two"]


def test_a_name_of_255_bytes_works(sink, place):
    """The private name beside it is not too long."""
    make(sink, tree(sink, {b"a": b"1"}), place.with_name("n" * 255))
    assert os.listdir(place.parent) == ["n" * 255]


@pytest.mark.parametrize("path", ["", "/", ".", "..", "a/..", "missing/it", "a\0b"])
def test_what_names_no_directory_is_refused(sink, place, path, monkeypatch):
    """A path needs a last name, and a parent that exists."""
    monkeypatch.chdir(place.parent)
    with pytest.raises(UsageError):
        restore_to(sink, tree(sink, {}), path, owners=None, durable=False)
    assert os.listdir() == []


def test_a_target_that_holds_something_is_refused(sink, place):
    """Nothing is ever put beside what is there, or over it."""
    digest = tree(sink, {b"a": b"1"})
    place.write_bytes(b"file")
    with pytest.raises(FileConflict, match="no directory"):
        make(sink, digest, place)
    assert place.read_bytes() == b"file"
    place.unlink()
    place.mkdir()
    (place / "x").write_bytes(b"mine")
    with pytest.raises(FileConflict, match="not empty"):
        make(sink, digest, place)
    assert os.listdir(place) == ["x"]
    assert os.listdir(place.parent) == ["it"]


@pytest.mark.parametrize("number", range(1, 26))
def test_a_failing_write_leaves_nothing(sink, place, number):
    """Whichever call fails, the error is typed, nothing is left, and the next try succeeds."""
    digest = tree(
        sink, {b"a": b"1", b"d": {b"l": "x", b"s": sparse(sink, b"s", [4096, b"y"])}, **pair(sink)}
    )
    before = open_files()
    for error in (errno.ENOSPC, errno.EIO):
        calls = 0

        def fail(call, _arguments, error=error):
            nonlocal calls
            calls += 1
            # Tidying up is not failed.
            if calls == number and call not in ("remove", "remove_directory"):
                raise OSError(error, os.strerror(error))

        with watched(fail):
            try:
                make(sink, digest, place, durable=True)
            except HostFull:
                found = errno.ENOSPC
            except HostRefused:
                found = errno.EIO
            else:
                found = error
                assert calls < number
                shutil.rmtree(place)
        assert found == error
        assert os.listdir(place.parent) == []
    assert open_files() <= before
    make(sink, digest, place, durable=True)
    assert sorted(os.listdir(place)) == ["a", "d", "p", "q"]


def pair(sink: Memory) -> dict[bytes, t.Node]:
    return {n: file(sink, n, b"shared", link=8) for n in (b"p", b"q")}


def test_a_directory_that_was_there_comes_back_when_the_sync_fails(sink, place):
    """What could not be made durable is taken back: the empty directory is there again."""
    place.mkdir(mode=0o751)

    def fail(call, _arguments):
        if call == "sync":
            raise OSError(errno.EIO, "no")

    with watched(fail), pytest.raises(HostRefused):
        make(sink, tree(sink, {b"a": b"1"}), place, durable=True)
    assert os.listdir(place) == []
    assert stat.S_IMODE(place.stat().st_mode) == 0o751
    assert os.listdir(place.parent) == ["it"]


def test_more_than_the_disk_has_is_refused_before_anything_is_written(sink, place):
    """A tree that cannot fit is HostFull, and no call is made; holes take no space."""
    huge = t.Node(b"f", t.FILE, 0o644, size=1 << 60, content=sink.add(ord("b"), b"x"))
    calls = []
    with watched(lambda call, _: calls.append(call)):
        with pytest.raises(HostFull, match="bytes"):
            make(sink, tree(sink, {b"f": huge}), place)
        assert calls == []
        make(sink, tree(sink, {b"f": sparse(sink, b"f", [1 << 42, b"x"])}), place)
    assert os.stat(place / "f").st_size == (1 << 42) + 1


def test_in_place_what_goes_makes_space(sink, place):
    """Growth counts, not what is written: what is removed and replaced gives its space back."""
    make(sink, tree(sink, {b"a": b"1"}), place)
    content = sink.add(ord("b"), b"x")
    was = tree(sink, {b"a": t.Node(b"a", t.FILE, 0o644, size=1 << 61, content=content)})
    huge = t.Node(b"f", t.FILE, 0o644, size=1 << 60, content=content)
    with pytest.raises(HostFull):
        turn(sink, place, tree(sink, {b"f": huge}))
    with pytest.raises(Corrupt, match="its file says"):
        turn(sink, place, tree(sink, {b"f": huge}), was)


def test_a_size_that_no_file_has_is_refused_by_name(sink, place):
    """A hole beyond what the file system takes names the file, and leaves nothing."""
    digest = tree(sink, {b"d": {b"f": sparse(sink, b"f", [(1 << 63) - 2, b"x"])}})
    with pytest.raises(HostRefused, match="it/d/f"):
        make(sink, digest, place)
    assert os.listdir(place.parent) == []


# --- In place -------------------------------------------------------------------------------------


@pytest.mark.parametrize("walker", ["openat2", "components"])
def test_in_place_becomes_exactly_the_tree(sink, place, walker, monkeypatch):
    """From one tree to another and back, every difference is carried out."""
    if walker == "components":
        monkeypatch.setattr("sandboxsdk.snapshot.restore.has_openat2", lambda: False)
    one = tree(
        sink,
        {
            b"same": b"0",
            b"data": b"1",
            b"gone": {b"x": {b"y": b"2"}},
            b"to-file": {b"x": b"3"},
            b"to-directory": b"4",
            b"to-link": b"5",
            b"d": {b"e": {b"f": file(sink, b"f", b"6", mode=0o600)}, b"l": "here"},
            b"p": file(sink, b"p", b"shared", link=1),
            b"q": {b"p": file(sink, b"p", b"shared", link=1)},
            b"fifo": t.Node(b"fifo", t.FIFO, 0o600, 3),
        },
    )
    two = tree(
        sink,
        {
            b"same": b"0",
            b"data": b"11",
            b"new": {b"x": {b"y": b"2"}, b"p": file(sink, b"p", b"shared", link=9)},
            b"to-file": b"3",
            b"to-directory": {b"x": b"4"},
            b"to-link": "elsewhere",
            b"d": {
                b"e": {b"f": file(sink, b"f", b"6", mode=0o644, attributes=((b"user.a", b"b"),))},
                b"l": "there",
            },
            b"p": b"shared",
            b"q": {b"p": file(sink, b"p", b"shared", link=9)},
            b"fifo": {},
        },
        mode=0o711,
        attributes=((b"user.root", b"r"),),
    )
    make(sink, one, place)
    inode = os.stat(place / "same").st_ino, os.stat(place / "d/e/f").st_ino
    for wanted in (two, one, two, one):
        turn(sink, place, wanted)
        assert differing(sink, capture(sink, place), mine(sink, wanted)) == set()
        assert turn(sink, place, wanted) == Restored()
    assert (os.stat(place / "same").st_ino, os.stat(place / "d/e/f").st_ino) == inode
    assert os.stat(place / "p").st_nlink == 2


def test_only_what_differs_is_touched(sink, place):
    """The calls made are those for one file, in its directory."""
    wide = {b"%d" % n: {b"f": b"%d" % n} for n in range(50)}
    make(sink, tree(sink, {**wide, b"x": {b"f": b"1"}}), place)
    ctimes = {p: p.lstat().st_ctime_ns for p in place.rglob("*")}
    calls = []
    with watched(lambda call, _: calls.append(call)):
        done = turn(sink, place, tree(sink, {**wide, b"x": {b"f": b"2"}}))
    assert done == Restored(written=1)
    # The file, then its directory's own.
    expected = ["create", "write", "set_mode", "set_times", "rename", "set_mode", "set_times"]
    assert calls == expected
    moved = {p.name for p, ctime in ctimes.items() if p.lstat().st_ctime_ns != ctime}
    assert moved == {"x", "f"}
    assert (place / "7" / "f").lstat().st_ctime_ns == ctimes[place / "7" / "f"]


def test_metadata_alone_leaves_the_file(sink, place):
    """Mode, time and attributes are set on the file that is there, also where it may not be
    opened; other attributes go.
    """
    before = {
        b"a": file(sink, b"a", b"1", mode=0o000, attributes=((b"user.old", b"1"),)),
        b"b": file(sink, b"b", b"2", mode=0o444),
    }
    after = {
        b"a": file(sink, b"a", b"1", mode=0o400, attributes=((b"user.new", b"2"),), mtime=4),
        b"b": file(sink, b"b", b"2", mode=0o440),
    }
    make(sink, tree(sink, before), place)
    inodes = [os.stat(place / name).st_ino for name in "ab"]
    done = turn(sink, place, tree(sink, after), tree(sink, before))
    assert done == Restored(touched=2)
    assert [os.stat(place / name).st_ino for name in "ab"] == inodes
    os.chmod(place / "a", 0o600)
    assert os.listxattr(place / "a") == ["user.new"]
    assert os.stat(place / "a").st_mtime_ns == 4


def test_a_file_with_names_elsewhere_is_never_changed(sink, place, tmp_path):
    """A hard link planted over a name is replaced; the file outside keeps its mode and content."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"keep")
    outside.chmod(0o600)
    one = tree(sink, {b"a": b"1", b"b": b"1"})
    two = tree(sink, {b"a": file(sink, b"a", b"1", mode=0o666), b"b": b"2"})
    make(sink, one, place)
    for name in "ab":
        (place / name).unlink()
        os.link(outside, place / name)
    turn(sink, place, two, one)
    assert differing(sink, capture(sink, place), mine(sink, two)) == set()
    found = outside.stat()
    assert (outside.read_bytes(), stat.S_IMODE(found.st_mode), found.st_nlink) == (
        b"keep",
        0o600,
        1,
    )


@pytest.mark.parametrize("kind", ["file", "directory", "link", "fifo", "nothing"])
@pytest.mark.parametrize("name", ["content", "mode", "dir", "gone", "gone-dir", "link", "fresh"])
def test_what_changed_meanwhile_is_replaced(sink, place, tmp_path, kind, name):
    """Whatever lies where the current tree says something else, the tree that is wanted comes."""
    one = tree(
        sink,
        {
            b"content": b"1",
            b"mode": b"2",
            b"dir": {b"f": b"3", b"e": {b"g": b"4"}},
            b"gone": b"5",
            b"gone-dir": {b"f": b"6"},
            b"link": "here",
        },
    )
    two = tree(
        sink,
        {
            b"content": b"11",
            b"mode": file(sink, b"mode", b"2", mode=0o600),
            b"dir": {b"f": b"33", b"e": {b"g": b"44"}},
            b"link": "there",
            b"fresh": {b"f": b"7"},
        },
    )
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "f").write_bytes(b"keep")
    make(sink, one, place)
    victim = place / name
    if victim.is_dir():
        shutil.rmtree(victim)
    else:
        victim.unlink(missing_ok=True)
    if kind == "file":
        victim.write_bytes(b"planted")
    elif kind == "directory":
        (victim / "deep").mkdir(parents=True)
        (victim / "deep" / "x").write_bytes(b"planted")
    elif kind == "link":
        victim.symlink_to(tmp_path / "outside")
    elif kind == "fifo":
        os.mkfifo(victim)
    turn(sink, place, two, one)
    if kind == "directory" and name in ("dir", "fresh"):
        # Nobody said that it must go.
        shutil.rmtree(victim / "deep")
        os.utime(victim, ns=(10**18, 10**18))
    assert differing(sink, capture(sink, place), mine(sink, two)) == set()
    assert os.listdir(tmp_path / "outside") == ["f"]
    assert (tmp_path / "outside" / "f").read_bytes() == b"keep"


def test_extra_names_are_left_alone(sink, place):
    """What neither tree knows stays, unless its directory must go."""
    one = tree(sink, {b"d": {b"f": b"1"}, b"gone": {b"f": b"2"}})
    make(sink, one, place)
    (place / "d" / "extra").write_bytes(b"x")
    (place / "gone" / "extra").write_bytes(b"x")
    turn(sink, place, tree(sink, {b"d": {b"f": b"11"}}), one)
    assert sorted(os.listdir(place)) == ["d"]
    assert sorted(os.listdir(place / "d")) == ["extra", "f"]


def test_with_spare_only_known_names_go(sink, place):
    """A directory that still holds something stays, however deep that lies."""
    one = tree(sink, {b"d": {b"e": {b"f": b"1"}, b"g": {b"h": b"2"}}, b"gone": b"3"})
    make(sink, one, place)
    (place / "d" / "e" / "extra").write_bytes(b"x")
    turn(sink, place, tree(sink, {}), one, spare=lambda path, is_directory: False)
    left = sorted(str(p.relative_to(place)) for p in place.rglob("*"))
    assert left == ["d", "d/e", "d/e/extra"]


def test_what_is_spared_is_not_removed_for_a_file(sink, place):
    """A wanted file in place of a directory with excluded files is a conflict; other files of it
    go.
    """
    one, two = tree(sink, {b"d": {b"e": {b"f": b"1"}}}), tree(sink, {b"d": b"file"})
    make(sink, one, place)
    (place / "d" / "e" / "keep.log").write_bytes(b"x")
    asked = []

    def spare(path, is_directory):
        asked.append((path, is_directory))
        return path.endswith(b".log")

    with pytest.raises(FileConflict, match="excluded"):
        turn(sink, place, two, one, spare=spare, shown="work/")
    assert (place / "d" / "e" / "keep.log").exists()
    assert (b"d/e/keep.log", False) in asked
    os.rename(place / "d" / "e" / "keep.log", place / "d" / "e" / "other")
    turn(sink, place, two, one, spare=spare)
    assert (place / "d").read_bytes() == b"file"


def test_leftovers_of_a_killed_run_are_removed(sink, place):
    """Fresh names go from the directories that are changed; such a name in the tree is kept."""
    names = [f".{'0123456789abcdef'[n:]}{'g' * n}.sandboxsdk".encode() for n in range(3)]
    assert all(is_leftover(name) for name in names)
    assert not is_leftover(b".0123456789abcdel.sandboxsdk")
    assert not is_leftover(b".\xff123456789abcdeg.sandboxsdk")
    one = tree(sink, {names[0]: b"kept", b"a": b"1", b"d": {b"a": b"1"}})
    two = tree(sink, {names[0]: b"kept", b"a": b"2", b"d": {b"a": b"1"}})
    make(sink, one, place)
    for where in (place, place / "d"):
        (where / os.fsdecode(names[1])).write_bytes(b"half")
        (where / os.fsdecode(names[2])).mkdir()
    turn(sink, place, two, one)
    assert not (place / os.fsdecode(names[1])).exists()
    assert (place / os.fsdecode(names[2])).exists()
    assert (place / "d" / os.fsdecode(names[1])).exists()
    assert (place / os.fsdecode(names[0])).read_bytes() == b"kept"


class Killed(BaseException):
    """Ends a run as a kill does: nothing is tidied up after it."""


def test_a_killed_run_is_finished_by_the_next(sink, place):
    """Whichever call was the last one, a run with a fresh current tree makes it the one wanted."""
    shared = {n: file(sink, n, b"shared", link=3) for n in (b"x", b"y")}
    one = tree(
        sink, {b"a": b"1", b"b": {b"c": b"2", b"m": b"5"}, b"gone": {b"f": b"3"}, b"l": "here"}
    )
    closed = directory(sink, [file(sink, b"m", b"5", mode=0o600), file(sink, b"c", b"22")], mode=0)
    two = tree(sink, {b"a": {b"f": b"1"}, b"b": below(b"b", closed), b"l": "there", **shared})
    for number in itertools.count(1):
        make(sink, one, place)
        left = number

        def kill(_call, _arguments):
            nonlocal left
            left -= 1
            if left <= 0:
                raise Killed

        with contextlib.suppress(Killed), watched(kill):
            turn(sink, place, two, one)
        if left > 0:
            break
        # A scan opens what it may not read.
        os.chmod(place / "b", os.stat(place / "b").st_mode | 0o700)
        turn(sink, place, two)
        assert stat.S_IMODE(os.stat(place / "b").st_mode) == 0
        os.chmod(place / "b", 0o700)
        assert differing(sink, capture(sink, place), mine(sink, two)) == {b"b"}
        shutil.rmtree(place)
    assert number > 25


def test_wrong_bytes_never_get_a_name(sink, place):
    """A damaged blob is found before its file has its name; what was there stays."""
    one, two = tree(sink, {b"a": b"1", b"d": {}}), tree(sink, {b"a": b"22", b"d": {}})
    make(sink, one, place)
    digest = t.read_directory(sink, two).nodes[0].content
    sink.objects[digest] = ord("b"), b"xx"
    with pytest.raises(Corrupt):
        turn(sink, place, two)
    assert sorted(os.listdir(place)) == ["a", "d"]
    assert (place / "a").read_bytes() == b"1"
    with pytest.raises(Corrupt):
        make(sink, two, place.with_name("new"))
    assert os.listdir(place.parent) == ["it"]


def test_a_blob_of_another_length_never_gets_a_name(sink, place):
    """The size of a file or part is checked against what the blob has."""
    whole = msgspec.structs.replace(file(sink, b"f", b"12"), size=3)
    parts = t.Node(
        b"f",
        t.PARTS,
        0o644,
        size=9,
        content=t.write_parts(sink, [t.Part(9, sink.add(ord("b"), b"12"))]),
    )
    for node in (whole, parts):
        with pytest.raises(Corrupt, match="its file says"):
            make(sink, tree(sink, {b"f": node}), place)
    assert os.listdir(place.parent) == []


def test_each_content_is_read_once(sink, place):
    """Files of one content, and parts that repeat, cost one read of the blob."""
    twins = {b"%d" % n: b"same" for n in range(20)}
    digest = tree(sink, {**twins, b"s": sparse(sink, b"s", [BLOCK, 4096, BLOCK, BLOCK])})
    blobs = []
    read = sink.read
    sink.read = lambda kind, d: blobs.append(d) or read(kind, d)
    make(sink, digest, place)
    assert len([d for d in blobs if sink.objects[d][0] == ord("b")]) == 2
    assert (place / "s").read_bytes() == BLOCK + bytes(4096) + BLOCK + BLOCK


def test_contents_are_asked_for_in_lots(sink, place, monkeypatch):
    """More files than fit into one lot are all written, hard links across lots too."""
    monkeypatch.setattr("sandboxsdk.snapshot.acting._LOT_FILES", 3)
    spec = {b"%d" % n: b"%d" % (n % 7) for n in range(20)}
    digest = tree(sink, {**spec, b"d": {**spec, **pair(sink)}, b"z": file(sink, b"z", b"z")})
    make(sink, digest, place)
    assert differing(sink, capture(sink, place), mine(sink, digest)) == set()


@pytest.mark.parametrize("how", ["new", "in place"])
def test_a_deep_tree_needs_few_descriptors(sink, place, how):
    """4,096 levels of names of 255 bytes are made, changed and removed with few descriptors."""
    one, two = tree(sink, {b"f": b"1"}), tree(sink, {b"f": b"2", b"l": "x"})
    for _ in range(4096):
        one, two = (directory(sink, [below(b"d" * 255, d)]) for d in (one, two))
    most, before = 0, open_files()
    base = len(before)

    def count(call, _arguments):
        nonlocal most
        if call in ("create", "make_directory"):
            most = max(most, len(os.listdir("/proc/self/fd")) - base)

    with watched(count):
        make(sink, one, place)
        if how == "in place":
            assert turn(sink, place, two, one) == Restored(written=2)
            assert turn(sink, place, tree(sink, {}), two) == Restored(removed=1)
            assert os.listdir(place) == []
    assert most < 80
    assert open_files() <= before
    # The test's own tidying up knows no such paths.
    fd = os.open(place.parent, os.O_PATH)
    try:
        from sandboxsdk.host import remove_tree

        remove_tree(fd, place.name)
    finally:
        os.close(fd)


def test_what_the_host_refuses_names_the_path(sink, place):
    """What the kernel refuses is told with the path, escaped, below what the caller shows."""
    one, two = tree(sink, {b"d": {b"f": b"1"}}), tree(sink, {b"d": {b"f": b"2"}})
    make(sink, one, place)

    def fail(call, _arguments):
        if call == "create":
            raise OSError(errno.EROFS, "read-only")

    with watched(fail), pytest.raises(HostRefused, match="work/d/f") as caught:
        turn(sink, place, two, one, shown="work/")
    assert caught.value.path == "work/d/f"


@NOT_ROOT
def test_a_directory_without_rights_is_opened_up(sink, place):
    """A directory that its owner may not write or enter is changed, and has its mode again."""
    inner = directory(sink, [file(sink, b"f", b"1"), file(sink, b"g", b"1")], mode=0o500)
    one = tree(sink, {b"d": below(b"d", directory(sink, [below(b"e", inner)], mode=0o000))})
    inner = directory(sink, [file(sink, b"f", b"2")], mode=0o500)
    two = tree(sink, {b"d": below(b"d", directory(sink, [below(b"e", inner)], mode=0o000))})
    make(sink, one, place)
    turn(sink, place, two, one)
    assert stat.S_IMODE(os.stat(place / "d").st_mode) == 0
    os.chmod(place / "d", 0o700)
    assert stat.S_IMODE(os.stat(place / "d/e").st_mode) == 0o500
    assert (place / "d/e/f").read_bytes() == b"2"
    assert os.listdir(place / "d/e") == ["f"]


@pytest.mark.skipif(not ROOT, reason="only root gives files away")
def test_owners_are_those_that_the_caller_gives(sink, place):
    """With `owners` everything belongs to what it gives, links too; set-id bits are not kept."""
    spec = {
        b"f": file(sink, b"f", b"1", mode=0o4755, uid=5, gid=6),
        b"l": symlink(b"l", b"x", uid=5, gid=6),
        b"p": t.Node(b"p", t.FIFO, 0o600, 3, 5, 6),
    }
    one = directory(sink, [*spec.values(), below(b"d", directory(sink, owner=(7, 8)))])
    make(sink, one, place, owners=lambda uid, gid: (uid + 1000, gid + 2000))
    assert owner(place / "f") == owner(place / "l") == owner(place / "p") == (1005, 2006)
    assert owner(place / "d") == (1007, 2008)
    assert owner(place) == (1000, 2000)
    assert stat.S_IMODE(os.stat(place / "f").st_mode) == 0o755
    spec[b"f"] = file(sink, b"f", b"1", mode=0o755, uid=9, gid=9)
    two = directory(sink, [*spec.values(), below(b"d", directory(sink, owner=(9, 9)))])
    done = turn(sink, place, two, one, owners=lambda uid, gid: (uid, gid))
    assert done == Restored(touched=2)
    assert owner(place / "f") == owner(place / "d") == (9, 9)


def owner(path: Path) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_uid, found.st_gid


def test_the_same_socket_stays(sink, place):
    """A socket that both trees have is left alone; one that is wanted elsewhere is named."""
    place.mkdir()
    with socket.socket(socket.AF_UNIX) as one:
        # A path that is short enough for a socket, however long the test's own is.
        fd = os.open(place, os.O_PATH)
        one.bind(f"/proc/self/fd/{fd}/s")
        os.close(fd)
        node = t.Node(b"s", t.SOCKET)
        before = tree(sink, {b"s": node, b"a": b"1"})
        (place / "a").write_bytes(b"1")
        done = turn(sink, place, tree(sink, {b"s": node, b"new": t.Node(b"new", t.SOCKET)}), before)
    assert done.skipped == ("new",)
    assert os.listdir(place) == ["s"]


# --- Interrupts -----------------------------------------------------------------------------------


def until(condition, seconds: float = 10) -> None:
    end = clock.monotonic() + seconds
    while not condition():
        assert clock.monotonic() < end
        clock.pause(0.001)


# Python drops an interrupt that comes into a callback of its own, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_ends_it_and_leaves_nothing(sink, place):
    """Ctrl-C at any moment: no descriptor, no thread, and no half directory under the name."""
    digest = tree(sink, {b"%d" % n: {b"f": b"%d" % n, b"l": "x"} for n in range(60)})
    before, threads = open_files(), set(os.listdir("/proc/self/task"))
    interrupted = 0
    handler = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for round_ in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0001 + round_ * 0.0003)
                make(sink, digest, place)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            left = os.listdir(place.parent)
            assert left in ([], ["it"])
            if left:
                assert len(os.listdir(place)) == 60
                shutil.rmtree(place)
            assert open_files() <= before
            # One that was never let begin is on its way out.
            until(lambda: set(os.listdir("/proc/self/task")) <= threads)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.signal(signal.SIGINT, inherited)
    assert interrupted


def test_work_ends_before_an_interrupt_is_told(sink):
    """The thread tidies up first; what it raises itself comes through as it is."""
    ended = []

    def work(check):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                check()
        finally:
            ended.append(True)

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            uninterrupted(work)
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert ended
    with pytest.raises(ZeroDivisionError):
        uninterrupted(lambda check: 1 // 0)


# --- Any tree -------------------------------------------------------------------------------------

names = st.binary(min_size=1, max_size=3).filter(
    lambda n: not {b"/", b"\0"} & {bytes([c]) for c in n} and n not in (b".", b"..")
)
metadata = st.tuples(
    st.sampled_from([0o600, 0o644, 0o755, 0o400]),
    st.integers(-(10**18), 2 * 10**18),
    st.dictionaries(st.sampled_from([b"user.a", b"user.b"]), st.binary(max_size=4), max_size=2),
    st.sampled_from([0, 0, 1, 2]),
)
leaves = st.tuples(
    st.sampled_from([b"", b"one", b"two", b"three" * 9]), metadata
) | st.sampled_from(["x", "/y"])
specs = st.recursive(
    st.dictionaries(names, leaves, max_size=4),
    lambda inner: st.dictionaries(names, leaves | inner, max_size=4),
    max_leaves=20,
)


def links_of(spec: dict):
    for what in spec.values():
        if isinstance(what, dict):
            yield from links_of(what)
        elif isinstance(what, tuple):
            yield what[1][3]


def generated(sink: Memory, spec: dict) -> bytes:
    """Give the tree of a generated spec; names of one link number get one content."""
    groups: dict[int, tuple] = {}
    counts = Counter(links_of(spec))

    def node(name, what):
        if isinstance(what, dict):
            return below(name, store(what))
        if isinstance(what, str):
            return symlink(name, what.encode())
        data, (mode, mtime, attributes, link) = what
        # A file of one name is none of several, whatever its number is.
        link = link if counts[link] > 1 else 0
        if link:
            data, mode, mtime, attributes = groups.setdefault(link, (data, mode, mtime, attributes))
        return file(
            sink,
            name,
            data,
            mode,
            mtime=mtime,
            attributes=tuple(sorted(attributes.items())),
            link=link,
        )

    def store(one):
        return directory(sink, [node(name, what) for name, what in one.items()])

    return store(spec)


@given(one=specs, two=specs)
@settings(max_examples=60)
def test_any_tree_becomes_any_other(tmp_path_factory, one, two):
    """Made new, turned into the other and back, what lies there is what the tree says."""
    sink = Memory()
    base = tmp_path_factory.mktemp("any")
    where = base / "it"
    trees = [generated(sink, one), generated(sink, two)]
    make(sink, trees[0], where)
    for wanted in (trees[0], trees[1], trees[0]):
        turn(sink, where, wanted)
        found = capture(sink, where)
        assert differing(sink, found, mine(sink, wanted)) == set()
    shutil.rmtree(base)


def test_errors_of_the_trees_come_before_anything(sink, place):
    """A bomb or a missing tree makes no call at all."""
    digest = tree(sink, {b"f": b"x"})
    for _ in range(40):
        digest = directory(sink, [below(b"a", digest), below(b"b", digest)])
    calls = []
    with watched(lambda call, _: calls.append(call)):
        with pytest.raises(LimitExceeded):
            make(sink, digest, place)
        with pytest.raises(Corrupt):
            make(sink, bytes(32), place)
        with pytest.raises(SandboxError):
            restore_in_place(
                sink, -1, current=tree(sink, {}), target=tree(sink, {b"a": b"1"}), owners=None
            )
    assert calls == []


@pytest.mark.skipif(not ROOT, reason="only root has somebody else's directories")
def test_a_directory_of_somebody_else_is_denied(sink, place):
    """An empty directory of another user is not taken."""
    place.mkdir()
    os.chown(place, 12345, 12345)
    with pytest.raises(Denied, match="somebody else"):
        make(sink, tree(sink, {}), place)
