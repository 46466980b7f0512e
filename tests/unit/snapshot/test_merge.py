"""An overlay's upper laid over the tree of its base: what the kernel shows, at the upper's cost."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxsdk.errors import Corrupt
from sandboxsdk.snapshot import Merge, excluding, totals_of
from sandboxsdk.snapshot import tree as t
from tests import trees
from tests.unit.workspace.test_difference_mounted import (
    _CREATIONS,
    _OPERATIONS,
    Inside,
    inside,  # noqa: F401 - the fixture
)

WHITEOUT = stat.S_IFCHR
Facts = dict[str, list[Any]]


class Counting(trees.Memory):
    """A store that counts the trees that it is asked for."""


@pytest.fixture
def base(tmp_path) -> Any:
    """Give the directory below: files, directories, a link, a name that is a prefix."""
    path = tmp_path / "base"
    for name in ("a", "d/b", "d/e/c", "d/e/f", "g/h"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"base " + os.fsencode(name))
    (path / "link").symlink_to("a")
    (path / "d-").mkdir()
    return path


@pytest.fixture
def upper(tmp_path) -> Any:
    path = tmp_path / "upper"
    path.mkdir()
    return path


def whiteout(path: Any) -> None:
    os.mknod(path, WHITEOUT, 0)


def laid_over(sink: trees.Memory, base: Any, upper: Any, **rules: Any) -> Any:
    """Capture the base, and the upper laid over it."""
    below = trees.walked(sink, base, overlay=True, mounts=True)
    merge = Merge(sink, below.tree, below.totals)
    return trees.walked(sink, upper, overlay=True, merge=merge, **rules)


def paths(sink: trees.Memory, tree: bytes) -> set[str]:
    return {os.fsdecode(path) for path in trees.nodes(sink, tree)} - {"."}


EVERYTHING = {"a", "d", "d/b", "d/e", "d/e/c", "d/e/f", "g", "g/h", "link", "d-"}


def test_an_empty_upper_is_the_base(base, upper):
    """Nothing was changed: everything of the base is there, by the same objects."""
    sink = trees.Memory()
    below = trees.walked(sink, base, overlay=True)
    count = len(sink.objects)
    got = trees.walked(sink, upper, overlay=True, merge=Merge(sink, below.tree, below.totals))
    assert paths(sink, got.tree) == EVERYTHING
    assert got.totals == below.totals
    assert len(sink.objects) <= count + 1  # The root has the upper's own time.


def test_whiteouts_take_away(base, upper):
    """A device 0:0 is a name that is not there: a file, a directory with all in it, or nothing."""
    (upper / "d").mkdir()
    for name in ("a", "d/e", "link", "never"):
        whiteout(upper / name)
    sink = trees.Memory()
    got = laid_over(sink, base, upper)
    assert paths(sink, got.tree) == {"d", "d/b", "g", "g/h", "d-"}
    assert got.totals == totals_of(sink, got.tree) == (2, len("base d/b") + len("base g/h"))
    assert got.skipped == ()


def test_an_opaque_directory_hides_what_is_below(base, upper):
    """Of an opaque directory only what is in the upper is there; of another one all of both."""
    for name in ("d/e", "g"):
        (upper / name).mkdir(parents=True)
    os.setxattr(upper / "d" / "e", "user.overlay.opaque", b"y")
    os.setxattr(upper / "g", "user.overlay.origin", b"whatever")
    (upper / "d" / "e" / "new").write_bytes(b"new")
    (upper / "g" / "new").write_bytes(b"new")
    sink = trees.Memory()
    got = laid_over(sink, base, upper)
    assert paths(sink, got.tree) == {
        *("a", "d", "d/b", "d/e", "d/e/new", "g", "g/h", "g/new", "link", "d-")
    }
    assert got.totals == totals_of(sink, got.tree)
    found = trees.nodes(sink, got.tree)
    assert found[b"d/e"].attributes == found[b"g"].attributes == ()


@pytest.mark.parametrize("name", ["a", "d", "link", "d-"])
@pytest.mark.parametrize("by", ["file", "directory", "link", "fifo"])
def test_anything_replaces_anything(base, upper, name, by):
    """An entry of the upper hides what is below it, whatever both are."""
    path = upper / name
    if by == "file":
        path.write_bytes(b"upper")
    elif by == "directory":
        path.mkdir()
        os.setxattr(path, "user.overlay.opaque", b"y")
        (path / "inner").write_bytes(b"inner")
    elif by == "link":
        path.symlink_to("elsewhere")
    else:
        os.mkfifo(path)
    sink = trees.Memory()
    got = laid_over(sink, base, upper)
    gone = {other for other in EVERYTHING if other.startswith(f"{name}/")}
    more = {f"{name}/inner"} if by == "directory" else set()
    assert paths(sink, got.tree) == (EVERYTHING - gone) | more
    assert got.totals == totals_of(sink, got.tree)


def test_the_guests_own_marks_come_back(base, upper):
    """What the guest called `user.overlay.x` is told by that name; the kernel's are not told."""
    (upper / "f").touch()
    os.setxattr(upper / "f", "user.overlay.overlay.opaque", b"y")
    os.setxattr(upper / "f", "user.overlay.overlay.overlay.x", b"1")
    os.setxattr(upper / "f", "user.overlay.origin", b"kernel")
    os.setxattr(upper / "f", "user.mine", b"2")
    sink = trees.Memory()
    got = laid_over(sink, base, upper)
    assert trees.nodes(sink, got.tree)[b"f"].attributes == (
        (b"user.mine", b"2"),
        (b"user.overlay.opaque", b"y"),
        (b"user.overlay.overlay.x", b"1"),
    )


def test_marks_mean_nothing_in_a_directory_without_overlay(upper):
    """In the user's own directory they are attributes like others, and a device is a device."""
    (upper / "d").mkdir()
    os.setxattr(upper / "d", "user.overlay.opaque", b"y")
    whiteout(upper / "w")
    sink = trees.Memory()
    got = trees.walked(sink, upper)
    found = trees.nodes(sink, got.tree)
    assert found[b"d"].attributes == ((b"user.overlay.opaque", b"y"),)
    assert found[b"w"].kind == t.CHARACTER
    assert got.skipped == ("w",)


def test_files_can_stand_for_names_that_are_not_there(base, upper):
    """The other whiteout, an empty file with a mark, counts where its directory says so."""
    for name in ("d", "g"):
        (upper / name).mkdir()
    os.setxattr(upper / "d", "user.overlay.opaque", b"x")
    for name in ("d/b", "g/h"):
        (upper / name).touch()
        os.setxattr(upper / name, "user.overlay.whiteout", b"")
    (upper / "d" / "empty").touch()
    sink = trees.Memory()
    learned = trees.StatCache("g")
    learned._began += 10**18
    got = laid_over(sink, base, upper, learned=learned)
    assert paths(sink, got.tree) == (EVERYTHING - {"d/b"}) | {"d/empty"}
    assert trees.nodes(sink, got.tree)[b"g/h"].size == 0
    assert laid_over(sink, base, upper, known=learned) == got
    os.setxattr(upper / "g", "user.overlay.opaque", b"x")
    got = laid_over(sink, base, upper, known=learned)
    assert paths(sink, got.tree) == (EVERYTHING - {"d/b", "g/h"}) | {"d/empty"}


def test_links_of_an_upper_are_apart_from_those_of_the_base(base, upper):
    """Names that were one file in the base and in the upper are two groups, never one."""
    os.link(base / "a", base / "b")
    os.link(base / "a", base / "c")
    (upper / "a").write_bytes(b"upper")
    os.link(upper / "a", upper / "z")
    sink = trees.Memory()
    found = trees.nodes(sink, laid_over(sink, base, upper).tree)
    assert found[b"a"].link == found[b"z"].link != 0
    assert found[b"b"].link == found[b"c"].link != 0
    assert found[b"a"].link != found[b"b"].link


def test_what_is_excluded_is_not_taken_from_the_upper(base, upper):
    """A path that is left out of the base is left out of the upper too."""
    exclude = excluding(["e/", "*.log"])
    (upper / "d" / "e").mkdir(parents=True)
    (upper / "d" / "e" / "new").touch()
    (upper / "x.log").touch()
    sink = trees.Memory()
    below = trees.walked(sink, base, overlay=True, exclude=exclude)
    merge = Merge(sink, below.tree, below.totals)
    got = trees.walked(sink, upper, overlay=True, merge=merge, exclude=exclude)
    assert paths(sink, got.tree) == {"a", "d", "d/b", "g", "g/h", "link", "d-"}
    assert got.totals == totals_of(sink, got.tree)


def test_only_what_the_upper_names_is_read_of_the_base(base, upper):
    """A change deep in the upper costs the directories on its way, not those beside."""
    for number in range(50):
        (base / f"more{number}" / "inner").mkdir(parents=True)
        (base / f"more{number}" / "f").write_bytes(b"x")
    sink = trees.Memory()
    below = trees.walked(sink, base, overlay=True)
    (upper / "d" / "e").mkdir(parents=True)
    (upper / "d" / "e" / "c").write_bytes(b"upper")
    sink.reads = 0
    got = trees.walked(sink, upper, overlay=True, merge=Merge(sink, below.tree, below.totals))
    assert sink.reads == 3
    assert got.totals == totals_of(sink, got.tree)


def test_a_damaged_base_is_an_error(base, upper):
    """A tree of the base that is gone is `Corrupt`, never a directory with less in it."""
    sink = trees.Memory()
    below = trees.walked(sink, base, overlay=True)
    gone = next(
        node.content for node in t.read_directory(sink, below.tree).nodes if node.name == b"d"
    )
    (upper / "d").mkdir()
    del sink.objects[gone]
    with pytest.raises(Corrupt):
        trees.walked(sink, upper, overlay=True, merge=Merge(sink, below.tree, below.totals))


def seen_in(sink: trees.Memory, tree: bytes) -> Facts:
    """Describe a tree as the process in the overlay describes what it sees."""
    kinds = {
        t.FILE: stat.S_IFREG,
        t.PARTS: stat.S_IFREG,
        t.DIRECTORY: stat.S_IFDIR,
        t.SYMLINK: stat.S_IFLNK,
        t.FIFO: stat.S_IFIFO,
    }
    found: Facts = {}
    for path, node in trees.nodes(sink, tree).items():
        if path == b".":
            continue
        content = ""
        if node.is_file:
            content = trees.content(sink, node).hex()
        elif node.kind == t.SYMLINK:
            content = os.fsdecode(node.content)
        found[os.fsdecode(path)] = [kinds[node.kind], content, node.mode]
    return found


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    creations=st.lists(_CREATIONS, min_size=4, max_size=12),
    sessions=st.lists(st.lists(_OPERATIONS, min_size=1, max_size=12), min_size=1, max_size=2),
)
def test_the_merged_tree_is_what_the_kernel_shows(
    inside: Inside,  # noqa: F811 - the fixture
    creations: list[Any],
    sessions: list[list[Any]],
) -> None:
    """After random work in real overlays, the merged tree is what a process in them saw."""
    directory = inside.new_directory()
    base = f"{directory}/base"
    os.makedirs(f"{directory}/task/upper")
    inside.ask(what="work", directory=base, operations=creations)
    sink = trees.Memory()
    below = trees.walked(sink, base, overlay=True, mounts=True)
    merge = Merge(sink, below.tree, below.totals)
    known = trees.StatCache("g")
    for number, operations in enumerate(sessions):
        os.makedirs(f"{directory}/task/work{number}")
        seen = inside.ask(
            what="work in",
            base=base,
            task=f"{directory}/task",
            upper="upper",
            work_dir=f"work{number}",
            operations=operations,
        )
        learned = trees.StatCache("g")
        got = trees.walked(
            sink,
            f"{directory}/task/upper",
            overlay=True,
            merge=merge,
            unlock=True,
            known=known,
            learned=learned,
        )
        assert seen_in(sink, got.tree) == seen
        assert got.totals == totals_of(sink, got.tree)
        known = learned
    inside.ask(what="clear", directory=directory)


@pytest.fixture(autouse=True)
def whole(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check that no test leaves a descriptor open; the process inside has its pipes before."""
    if "inside" in request.fixturenames:
        yield
        return
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before
