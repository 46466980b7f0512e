"""What trees need: all of it for garbage collection, and the paths that damage takes away."""

from __future__ import annotations

import pytest

from sandboxsdk.errors import Corrupt
from sandboxsdk.snapshot import damaged_paths, reachable
from sandboxsdk.snapshot import tree as t
from sandboxsdk.store import BLOB
from tests import trees


@pytest.fixture
def sink():
    return trees.Memory()


def rich(sink):
    """Store a tree with files, parts, holes, links and directories that are shared."""
    shared = {b"x": b"shared", b"empty": b""}
    return trees.tree(
        sink,
        {
            b"a": b"one",
            b"s": trees.sparse(sink, b"s", [b"two", 4096, b"three"]),
            b"d": {b"e": shared, b"f": shared, b"l": "a"},
            b"p": t.Node(b"p", t.FIFO),
            b"k": t.Node(b"k", t.SOCKET),
        },
    )


def test_everything_that_was_stored_is_reachable(sink):
    """Of a store that holds one tree, that tree needs every object and no other."""
    root = rich(sink)
    assert reachable(sink, [root]) == set(sink.objects)
    sink.add(BLOB, b"something else")
    assert reachable(sink, [root]) == set(sink.objects) - {sink.add(BLOB, b"something else")}


def test_several_roots_need_all_of_them(sink):
    """What two trees share is there once, and each root's own is there too."""
    roots = [rich(sink), trees.tree(sink, {b"a": b"one", b"n": b"new"})]
    assert reachable(sink, roots) == set(sink.objects)
    assert reachable(sink, []) == set()
    assert reachable(sink, roots * 2) == set(sink.objects)


def test_pages_are_reachable(sink, monkeypatch):
    """Each page of a directory and of a list is needed."""
    monkeypatch.setattr(t, "_PAGE_BYTES", 150)
    nodes = [trees.file(sink, b"%02d" % n, b"%d" % n) for n in range(12)]
    parts = trees.sparse(sink, b"s", [b"%d" % n for n in range(12)])
    root = trees.directory(sink, [*nodes, parts])
    assert len(sink.objects) > 12 + 6
    assert reachable(sink, [root]) == set(sink.objects)


def test_what_cannot_be_known_is_an_error(sink):
    """Without a tree or a list nobody knows what it needs; a blob that is gone is still named."""
    root = rich(sink)
    everything = reachable(sink, [root])
    for digest in everything:
        kept = sink.objects.pop(digest)
        if kept[0] == BLOB:
            assert reachable(sink, [root]) == everything
        else:
            with pytest.raises(Corrupt):
                reachable(sink, [root])
        sink.objects[digest] = kept


def test_damage_is_told_by_paths(sink):
    """A lost blob is a file, a lost part is a file, a lost tree is a directory."""
    root = rich(sink)
    found = trees.nodes(sink, root)
    parts = t.read_parts(sink, found[b"s"])
    assert damaged_paths(sink, root, set()) == []
    assert damaged_paths(sink, root, {found[b"a"].content}) == ["a"]
    assert damaged_paths(sink, root, [parts[2].content]) == ["s"]
    assert damaged_paths(sink, root, {found[b"s"].content}) == ["s"]
    assert damaged_paths(sink, root, {root}) == ["."]
    (shared,) = damaged_paths(sink, root, {found[b"d/e/x"].content})
    assert shared in ("d/e/x", "d/f/x")


def test_what_is_gone_is_told_without_being_named(sink):
    """A tree or list that cannot be read is damage, also if nobody says so."""
    root = rich(sink)
    found = trees.nodes(sink, root)
    inner = {node.name: node.content for node in t.read_directory(sink, root).nodes}[b"d"]
    del sink.objects[inner]
    assert damaged_paths(sink, root, set()) == ["d"]
    del sink.objects[found[b"s"].content]
    assert damaged_paths(sink, root, set()) == ["d", "s"]
    del sink.objects[root]
    assert damaged_paths(sink, root, set()) == ["."]


def test_few_paths_are_told(sink):
    """However much is lost, ten paths are examples enough, and the walk ends there."""
    nodes = [trees.file(sink, b"%03d" % n, b"%d" % n) for n in range(100)]
    root = trees.directory(sink, nodes)
    told = damaged_paths(sink, root, {node.content for node in nodes})
    assert len(told) == 10
    assert told == sorted(told)
