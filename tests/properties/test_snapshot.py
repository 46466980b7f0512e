"""Snapshots against naive copies: round trips, edits between captures, comparing, going back."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from sandboxsdk.host import remove_tree
from sandboxsdk.snapshot import (
    StatCache,
    compare_trees,
    reachable,
    restore_in_place,
    restore_to,
    totals_of,
)
from sandboxsdk.store import Store
from tests import trees
from tests.unit.snapshot.test_merge import seen_in
from tests.unit.workspace.test_difference_mounted import expected

EDITS = int(os.environ.get("SANDBOXSDK_EDITS", "2000"))


def remove(path: Path) -> None:
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        remove_tree(fd, os.fsencode(path.name))
    finally:
        os.close(fd)


# --- Round trip -----------------------------------------------------------------------------------

_NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"a-", b"\n", b"\xff", b"n" * 255]),
    st.binary(min_size=1, max_size=8).filter(
        lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")
    ),
)
_TIMES = st.one_of(
    st.integers(-(2**31) * 10**9, 2**33 * 10**9),
    st.sampled_from([-1, 0, 1, 10**9, -(10**9) - 1]),
)
_ATTRIBUTES = st.dictionaries(
    st.sampled_from(["user.a", "user.b\udcff", "user.overlay.opaque"]),
    st.binary(max_size=20),
    max_size=2,
)
_FILES = st.fixed_dictionaries(
    {
        "kind": st.just("file"),
        "mode": st.integers(0, 0o777),
        "mtime": _TIMES,
        "attributes": _ATTRIBUTES,
        # Bytes, or so many blocks of hole.
        "parts": st.lists(st.one_of(st.binary(max_size=30), st.integers(1, 3)), max_size=3),
    }
)
_OTHERS = st.one_of(
    st.fixed_dictionaries(
        {
            "kind": st.just("symlink"),
            "target": st.binary(min_size=1, max_size=30).filter(lambda n: b"\0" not in n),
            "mtime": _TIMES,
        }
    ),
    st.fixed_dictionaries(
        {"kind": st.just("fifo"), "mode": st.integers(0, 0o777), "mtime": _TIMES}
    ),
    st.fixed_dictionaries({"kind": st.just("link"), "to": st.integers(0, 5)}),
)


def _directories(inner: Any) -> Any:
    return st.fixed_dictionaries(
        {
            "kind": st.just("directory"),
            "mode": st.one_of(st.integers(0, 0o777), st.just(0o1777)),
            "mtime": _TIMES,
            "attributes": _ATTRIBUTES,
            "entries": st.dictionaries(_NAMES, inner, max_size=4),
        }
    )


_TREES = _directories(st.recursive(st.one_of(_FILES, _OTHERS), _directories, max_leaves=8))


def write(path: bytes, entry: dict[str, Any]) -> None:
    """Write a tree; what directories are themselves comes last, or some would be closed to us."""
    later: list[tuple[bytes, dict[str, Any]]] = []
    _write(path, entry, [], later)
    for inner, told in reversed(later):
        _describe(inner, told)


def _write(
    path: bytes,
    entry: dict[str, Any],
    files: list[bytes],
    later: list[tuple[bytes, dict[str, Any]]],
) -> None:
    kind = entry["kind"]
    if kind == "directory":
        os.mkdir(path)
        later.append((path, entry))
        for name, inner in entry["entries"].items():
            _write(os.path.join(path, name), inner, files, later)
        return
    if kind == "file":
        with open(path, "xb") as file:
            for part in entry["parts"]:
                if isinstance(part, int):
                    file.truncate(-(-file.tell() // 4096) * 4096 + part * 4096)
                    file.seek(0, os.SEEK_END)
                else:
                    file.write(part)
        files.append(path)
    elif kind == "symlink":
        os.symlink(entry["target"], path)
    elif kind == "fifo":
        os.mkfifo(path)
        files.append(path)
    elif files:
        os.link(files[entry["to"] % len(files)], path)
        return
    else:
        return
    _describe(path, entry)


def _describe(path: bytes, entry: dict[str, Any]) -> None:
    for name, value in entry.get("attributes", {}).items():
        os.setxattr(path, name, value)
    times = (entry["mtime"], entry["mtime"])
    os.utime(path, ns=times, follow_symlinks=False)
    if "mode" in entry:
        os.chmod(path, entry["mode"])


def facts(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """Describe what lies on the disk, as far as it may be looked at."""
    found = {}
    inodes: dict[int, list[bytes]] = {}
    for folder, names, files in os.walk(os.fsencode(root)):
        # The root counts as one of its own entries; it may be closed to us.
        for name in [b"", *names, *files] if folder == os.fsencode(root) else names + files:
            path = os.path.join(folder, name) if name else folder
            try:
                entry = os.lstat(path)
            except PermissionError:
                continue
            shown = os.path.relpath(path, os.fsencode(root))
            told: list[Any] = [entry.st_mode, entry.st_mtime_ns, entry.st_uid, entry.st_gid]
            if stat.S_ISLNK(entry.st_mode):
                told.append(os.readlink(path))
            elif not stat.S_ISFIFO(entry.st_mode) and os.access(path, os.R_OK):
                told.append({n: os.getxattr(path, n) for n in os.listxattr(path)})
            if stat.S_ISREG(entry.st_mode):
                told += [entry.st_size, entry.st_blocks]
                if os.access(path, os.R_OK):
                    with open(path, "rb") as file:
                        told.append(file.read())
            if not stat.S_ISDIR(entry.st_mode):
                inodes.setdefault(entry.st_ino, []).append(shown)
            found[shown] = tuple(told)
    for names_of in inodes.values():
        for shown in names_of:
            found[shown] = (*found[shown], sorted(names_of))
    return found


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as directory:
        made = Store(f"{directory}/store")
        try:
            yield made
        finally:
            made.close()


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(entry=_TREES)
def test_what_is_captured_and_restored_is_the_same(store: Store, entry: dict[str, Any]) -> None:
    """Names as bytes, modes, times, links, holes, attributes, hard links and FIFOs: a tree that was
    stored and restored is the same tree, on the disk too.
    """
    place = Path(tempfile.mkdtemp())
    try:
        write(os.fsencode(place / "one"), entry)
        with store.writing() as writer:
            first = trees.walked(writer, place / "one", unlock=True)
            writer.commit()
        restored = restore_to(store, first.tree, str(place / "two"), owners=None, durable=False)
        assert restored.skipped == ()
        assert facts(place / "two") == facts(place / "one")
        second = trees.walked(trees.Memory(), place / "two", unlock=True)
        assert second.tree == first.tree
        assert second.totals == first.totals == totals_of(store, first.tree)
        needed = reachable(store, [first.tree])
        assert store.has(needed) == needed
    finally:
        remove(place)


# --- Edits between captures -----------------------------------------------------------------------

_PATHS = ("a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "d/e/b", "f", "f/a")
_TEXTS = (b"", b"one", b"two", b"longer text", b"x" * 5000)


def edit(root: str, what: str, path: str, other: str, text: bytes, number: int) -> None:
    """Do one thing to the files, if it is possible."""
    here, there = f"{root}/{path}", f"{root}/{other}"
    with contextlib.suppress(OSError, shutil.Error):
        _edit(what, here, there, text, number)


def _edit(what: str, here: str, there: str, text: bytes, number: int) -> None:
    regular = os.path.isfile(here) and not os.path.islink(here)
    if what == "write":
        os.makedirs(os.path.dirname(here), exist_ok=True)
        if not os.path.lexists(here) or regular:
            Path(here).write_bytes(text)
    elif what == "append" and regular:
        with open(here, "ab") as file:
            file.write(text)
    elif what == "truncate" and regular:
        os.truncate(here, number * 700)
    elif what == "same size, old time" and regular:
        before = os.stat(here)
        with open(here, "r+b") as file:
            file.write(bytes([65 + number]) * before.st_size)
        os.utime(here, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif what == "rename":
        os.rename(here, there)
    elif what == "chmod" and not os.path.islink(here):
        os.chmod(here, (0o700, 0o755, 0o750, 0o500)[number % 4] if os.path.isdir(here) else 0o644)
    elif what == "chmod file" and regular:
        os.chmod(here, (0o400, 0o644, 0o755, 0o600)[number % 4])
    elif what == "utime":
        os.utime(here, ns=(1, number * 10**9 + 1), follow_symlinks=False)
    elif what == "link":
        os.link(here, there, follow_symlinks=False)
    elif what == "symlink":
        os.symlink(text[:50] or b"x", os.fsencode(here))
    elif what == "mkdir":
        os.makedirs(here)
    elif what == "fifo":
        os.mkfifo(here)
    elif what == "attribute" and not os.path.islink(here):
        os.setxattr(here, f"user.{number % 2}", text[:20])
    elif what == "remove":
        _remove(here)
    elif what == "swap type":
        _swap_type(here, text)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _swap_type(path: str, text: bytes) -> None:
    was_directory = os.path.isdir(path) and not os.path.islink(path)
    _remove(path)
    if was_directory:
        Path(path).write_bytes(text)
    else:
        os.mkdir(path)
        Path(f"{path}/a").write_bytes(text)


_MAKING = ("write", "write", "mkdir", "symlink", "fifo", "link", "append")
_CHANGING = (
    *("same size, old time", "truncate", "append", "chmod", "chmod file", "utime", "attribute"),
    *("rename", "rename", "remove", "swap type", "link"),
)


def tick(probe: str) -> None:
    """Let the clock that files are stamped with go on: what is done later has a later stamp."""

    def now() -> int:
        with open(probe, "ab") as file:
            file.write(b"")
            os.utime(file.fileno())
            return os.fstat(file.fileno()).st_ctime_ns

    begun = now()
    while now() <= begun:
        pass


def remembering() -> StatCache:
    """Give a cache that takes what is young too; `tick` makes that right."""
    cache = StatCache("g")
    cache._began += 10**18
    return cache


class Edits(RuleBasedStateMachine):
    """Files that are edited, captured with what the last walk learned, compared, and put back."""

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.mkdtemp()
        self.root = f"{self.place}/root"
        os.mkdir(self.root)
        self.sink = trees.Memory()
        self.known = StatCache("g")
        self.captures: list[bytes] = []
        self.edits = 0

    def teardown(self) -> None:
        remove(Path(self.place))

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(6):
            edit(self.root, "write", chance.choice(_PATHS), "a", chance.choice(_TEXTS), 0)
        self.capture()

    @rule(
        what=st.sampled_from(_MAKING),
        path=st.sampled_from(_PATHS),
        other=st.sampled_from(_PATHS),
        text=st.sampled_from(_TEXTS),
    )
    def make(self, what: str, path: str, other: str, text: bytes) -> None:
        edit(self.root, what, path, other, text, 0)
        self.edits += 1

    @rule(
        what=st.sampled_from(_CHANGING),
        path=st.sampled_from(_PATHS),
        other=st.sampled_from(_PATHS),
        text=st.sampled_from(_TEXTS),
        number=st.integers(0, 7),
    )
    def change(self, what: str, path: str, other: str, text: bytes, number: int) -> None:
        edit(self.root, what, path, other, text, number)
        self.edits += 1

    @precondition(lambda self: self.edits >= 2)
    @rule()
    def capture(self) -> None:
        """With the cache the tree is what it is without, and what a naive copy has."""
        tick(f"{self.place}/probe")
        learned = remembering()
        got = trees.walked(self.sink, self.root, known=self.known, learned=learned)
        assert got.tree == trees.walked(self.sink, self.root).tree
        assert got.changed == ()
        assert unlinked(self.sink, got.tree) == unlinked(
            self.sink, trees.capture(self.sink, self.root)
        )
        assert got.totals == totals_of(self.sink, got.tree)
        self.known, self.edits = learned, 0
        self.captures.append(got.tree)

    @precondition(lambda self: len(self.captures) > 1)
    @rule(one=st.integers(0, 10**6), other=st.integers(0, 10**6))
    def compare(self, one: int, other: int) -> None:
        """What differs between two trees is what differs between two whole listings."""
        old, new = (self.captures[n % len(self.captures)] for n in (one, other))
        naive = expected(seen_in(self.sink, old), seen_in(self.sink, new))
        assert compare_trees(self.sink, old, new) == naive

    @precondition(lambda self: len(self.captures) > 1 and self.edits == 0)
    @rule(which=st.integers(0, 10**6))
    def go_back(self, which: int) -> None:
        """Restoring an earlier tree over a later one gives exactly the earlier one."""
        current, target = self.captures[-1], self.captures[which % len(self.captures)]
        fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY)
        try:
            restore_in_place(self.sink, fd, current=current, target=target, owners=None)
        finally:
            os.close(fd)
        self.edits = 2
        self.capture()
        assert self.captures[-1] == target


def unlinked(reader: Any, tree: bytes) -> dict[bytes, Any]:
    """Give the entries of a tree, and which files are one, without the numbers for that."""
    found = trees.nodes(reader, tree)
    groups: dict[int, list[bytes]] = {}
    for path, node in found.items():
        groups.setdefault(node.link, []).append(path)
    told = {}
    for path, node in found.items():
        plain = node.is_file or node.kind == trees.t.FIFO
        others = sorted(groups[node.link]) if node.link and plain else []
        told[path] = (msgspec.structs.replace(node, link=0), others)
    return told


TestEdits = pytest.mark.timeout(900)(Edits.TestCase)
TestEdits.settings = settings(
    max_examples=300,
    stateful_step_count=50,
    suppress_health_check=[HealthCheck.too_slow],
)


# --- No change is missed --------------------------------------------------------------------------


class Files:
    """Some files that are changed in every way that is hard to see."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.chance = root, random.Random(seed)
        self.names = [f"f{number}" for number in range(12)]
        for name in self.names:
            (root / name).write_bytes(self.fresh(20))

    def fresh(self, length: int) -> bytes:
        return self.chance.randbytes(length)

    def change(self) -> None:
        """Change the content of one file, or of none."""
        path = self.root / self.chance.choice(self.names)
        before = os.stat(path)
        how = self.chance.choice(
            ("in place", "mapped", "alias", "new inode", "renamed over", "two swapped", "grown")
        )
        if how == "in place":
            path.write_bytes(self.fresh(before.st_size))
        elif how == "mapped":
            with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
                mapped[: len(mapped)] = self.fresh(len(mapped))
                mapped.flush()
        elif how == "alias":
            os.link(path, self.root / "alias")
            (self.root / "alias").write_bytes(self.fresh(before.st_size))
            (self.root / "alias").unlink()
        elif how == "new inode":
            path.unlink()
            path.write_bytes(self.fresh(before.st_size))
        elif how == "renamed over":
            (self.root / "fresh").write_bytes(self.fresh(before.st_size))
            os.rename(self.root / "fresh", path)
        elif how == "two swapped":
            other = self.root / self.chance.choice(self.names)
            os.rename(path, self.root / "swap")
            with contextlib.suppress(FileNotFoundError):
                os.rename(other, path)
            os.rename(self.root / "swap", other if path.exists() else path)
        else:
            with open(path, "ab") as file:
                file.write(self.fresh(3))
        if self.chance.random() < 0.7:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        if self.chance.random() < 0.2:
            path.chmod(self.chance.choice((0o600, 0o644)))

    def contents(self) -> dict[str, bytes]:
        return {name: (self.root / name).read_bytes() for name in self.names}


@pytest.mark.parametrize("aged", [True, False])
def test_no_change_is_missed(tmp_path: Path, aged: bool) -> None:  # noqa: FBT001
    """Of 2,000 changes in every way that is hard to see, the next walk misses none: neither right
    after them, nor where everything counts as old.
    """
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    root = tmp_path / "root"
    root.mkdir()
    files = Files(root, seed)
    sink = trees.Memory()
    known = StatCache("g")
    for _ in range(EDITS // (1 if aged else 4)):
        files.change()
        if aged:
            tick(str(tmp_path / "probe"))
        learned = remembering() if aged else StatCache("g")
        got = trees.walked(sink, root, known=known, learned=learned)
        found = trees.nodes(sink, got.tree)
        contents = {
            os.fsdecode(path): trees.content(sink, node)
            for path, node in found.items()
            if node.is_file
        }
        assert contents == files.contents(), f"missed a change with seed {seed}"
        known = learned
    assert not aged or known._rows
