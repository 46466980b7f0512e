"""The table of attacks on a restore as data: what is tried, what is to be seen, and who tries it.

A row has a probe, or a reason why there is none here.
"""

from __future__ import annotations

import functools
import os
import shutil
import stat
import struct
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest

from sandboxsdk.errors import Corrupt, Denied, FileConflict, HostFull, HostRefused, LimitExceeded
from sandboxsdk.snapshot import Node
from sandboxsdk.snapshot import tree as t
from sandboxsdk.syscalls import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    mount,
    unshare,
)
from tests.trees import below, capture, file, sparse, symlink

from .stand import ROOT, Stand, watched

Probe = Callable[[Stand], Any]


class Row(NamedTuple):
    """One attack. `absent` is the reason why there is no probe."""

    id: str
    tried: str
    expected: str
    probe: Probe | None = None
    absent: str = ""


# --- What no tree can say -------------------------------------------------------------------------


def names(*refused: bytes) -> Probe:
    def probe(stand: Stand) -> None:
        for name in refused:
            for node in (
                file(stand.sink, name, b"x"),
                below(name, stand.tree({})),
                symlink(name, b"x"),
            ):
                stand.refused(stand.nodes(node), Corrupt)
                shutil.rmtree(stand.target)

    return probe


def climbs_over_levels(stand: Stand) -> None:
    up = stand.nodes(below(b"..", stand.nodes(below(b"..", stand.tree({b"outside": b"x"})))))
    stand.refused(stand.tree({b"a": below(b"a", up)}), Corrupt)


def twice(*kinds: str) -> Probe:
    def probe(stand: Stand) -> None:
        made = {
            "link": symlink(b"a", os.fsencode(stand.outside)),
            "directory": below(b"a", stand.tree({b"file": b"x"})),
        }
        stand.refused(stand.nodes(*(made[kind] for kind in kinds)), Corrupt)

    return probe


def link_targets_are_no_paths(stand: Stand) -> None:
    for path in (b"/etc/passwd", b"../../outside/file", b"outside/file", b"/" * 31):
        node = Node(b"a", t.FILE, 0o644, size=7, content=path, link=1)
        stand.refused(stand.nodes(node), Corrupt)
        shutil.rmtree(stand.target)


def links_to_no_files(stand: Stand) -> None:
    link = symlink(b"a", os.fsencode(stand.outside / "file"), link=1)
    inside = Node(b"b", t.DIRECTORY, content=stand.tree({}), link=1)
    later = file(stand.sink, b"c", b"x", link=1)
    for nodes in ((link, later), (inside,), (later, Node(b"d", t.FIFO, link=1))):
        stand.refused(stand.nodes(*nodes), Corrupt)
        shutil.rmtree(stand.target)
    # Links that were one inode are made one by one, and a link is never followed.
    stand.make(stand.nodes(link, msgspec.structs.replace(link, name=b"b")))
    assert os.readlink(stand.lies("b")) == str(stand.outside / "file")


def attributes_of_the_kernel(stand: Stand) -> None:
    grant = struct.pack("<5I", 0x02000001, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0)
    for name in (b"security.capability", b"trusted.overlay.opaque", b"system.posix_acl_access"):
        node = file(stand.sink, b"a", b"x", attributes=((name, grant),))
        stand.refused(stand.nodes(node), Corrupt)
        shutil.rmtree(stand.target)
        digest = stand.tree({}, attributes=((name, grant),))
        stand.refused(stand.tree({b"d": below(b"d", digest)}), Corrupt)
        shutil.rmtree(stand.target)


def impossible_times(stand: Stand) -> None:
    times = (-(2**63), -1, -(10**9) + 1, 2**63 - 1)
    spec = {b"%d" % n: file(stand.sink, b"%d" % n, b"x", mtime=at) for n, at in enumerate(times)}
    stand.make(stand.tree(spec))
    assert os.stat(stand.lies("1")).st_mtime_ns == -1
    assert os.stat(stand.lies("2")).st_mtime_ns == -(10**9) + 1
    shutil.rmtree(stand.target)
    for at in (2**63, 2**64 - 1):
        node = [b"a", t.FILE, 0o644, at, 0, 0, 0, b"", 0, []]
        for page in (
            [1, 0o755, 0, 0, 0, [], [node], b""],
            [1, 0o755, at, 0, 0, [], [], b""],
        ):
            stand.refused(stand.sink.add(ord("t"), msgspec.msgpack.encode(page)), Corrupt)
            shutil.rmtree(stand.target)


# --- Links on the way -----------------------------------------------------------------------------


def link_then_file_through_it(stand: Stand) -> None:
    out = os.fsencode(stand.outside / "directory")
    stand.make(stand.tree({b"a": out.decode()}))
    assert os.readlink(stand.lies("a")) == os.fsdecode(out)
    # The tree that is wanted has a directory there, and somebody says that it is one already.
    was, wanted = stand.tree({b"a": {b"file": b"0"}}), stand.tree({b"a": {b"file": b"inside"}})
    stand.turn(wanted, was)
    assert stand.lies("a/file").read_bytes() == b"inside"
    assert not stand.lies("a").is_symlink()


def planted(*targets: str) -> Probe:
    """A link stands where a directory of the tree is to be changed."""

    def probe(stand: Stand) -> None:
        was = stand.tree({b"d": {b"e": {b"file": b"1"}, b"gone": b"2"}})
        wanted = stand.tree({b"d": {b"e": {b"file": b"11"}, b"new": {b"x": b"3"}}})
        outside = os.open(stand.outside / "directory", os.O_PATH)
        try:
            for target in targets:
                for victim in ("d", "d/e"):
                    stand.make(was)
                    shutil.rmtree(stand.lies(victim))
                    stand.lies(victim).symlink_to(target.format(outside))
                    stand.turn(wanted, was)
                    assert stand.lies("d/e/file").read_bytes() == b"11"
                    assert sorted(os.listdir(stand.lies("d"))) == ["e", "new"]
                    shutil.rmtree(stand.target)
        finally:
            os.close(outside)

    return probe


def chain_of_links(stand: Stand) -> None:
    chain = {b"l%02d" % n: f"l{n + 1:02}" for n in range(41)} | {b"loop": "loop"}
    chain[b"l41"] = str(stand.outside / "directory")
    stand.make(stand.tree(chain))
    assert os.readlink(stand.lies("loop")) == "loop"
    was = stand.tree({b"l00": {b"file": b"1"}, b"loop": {b"file": b"1"}})
    stand.turn(stand.tree({b"l00": {b"file": b"2"}, b"loop": {b"file": b"2"}}), was)
    assert stand.lies("l00/file").read_bytes() == b"2"
    assert stand.lies("loop/file").read_bytes() == b"2"


def longer_than_a_path(stand: Stand) -> None:
    step = "d" * 247
    digest = stand.tree({b"file": b"deep", b"l": "/".join([step] * 16 + [".."] * 18 + ["outside"])})
    for level in range(40):
        up = "../" * (level + 3) + "outside"
        digest = stand.tree({step.encode(): below(step.encode(), digest), b"l": up})
    made = stand.make(digest)
    assert made.written == 2 + 2 * 40
    changed = stand.tree({b"file": b"other", b"l": "x"})
    for _ in range(40):
        changed = stand.tree({step.encode(): below(step.encode(), changed), b"l": {b"file": b"x"}})
    assert stand.turn(changed, digest).written > 80


def metadata_aimed_at_a_target(stand: Stand) -> None:
    was = stand.tree({b"f": b"1", b"d": {}})
    wanted = stand.tree(
        {
            b"f": file(
                stand.sink, b"f", b"1", mode=0o777, mtime=5, attributes=((b"user.a", b"b"),)
            ),
            b"d": below(b"d", stand.tree({}, mode=0o777, mtime=5)),
        }
    )
    stand.make(was)
    stand.lies("f").unlink()
    stand.lies("f").symlink_to(stand.outside / "file")
    stand.lies("d").rmdir()
    stand.lies("d").symlink_to(stand.outside / "directory")
    stand.turn(wanted, was)
    assert stat.S_IMODE(stand.lies("f").lstat().st_mode) == 0o777
    assert stand.lies("d").is_dir()
    assert not stand.lies("d").is_symlink()


def folding_names(stand: Stand) -> None:
    digest = stand.tree({b"A": b"1", b"a": b"2"})
    stand.make(digest)
    assert stand.lies("A").read_bytes() + stand.lies("a").read_bytes() == b"12"
    shutil.rmtree(stand.target)

    def fold(call: str, arguments: tuple[Any, ...]) -> None:
        # Such a file system shows the first file under the second name as well.
        if call == "create" and arguments[0] == b"a":
            os.link(b"A", b"a", src_dir_fd=arguments[1], dst_dir_fd=arguments[1])

    with watched(fold):
        stand.fails_cleanly(digest, FileConflict)


# --- What is there already ------------------------------------------------------------------------


def other_types(stand: Stand) -> None:
    one = stand.tree({b"a": b"file", b"b": {b"x": {b"y": b"1"}}, b"c": {}})
    two = stand.tree({b"a": {b"x": b"1"}, b"b": b"file", b"c": "link"})
    stand.make(one)
    for wanted in (two, one):
        stand.turn(wanted)
        stand.make(wanted, stand.parent / "fresh")
        assert same(stand, stand.target, stand.parent / "fresh")
        shutil.rmtree(stand.parent / "fresh")


def same(stand: Stand, one: Any, two: Any) -> bool:
    return capture(stand.sink, one) == capture(stand.sink, two)


def hard_links_out(stand: Stand) -> None:
    was = stand.tree({b"a": b"outside", b"b": b"outside"})
    wanted = stand.tree({b"a": file(stand.sink, b"a", b"outside", mode=0o777), b"b": b"new"})
    copy = stand.outside.parent / "copy"
    shutil.copy2(stand.outside / "file", copy)
    os.chmod(copy, 0o640)
    stand.make(was)
    for name in "ab":
        stand.lies(name).unlink()
        os.link(copy, stand.lies(name))
    stand.turn(wanted, was)
    found = copy.stat()
    assert (copy.read_bytes(), stat.S_IMODE(found.st_mode), found.st_nlink) == (
        b"outside",
        0o640,
        1,
    )
    assert stand.lies("b").read_bytes() == b"new"


def special_files_in_the_way(stand: Stand) -> None:
    was = stand.tree({b"a": b"1", b"b": b"1", b"c": {b"x": b"1"}})
    wanted = stand.tree({b"a": b"2", b"b": file(stand.sink, b"b", b"1", mode=0o600), b"c": {}})
    stand.make(was)
    shutil.rmtree(stand.lies("c"))
    for name in "abc":
        stand.lies(name).unlink(missing_ok=True)
        if ROOT and name == "a":
            os.mknod(stand.lies(name), stat.S_IFCHR | 0o666, os.makedev(1, 3))
        else:
            os.mkfifo(stand.lies(name))
    stand.turn(wanted, was)
    assert stand.lies("a").read_bytes() == b"2"
    assert stand.lies("b").read_bytes() == b"1"
    assert stand.lies("c").is_dir()


def target_is_a_link(stand: Stand) -> None:
    digest = stand.tree({b"a": b"1"})
    empty = stand.parent.parent / "empty"
    empty.mkdir()
    stand.target.symlink_to(empty)
    for path in (stand.target, f"{stand.target}/"):
        with pytest.raises(Denied, match="link"):
            stand.make(digest, path)  # type: ignore[arg-type]
    stand.target.unlink()
    alias = stand.parent.parent / "alias"
    alias.symlink_to(stand.parent)
    with pytest.raises(Denied, match="link"):
        stand.make(digest, alias / "target")
    assert os.listdir(empty) == os.listdir(stand.parent) == []


def target_of_others(stand: Stand) -> None:
    digest = stand.tree({b"a": b"1"})
    stand.parent.chmod(0o777)
    with pytest.raises(Denied, match="everybody"):
        stand.make(digest)
    stand.parent.chmod(0o1777)
    stand.make(digest)
    shutil.rmtree(stand.target)
    if ROOT:
        stand.target.mkdir()
        os.chown(stand.target, 12345, 12345)
        with pytest.raises(Denied, match="somebody else"):
            stand.make(digest)
        assert os.listdir(stand.target) == []


def mounted_inside(stand: Stand) -> None:
    was = stand.tree({b"d": {b"file": b"1"}, b"f": b"1"})
    wanted = stand.tree({b"d": {b"file": b"2"}, b"f": file(stand.sink, b"f", b"1", mode=0o600)})
    stand.make(was)

    def attempt(over: str, source: str, digest: bytes) -> None:
        def run() -> None:
            try:
                unshare(CLONE_NEWNS | (0 if ROOT else CLONE_NEWUSER))
                mount("none", "/", None, MS_REC | MS_PRIVATE)
                mount(str(stand.outside / source), str(stand.lies(over)), None, MS_BIND)
            except OSError:
                os._exit(77)
            with pytest.raises((Denied, HostRefused)):
                stand.turn(digest, was)

        code = child(run)
        if code == 77:
            pytest.skip("this host allows no mounts")
        assert code == 0

    only_file = stand.tree({b"d": {b"file": b"1"}, b"f": file(stand.sink, b"f", b"1", mode=0o600)})
    attempt("d", "directory", wanted)
    attempt("f", "file", only_file)
    attempt("d", "directory", stand.tree({b"f": b"1"}))


def child(act: Callable[[], None]) -> int:
    """Act in a forked process, which may lose its place in the world; gives its exit code."""
    with warnings.catch_warnings():
        # The child of a process with threads: it ends without coming back here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def swapped_after_it_was_opened(stand: Stand) -> None:
    digest = stand.tree({b"a": b"1"})
    moved = stand.parent.parent / "moved"

    def swap_parent(call: str, _: tuple[Any, ...]) -> None:
        if call == "create":
            stand.parent.rename(moved)
            stand.parent.symlink_to(stand.outside)

    with watched(swap_parent), pytest.raises(FileConflict, match="moved or replaced"):
        stand.make(digest)
    stand.parent.unlink()
    assert os.listdir(moved) == []
    moved.rename(stand.parent)

    def plant_target(call: str, _: tuple[Any, ...]) -> None:
        if call == "create":
            stand.target.mkdir()
            (stand.target / "x").write_bytes(b"x")

    with watched(plant_target), pytest.raises(FileConflict):
        stand.make(digest)
    assert os.listdir(stand.target) == ["x"]
    shutil.rmtree(stand.target)
    stand.target.mkdir()

    def replace_target(call: str, _: tuple[Any, ...]) -> None:
        if call == "create":
            stand.target.rename(moved)
            stand.target.mkdir()

    with watched(replace_target), pytest.raises(FileConflict, match="moved or replaced"):
        stand.make(digest)
    assert os.listdir(stand.parent) == ["target"]


def killed_at_each_step(stand: Stand) -> None:
    digest = stand.tree({b"a": b"1", b"d": {b"x": b"2", b"l": "y"}})
    with watched() as calls:
        stand.make(digest)
    whole = capture(stand.sink, stand.target)
    shutil.rmtree(stand.target)

    def killed(left: int) -> None:
        def kill(_call: str, _: tuple[Any, ...]) -> None:
            nonlocal left
            if left == 0:
                os._exit(9)
            left -= 1

        with watched(kill):
            stand.make(digest)

    for number in range(len(calls)):
        assert child(functools.partial(killed, number)) == 9
        assert not stand.target.exists()
        leftovers = os.listdir(stand.parent)
        assert all(name.endswith(".sandboxsdk-restore") for name in leftovers)
        for name in leftovers:
            shutil.rmtree(stand.parent / name)
    stand.make(digest)
    assert capture(stand.sink, stand.target) == whole


# --- What is written ------------------------------------------------------------------------------


def no_set_id(stand: Stand) -> None:
    spec = {b"f": file(stand.sink, b"f", b"x", mode=0o7755)}
    digest = stand.tree({**spec, b"d": below(b"d", stand.tree({}, mode=0o7777))}, mode=0o7755)
    stand.make(digest)
    modes = [stat.S_IMODE(os.lstat(stand.lies(name)).st_mode) for name in (".", "f", "d")]
    assert modes == [0o1755, 0o755, 0o1777]
    spec[b"f"] = file(stand.sink, b"f", b"x", mode=0o6711)
    stand.turn(stand.tree(spec))
    assert stat.S_IMODE(os.lstat(stand.lies("f")).st_mode) == 0o711


def no_devices(stand: Stand) -> None:
    null, disk_0 = os.makedev(1, 3), os.makedev(8, 0)
    nodes = (Node(b"c", t.CHARACTER, 0o666, size=null), Node(b"b", t.BLOCK, 0o666, size=disk_0))
    digest = stand.nodes(*sorted(nodes, key=lambda node: node.name))
    assert stand.make(digest).skipped == ("b", "c")
    assert os.listdir(stand.target) == []
    assert stand.turn(digest).skipped == ("b", "c")
    assert os.listdir(stand.target) == []


def fifos_and_sockets(stand: Stand) -> None:
    digest = stand.tree({b"f": Node(b"f", t.FIFO, 0o640, 7), b"s": Node(b"s", t.SOCKET, 0o777)})
    assert stand.make(digest).skipped == ("s",)
    found = os.lstat(stand.lies("f"))
    assert stat.S_ISFIFO(found.st_mode)
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o640, 7)
    stand.turn(stand.tree({b"f": Node(b"f", t.FIFO, 0o600, 8)}))
    stand.turn(stand.tree({b"f": b"file"}))
    assert stand.lies("f").read_bytes() == b"file"


def owners_are_ignored(stand: Stand) -> None:
    nodes = [file(stand.sink, name, b"x", uid=uid, gid=uid) for name, uid in OWNED]
    stand.make(stand.nodes(*nodes))
    stand.turn(stand.nodes(*(msgspec.structs.replace(n, uid=7, mtime=8) for n in nodes)))
    for name, _ in OWNED:
        assert os.lstat(stand.lies(os.fsdecode(name))).st_uid == os.geteuid()


OWNED = ((b"a", 0), (b"b", 12345), (b"c", 2**32 - 1))


def closed_directories(stand: Stand) -> None:
    inner = below(b"e", stand.tree({b"f": b"1"}, mode=0o000, mtime=5))
    digest = stand.tree({b"d": below(b"d", stand.tree({b"e": inner}, mode=0o555, mtime=6))})
    stand.make(digest)
    assert (
        stat.S_IMODE(os.lstat(stand.lies("d/e")).st_mode),
        stand.lies("d").stat().st_mtime_ns,
    ) == (
        0,
        6,
    )
    inner = below(b"e", stand.tree({b"f": b"2"}, mode=0o000, mtime=5))
    changed = stand.tree({b"d": below(b"d", stand.tree({b"e": inner}, mode=0o555, mtime=6))})
    stand.turn(changed, digest)
    found = os.lstat(stand.lies("d/e"))
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0, 5)
    assert stat.S_IMODE(os.lstat(stand.lies("d")).st_mode) == 0o555
    os.chmod(stand.lies("d"), 0o700)
    os.chmod(stand.lies("d/e"), 0o700)
    assert stand.lies("d/e/f").read_bytes() == b"2"


def claims_of_size(stand: Stand) -> None:
    huge = Node(b"f", t.FILE, 0o644, size=2**63 - 1, content=stand.sink.add(ord("b"), b"x"))
    with watched() as calls:
        stand.fails_cleanly(stand.nodes(huge), HostFull)
        assert calls == []
        parts = [t.Part(2**63 - 1, stand.sink.add(ord("b"), b"x"))]
        content = t.write_parts(stand.sink, parts)
        filled = Node(b"f", t.PARTS, 0o644, size=2**63 - 1, content=content)
        stand.fails_cleanly(stand.nodes(filled), HostFull)
        assert calls == []
    stand.fails_cleanly(stand.nodes(sparse(stand.sink, b"f", [2**63 - 1])), HostRefused)


def very_many_entries(stand: Stand) -> None:
    nodes = [file(stand.sink, b"%07d" % n, b"same") for n in range(100_000)]
    one = stand.nodes(*nodes)
    nodes[70_000] = file(stand.sink, b"0070000", b"other")
    stand.target.mkdir()
    assert stand.turn(stand.nodes(*nodes), one).written == 1
    assert os.listdir(stand.target) == ["0070000"]
    shutil.rmtree(stand.target)
    digest = stand.tree({})
    for _ in range(70_000):
        digest = stand.nodes(below(b"d", digest))
    stand.refused(digest, LimitExceeded)


def more_than_declared(stand: Stand) -> None:
    for declared in (1, 3):
        node = msgspec.structs.replace(file(stand.sink, b"f", b"xx"), size=declared)
        stand.fails_cleanly(stand.nodes(node), Corrupt)
    page = [1, [[1, stand.sink.add(ord("b"), b"xx")]], b""]
    content = stand.sink.add(ord("l"), msgspec.msgpack.encode(page))
    stand.fails_cleanly(stand.nodes(Node(b"f", t.PARTS, 0o644, size=1, content=content)), Corrupt)
    stand.refused(stand.nodes(Node(b"f", t.PARTS, 0o644, size=2, content=content)), Corrupt)


def bomb(stand: Stand) -> None:
    digest = stand.tree({b"f": b"x"})
    for _ in range(40):
        digest = stand.nodes(below(b"a", digest), below(b"b", digest))
    stand.refused(digest, LimitExceeded)


def cycle(stand: Stand) -> None:
    inner = stand.tree({b"f": b"x"})
    outer = stand.nodes(below(b"d", inner))
    read = stand.sink.read
    aliases = {inner: stand.sink.objects[outer][1]}
    stand.sink.read = lambda kind, d: aliases.get(d) or read(kind, d)  # type: ignore[method-assign]
    stand.refused(outer, Corrupt)


def wrong_bytes(stand: Stand) -> None:
    was, wanted = stand.tree({b"a": b"1", b"d": {}}), stand.tree({b"a": b"22", b"d": {b"x": b"33"}})
    stand.make(was)
    for data in (b"22", b"33"):
        digest = file(stand.sink, b"f", data).content
        stand.sink.objects[digest] = ord("b"), b"xx"
    with pytest.raises(Corrupt):
        stand.turn(wanted)
    assert stand.lies("a").read_bytes() == b"1"
    assert os.listdir(stand.lies("d")) == []
    shutil.rmtree(stand.target)
    stand.fails_cleanly(wanted, Corrupt)


ROWS = (
    Row("P01", "name `..`, `.`, empty", "rejected when read", names(b"..", b".", b"")),
    Row(
        "P02",
        "name with `/` or NUL, absolute path",
        "rejected when read",
        names(b"a/b", b"a\0b", b"/etc", b"/", b"x" * 256),
    ),
    Row("P03", "`a/../../b` over several levels", "rejected when read", climbs_over_levels),
    Row(
        "P04", "link, then a child below it", "rejected: one name twice", twice("link", "directory")
    ),
    Row("P05", "link out, later a file through it", "link kept as data", link_then_file_through_it),
    Row("P06", "chain of 41 links, loop", "never followed", chain_of_links),
    Row(
        "P07",
        "link to /proc/self/fd/N, /dev/fd/N",
        "never followed",
        planted("/proc/self/fd/{}", "/dev/fd/{}", "/proc/self/cwd"),
    ),
    Row("P08", "hard link to a path", "rejected: there are no paths", link_targets_are_no_paths),
    Row("P09", "hard link to a link, a directory", "rejected or not one file", links_to_no_files),
    Row("P10", "longer than any path", "no paths, so no matter", longer_than_a_path),
    Row(
        "P11", "metadata aimed at a link's target", "set on descriptors", metadata_aimed_at_a_target
    ),
    Row("P12", "one name twice", "rejected when read", twice("directory", "link")),
    Row("P13", "names that a file system folds", "conflict, nothing left", folding_names),
    Row("P14", "file for directory and reverse", "replaced", other_types),
    Row(
        "P15",
        "`.git/hooks` and the like",
        "listed before they are applied",
        absent="a restore gives back what was captured; a diff lists it, apply asks",
    ),
    Row("P16", "set-id and sticky bits", "stripped", no_set_id),
    Row("P17", "devices", "named, never made", no_devices),
    Row("P18", "FIFOs, sockets", "made or named, never opened", fifos_and_sockets),
    Row("P19", "security.*, trusted.*, ACLs", "rejected when read", attributes_of_the_kernel),
    Row("P20", "owner 0 or unknown", "ignored", owners_are_ignored),
    Row("P21", "closed directories", "set last, from the bottom", closed_directories),
    Row("P22", "file of 8 EiB", "refused, nothing left", claims_of_size),
    Row("P23", "very many entries, levels", "linear; limits", very_many_entries),
    Row("P24", "more bytes than declared", "found before the name", more_than_declared),
    Row("P25", "2^40 paths in 40 directories", "limit", bomb),
    Row("P26", "a directory in itself", "found", cycle),
    Row("P27", "target or its parent is a link", "refused", target_is_a_link),
    Row("P28", "target of others, open parent", "refused", target_of_others),
    Row("P29", "mount inside of the target", "refused", mounted_inside),
    Row("P30", "target swapped after opening", "seen, given up", swapped_after_it_was_opened),
    Row("P31", "file with a name outside", "new file, outside unchanged", hard_links_out),
    Row("P32", "FIFO or device in the way", "replaced, never written", special_files_in_the_way),
    Row("P33", "killed at each step", "old or new, never a mix", killed_at_each_step),
    Row(
        "P34",
        "a running box writes",
        "refused unless frozen",
        absent="the box refuses (BoxBusy); the swap attacker is what writes here",
    ),
    Row("P35", "times that cannot be", "clamped or rejected", impossible_times),
    Row("P36", "wrong bytes under a digest", "never get a name", wrong_bytes),
)
