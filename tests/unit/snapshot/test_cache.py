"""The stat cache: it saves reading, and whatever is wrong with it costs reading, never content."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from sandboxsdk import clock
from sandboxsdk.codec import checksum, encode_msgpack
from sandboxsdk.snapshot import StatCache
from sandboxsdk.snapshot import cache as module
from sandboxsdk.snapshot import tree as t
from sandboxsdk.store import BLOB, Store
from tests import trees
from tests.trees import LONG_AGO, Counting, aged


def round_trip(cache: StatCache, directory: Path, **more: Any) -> StatCache:
    """Write a cache down and read it again."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        cache.save("scan", fd)
        return load(directory, **more)
    finally:
        os.close(fd)


def load(directory: Path, *, generation: str = "g", has: Any = None) -> StatCache:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    before = set(os.listdir("/proc/self/fd"))
    try:
        return StatCache.load("scan", fd, generation=generation, has=has or unasked)
    finally:
        assert set(os.listdir("/proc/self/fd")) <= before, "descriptors leaked"
        os.close(fd)


def unasked(digests: Any) -> set[bytes]:
    raise AssertionError("nobody needs to ask")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Give a directory with a few files, one of them in parts."""
    path = tmp_path / "place"
    (path / "d").mkdir(parents=True)
    (path / "f").write_bytes(b"one")
    (path / "empty").touch()
    (path / "d" / "g\n\udcff").write_bytes(b"two")
    with open(path / "d" / "sparse", "wb") as file:
        file.truncate(1 << 20)
        os.pwrite(file.fileno(), b"x", 1 << 19)
    os.setxattr(path / "f", "user.a", b"1")
    return path


def test_what_is_known_is_not_read(place, tmp_path):
    """A second walk gives the same tree and takes no content, also from a cache that was stored."""
    sink = Counting(BLOB)
    learned = aged()
    first = trees.walked(sink, place, learned=learned)
    taken = sink.taken
    assert taken >= 3
    known = round_trip(learned, tmp_path)
    again = aged()
    assert trees.walked(sink, place, known=known, learned=again) == first
    assert sink.taken == taken
    # What was found is passed on to the next walk.
    assert again._rows == known._rows == learned._rows


def test_what_is_young_is_read_again(place):
    """A file that changed shortly before the walk began is not remembered."""
    (place / "f").write_bytes(b"now")
    learned = StatCache("g")
    trees.walked(trees.Memory(), place, learned=learned)
    assert b"f" not in learned._rows.get(b"", {})
    learned = StatCache("g")
    learned._began = os.stat(place / "f").st_ctime_ns + 60_000_000
    trees.walked(trees.Memory(), place, learned=learned)
    assert b"f" in learned._rows[b""]


def test_whole_seconds_make_it_young_for_longer(place):
    """Where a file system stores whole seconds, a file is young for some of them."""
    found = list(os.stat(place / "f"))
    learned = StatCache("g")
    node = t.Node(b"f", t.FILE)

    def changed(before_ns: int, *, fraction: int) -> os.stat_result:
        whole = (learned._began - before_ns) // 10**9
        times = {"st_mtime_ns": 5, "st_ctime_ns": whole * 10**9 + fraction}
        return os.stat_result(found, times)

    learned.note(b"", node, changed(2 * 10**9, fraction=0))
    assert not learned._rows
    learned.note(b"", node, changed(6 * 10**9, fraction=0))
    assert learned._rows
    learned = StatCache("g")
    learned.note(b"", node, changed(2 * 10**9, fraction=1))
    assert learned._rows


def test_a_clock_that_went_back_makes_it_read_more(place):
    """A file from the future is not remembered: its next change may have an earlier time."""
    learned = StatCache("g")
    learned._began -= LONG_AGO
    trees.walked(trees.Memory(), place, learned=learned)
    assert not learned._rows


EDITS = {
    "same size": lambda path: path.write_bytes(b"ONE"),
    "longer": lambda path: path.write_bytes(b"longer"),
    "in place of it": lambda path: (path.unlink(), path.write_bytes(b"ONE")),
    "renamed over": lambda path: (
        path.with_name("new").write_bytes(b"ONE"),
        os.rename(path.with_name("new"), path),
    ),
    "emptied": lambda path: os.truncate(path, 0),
    "mode": lambda path: path.chmod(0o600),
    "attribute": lambda path: os.setxattr(path, "user.a", b"2"),
    "no attribute": lambda path: os.removexattr(path, "user.a"),
    "time alone": lambda path: os.utime(path, ns=(7, 7)),
    "by another name": lambda path: (
        os.link(path, path.parent.parent / "alias"),
        (path.parent.parent / "alias").write_bytes(b"ONE"),
        (path.parent.parent / "alias").unlink(),
    ),
}


@pytest.mark.parametrize("put_back", [False, True])
@pytest.mark.parametrize("edit", EDITS)
def test_no_edit_is_missed(place, tmp_path, edit, put_back):
    """An edit is seen, also one of the same size after which somebody sets the old times again."""
    sink = trees.Memory()
    learned = aged()
    trees.walked(sink, place, learned=learned)
    known = round_trip(learned, tmp_path)
    before = os.stat(place / "f")
    EDITS[edit](place / "f")
    if put_back:
        os.utime(place / "f", ns=(before.st_atime_ns, before.st_mtime_ns))
    got = trees.walked(sink, place, known=known)
    assert got.tree == trees.capture(sink, place)
    node = trees.nodes(sink, got.tree)[b"f"]
    assert trees.content(sink, node) == (place / "f").read_bytes()


@pytest.mark.parametrize("field", range(6))
def test_everything_that_is_known_of_a_file_must_be_the_same(place, field):
    """Device, inode, size, both times and mode: if one of them differs, the file is read."""
    learned = aged()
    trees.walked(trees.Memory(), place, learned=learned)
    found = os.stat(place / "f")
    assert learned.find(b"", b"f", found) is not None
    row = learned._rows[b""][b"f"]
    values = struct.unpack("<QQqqqI", row.stamp)
    other = (value + (number == field) for number, value in enumerate(values))
    stamp = struct.pack("<QQqqqI", *other)
    learned._rows[b""][b"f"] = module.msgspec.structs.replace(row, stamp=stamp)
    assert learned.find(b"", b"f", found) is None
    assert values == (
        *(found.st_dev, found.st_ino, found.st_size),
        *(found.st_mtime_ns, found.st_ctime_ns, found.st_mode),
    )


def test_another_file_with_the_same_inode_number(place):
    """A number that the file system gave away again means another file."""
    sink = trees.Memory()
    learned = aged()
    trees.walked(sink, place, learned=learned)
    before = os.stat(place / "f")
    for _ in range(50):
        (place / "f").unlink()
        (place / "f").write_bytes(b"ONE")
        if os.stat(place / "f").st_ino == before.st_ino:
            break
    os.utime(place / "f", ns=(before.st_atime_ns, before.st_mtime_ns))
    got = trees.walked(sink, place, known=learned)
    assert trees.content(sink, trees.nodes(sink, got.tree)[b"f"]) == b"ONE"


def test_names_that_trade_places_are_told_apart(place):
    """Each name has its own stamp: files that were renamed to each other's names are read."""
    sink = trees.Memory()
    (place / "e").write_bytes(b"six")
    learned = aged()
    trees.walked(sink, place, learned=learned)
    os.rename(place / "f", place / "x")
    os.rename(place / "e", place / "f")
    os.rename(place / "x", place / "e")
    got = trees.walked(sink, place, known=learned)
    found = trees.nodes(sink, got.tree)
    assert trees.content(sink, found[b"f"]) == b"six"
    assert trees.content(sink, found[b"e"]) == b"one"


def test_damage_in_any_byte_makes_it_know_nothing(place, tmp_path):
    """Each byte changed, each length cut, bytes more: the cache is empty, and nothing raises."""
    learned = aged()
    trees.walked(trees.Memory(), place, learned=learned)
    assert round_trip(learned, tmp_path)._rows
    path = tmp_path / "scan"
    whole = path.read_bytes()
    assert len(whole) < 2000
    for at in range(len(whole)):
        for flip in (0x01, 0xFF):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            assert not load(tmp_path)._rows
        path.write_bytes(whole[:at])
        assert not load(tmp_path)._rows
    path.write_bytes(whole + b"\0")
    assert not load(tmp_path)._rows


@pytest.mark.parametrize("version", [0, 1, 2, 2**31])
def test_another_version_is_not_believed(place, tmp_path, monkeypatch, version):
    """A cache of another version, newer or older, is no cache."""
    learned = aged()
    trees.walked(trees.Memory(), place, learned=learned)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_VERSION", version)
        round_trip(learned, tmp_path)
    assert not load(tmp_path)._rows


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        encode_msgpack([3, "g", [], {}]),
        encode_msgpack([3, b"g", {}, {}]),
        encode_msgpack([3, "g", {b"": {b"f": []}}, {}]),
        encode_msgpack([3, "g", {b"": {b"f": [[1, 2, 3], 0, 0, 0, 0, b"", []]}}, {}]),
        encode_msgpack([3, "g", {b"": {b"f": [b"", 0, 0, 0, 0, b"", [], 0]}}, {}]),
        encode_msgpack([3, "g", {b"": {b"f": [b"", 0, 0, 0, 0, b"", []]}}]),
        encode_msgpack([3, "g", {b"": {b"f": [b"", 0, 0, 0, 0, b"", []]}}, {b"": []}]),
        encode_msgpack([2, "g", {b"": {b"f": [b"", 0, 0, b"", []]}}]),
        b"\x94\x03\xa1g\x81\xc4\x00\x82"
        + 2 * encode_msgpack({b"f": [b"", 0, 0, 0, 0, b"", []]})[1:]
        + b"\x80",
        b"\x91" * 100_000,
        b"\x94\x03\xa1g\xdf\xff\xff\xff\xff",
    ],
)
def test_other_bytes_with_a_right_sum_are_not_believed(tmp_path, body):
    """A file whose sum is right and whose content is another makes it know nothing."""
    (tmp_path / "scan").write_bytes(checksum(body) + body)
    assert not load(tmp_path)._rows


@pytest.mark.parametrize("what", ["nothing", "directory", "fifo", "link", "loop", "empty"])
def test_something_else_in_its_place(place, tmp_path, what):
    """No file, a directory, a FIFO or a link where the cache should be: it knows nothing."""
    learned = aged()
    trees.walked(trees.Memory(), place, learned=learned)
    round_trip(learned, tmp_path)
    path = tmp_path / "scan"
    path.rename(tmp_path / "elsewhere")
    if what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to("elsewhere")
    elif what == "loop":
        path.symlink_to("scan")
    elif what == "empty":
        path.touch()
    assert not load(tmp_path)._rows


def test_another_generation_asks_what_is_there(place, tmp_path):
    """When objects may have gone, each content is asked for, and what is missing is read again."""
    sink = trees.Memory()
    learned = aged()
    first = trees.walked(sink, place, learned=learned)
    round_trip(learned, tmp_path)
    found = trees.nodes(sink, first.tree)
    lost = found[b"f"].content
    asked = []

    def has(digests: Any) -> set[bytes]:
        asked.append(set(digests))
        return set(asked[0]) - {lost}

    known = load(tmp_path, generation="another", has=has)
    assert asked == [{found[b"f"].content, found[b"d/g\n\xff"].content}]
    # Empty files need nothing; of a list nobody knows what it needs.
    assert set(known._rows[b""]) == {b"empty"}
    assert set(known._rows[b"d"]) == {b"g\n\xff"}
    del sink.objects[lost]
    assert trees.walked(sink, place, known=known) == first
    assert lost in sink.objects


def test_a_cache_of_another_store_stores_nothing_that_is_missing(place, tmp_path):
    """A cache that was made with another store never leads to a tree with a hole."""
    caches = []
    for name in ("one", "two"):
        store = Store(str(tmp_path / name))
        try:
            known = caches[-1] if caches else StatCache(store.generation)
            if caches:
                assert store.generation != known.generation
                known = load(tmp_path, generation=store.generation, has=store.has)
            learned = aged(store.generation)
            with store.writing() as writer:
                got = trees.walked(writer, place, known=known, learned=learned)
                writer.commit()
            for node in trees.nodes(store, got.tree).values():
                if node.is_file:
                    trees.content(store, node)
            round_trip(learned, tmp_path, generation=store.generation)
            caches.append(learned)
        finally:
            store.close()


def test_it_need_not_be_written(place, tmp_path):
    """Where it cannot be written down, nothing fails; the next walk reads more."""
    learned = aged()
    trees.walked(trees.Memory(), place, learned=learned)
    fd = os.open(place / "f", os.O_RDONLY)
    try:
        learned.save("scan", fd)
    finally:
        os.close(fd)
    gone = tmp_path / "gone"
    gone.mkdir()
    fd = os.open(gone, os.O_RDONLY)
    gone.rmdir()
    try:
        learned.save("scan", fd)
        assert not StatCache.load("scan", fd, generation="g", has=unasked)._rows
    finally:
        os.close(fd)


def test_writing_it_leaves_nothing_else(place, tmp_path):
    """It is put in place of the old one at once, under its name and no other."""
    learned = aged()
    trees.walked(trees.Memory(), place, learned=learned)
    for _ in range(3):
        round_trip(learned, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["place", "scan"]
    assert os.stat(tmp_path / "scan").st_mode & 0o777 == 0o600


def test_what_would_be_the_same_is_not_written(place, tmp_path):
    """A walk that learned nothing leaves the file alone; one that did not find all writes it."""
    learned = aged()
    trees.walked(trees.Memory(), place, learned=learned)
    known = round_trip(learned, tmp_path)
    before = os.stat(tmp_path / "scan")
    again = aged()
    trees.walked(trees.Memory(), place, known=known, learned=again)
    assert round_trip(again, tmp_path)._rows == known._rows
    assert os.path.samestat(os.stat(tmp_path / "scan"), before)
    os.unlink(place / "f")
    again = aged()
    trees.walked(trees.Memory(), place, known=known, learned=again)
    found = round_trip(again, tmp_path)
    assert b"f" in known._rows[b""]
    assert b"f" not in found._rows[b""]
    assert not os.path.samestat(os.stat(tmp_path / "scan"), before)


def test_what_was_asked_of_another_generation_is_written(place, tmp_path):
    """When the generation is another, the file says so afterwards: nobody asks again."""
    learned = aged()
    trees.walked(trees.Memory(), place, learned=learned)
    known = round_trip(learned, tmp_path, generation="h", has=set)
    again = aged("h")
    trees.walked(trees.Memory(), place, known=known, learned=again)
    assert round_trip(again, tmp_path, generation="h")._rows == again._rows


def test_what_is_young_is_forgotten_where_it_was_known(place, tmp_path):
    """A clock that went back makes files young that were known: they are not passed on."""
    sink = Counting(BLOB)
    learned = aged()
    first = trees.walked(sink, place, learned=learned)
    known = round_trip(learned, tmp_path)
    taken = sink.taken
    again = StatCache("g")
    again._began -= LONG_AGO
    assert trees.walked(sink, place, known=known, learned=again) == first
    assert sink.taken == taken
    assert not round_trip(again, tmp_path)._rows


def test_what_is_younger_than_a_moment_is_told_of_known_files(place, tmp_path):
    """What changed since a moment is told whether the files are known or read."""
    sink = trees.Memory()
    learned = aged()
    moment = max(os.stat(place / name).st_ctime_ns for name in ("empty", "d"))
    os.utime(place / "f", ns=(5, 5))
    first = trees.walked(sink, place, learned=learned, since=moment)
    known = round_trip(learned, tmp_path)
    got = trees.walked(sink, place, known=known, learned=aged(), since=moment)
    assert "f" in got.moved.entries
    assert got == first


def test_times_beyond_all_numbers_are_told_apart(place):
    """A stamp can be made of any time that a file system may give."""
    found = list(os.stat(place / "f"))
    late = [os.stat_result(found, {"st_mtime_ns": 2**63 + n, "st_ctime_ns": 1}) for n in (0, 1)]
    assert module.stamp_of(late[0]) != module.stamp_of(late[1])
    assert module.stamp_of(late[0]) == module.stamp_of(late[0])
    learned = aged()
    learned.note(b"", t.Node(b"f", t.FILE), late[0])
    assert not learned._rows
    assert learned.find(b"", b"f", late[0]) is None


def test_the_walks_own_clock_is_the_hosts(place):
    """What is young is told by the clock that the kernel stamps files with."""
    assert abs(StatCache("g")._began - clock.now_ns()) < 60 * 10**9
