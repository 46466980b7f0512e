"""What differs between two stored trees, found without looking at what is equal."""

from __future__ import annotations

import random

import pytest

from sandboxsdk.errors import Corrupt, LimitExceeded
from sandboxsdk.snapshot import compare_trees, measure
from sandboxsdk.snapshot import tree as t
from sandboxsdk.snapshot.scratch import Scratch
from sandboxsdk.store import BLOB, TREE
from tests import trees


@pytest.fixture
def sink():
    return trees.Memory()


def told(sink, old, new):
    """Give the differences as a user sees them."""
    changes = compare_trees(sink, trees.tree(sink, old), trees.tree(sink, new))
    return [f"{change.kind} {change.path}" for change in changes]


def test_equal_trees_are_not_read(sink):
    """Comparing a tree with itself reads nothing."""
    root = trees.tree(sink, {b"d": {b"f": b"x"}})
    assert compare_trees(sink, root, root) == []
    assert sink.reads == 0


def test_every_kind_of_change(sink):
    """Added, removed, modified, another mode, another type: told in the order of the paths."""
    old = {
        b"a": b"same",
        b"b": b"one",
        b"c": b"text",
        b"d": {b"e": {b"f": b"deep"}},
        b"m": trees.file(sink, b"m", b"x", 0o644),
        b"l": "target",
        b"t": b"becomes a directory",
    }
    new = {
        b"a": b"same",
        b"b": b"two",
        b"d": {b"e": {b"f": b"deeper", b"g": b""}},
        b"m": trees.file(sink, b"m", b"x", 0o600),
        b"l": "elsewhere",
        b"n": {b"o": b"new"},
        b"t": {b"u": b"inside"},
    }
    assert told(sink, old, new) == [
        *("modified b", "removed c", "modified d/e/f", "added d/e/g", "modified l", "mode m"),
        *("added n", "added n/o", "type t", "added t/u"),
    ]


def test_a_removed_directory_is_told_with_all_in_it(sink):
    """What was below a directory that went, or became a file, is told name by name."""
    old = {b"d": {b"e": {b"f": b"1"}, b"g": b"2"}}
    assert told(sink, old, {}) == ["removed d", "removed d/e", "removed d/e/f", "removed d/g"]
    assert told(sink, old, {b"d": b"now a file"}) == [
        *("type d", "removed d/e", "removed d/e/f", "removed d/g")
    ]
    assert told(sink, {b"d": b"a file"}, old) == [
        *("type d", "added d/e", "added d/e/f", "added d/g")
    ]


def test_files_that_moved_are_one_change(sink):
    """A file of equal content elsewhere is told once, as renamed; an empty one is not."""
    old = {b"a": b"content", b"e": b"", b"d": {b"x": b"moved"}}
    new = {b"b": b"content", b"n": b"", b"d": {}, b"f": {b"x": b"moved"}}
    assert told(sink, old, new) == [
        *("renamed b", "removed e", "added f", "renamed f/x", "added n")
    ]


def test_times_owners_attributes_and_links_are_no_change(sink):
    """They are stored, and a diff is about contents."""
    old = trees.file(sink, b"f", b"x", mtime=1, uid=1, gid=2)
    new = trees.file(sink, b"f", b"x", mtime=2, uid=3, link=9, attributes=((b"user.a", b""),))
    assert told(sink, {b"f": old}, {b"f": new}) == []
    one = trees.directory(sink, [], mtime=1)
    two = trees.directory(sink, [], mtime=2, attributes=((b"user.a", b""),))
    assert told(sink, {b"d": trees.below(b"d", one)}, {b"d": trees.below(b"d", two)}) == []
    assert (
        told(sink, {b"s": trees.symlink(b"s", b"t", 1)}, {b"s": trees.symlink(b"s", b"t", 2)}) == []
    )


def test_the_mode_of_a_directory_is_a_change(sink):
    """A directory whose mode alone differs is told, and so is what changed in it."""
    one = trees.directory(sink, [trees.file(sink, b"f", b"1")], mode=0o755)
    two = trees.directory(sink, [trees.file(sink, b"f", b"2")], mode=0o700)
    assert told(sink, {b"d": trees.below(b"d", one)}, {b"d": trees.below(b"d", two)}) == [
        *("mode d", "modified d/f")
    ]


def test_devices_differ_by_their_number(sink):
    """Two devices are the same if their numbers are."""
    nodes = [t.Node(b"d", t.CHARACTER, 0o600, size=size) for size in (1, 1, 2)]
    assert told(sink, {b"d": nodes[0]}, {b"d": nodes[1]}) == []
    assert told(sink, {b"d": nodes[0]}, {b"d": nodes[2]}) == ["modified d"]
    assert told(sink, {b"d": nodes[0]}, {b"d": t.Node(b"d", t.BLOCK, 0o600, size=1)}) == ["type d"]


def pieces(data: bytes, seed: int) -> list[bytes | int]:
    """Cut bytes into blobs and, where there are only zeros, holes."""
    chance, parts, at = random.Random(seed), [], 0
    while at < len(data):
        end = min(len(data), at + chance.randint(1, 40))
        piece = data[at:end]
        parts.append(len(piece) if not any(piece) and chance.random() < 0.7 else piece)
        at = end
    return parts


@pytest.mark.parametrize("seed", range(25))
def test_equal_bytes_are_equal_however_they_are_cut(sink, seed):
    """One file in one blob or in any parts, with holes or zeros, is the same; a byte is not."""
    chance = random.Random(seed)
    data = b"".join(
        bytes(chance.randint(1, 60)) if chance.random() < 0.5 else chance.randbytes(50)
        for _ in range(8)
    )
    whole = trees.file(sink, b"f", data)
    one, two = (trees.sparse(sink, b"f", pieces(data, seed + more)) for more in (1, 2))
    at = chance.randrange(len(data))
    other = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    changed = [trees.file(sink, b"f", other), trees.sparse(sink, b"f", pieces(other, seed))]
    for left in (whole, one, two):
        for right in (whole, one, two):
            assert told(sink, {b"f": left}, {b"f": right}) == []
        for right in changed:
            assert told(sink, {b"f": left}, {b"f": right}) == ["modified f"]
            assert told(sink, {b"f": right}, {b"f": left}) == ["modified f"]


@pytest.mark.parametrize("seed", range(25))
def test_equal_bytes_are_equal_where_one_side_was_only_looked_at(sink, seed):
    """A file whose contents nobody kept is compared with one in the store by digests: copied up, it
    may have holes elsewhere.
    """
    chance = random.Random(seed)
    data = b"".join(chance.choice([bytes(chance.randint(1, 60)), b"text"]) for _ in range(8)) + b"."
    stored = {
        "whole": trees.tree(sink, {b"f": trees.file(sink, b"f", data)}),
        "parts": trees.tree(sink, {b"f": trees.sparse(sink, b"f", pieces(data, seed))}),
    }
    for content, wanted in ((data, []), (data[:-1] + b"!", ["modified"])):
        for number in range(3):
            scratch = Scratch(sink)
            file = trees.sparse(scratch, b"f", pieces(content, seed + 7 * number))
            if number == 2:
                file = trees.file(scratch, b"f", content)
            present = trees.tree(scratch, {b"f": file})
            for name, known in stored.items():
                for ends in ((known, present), (present, known)):
                    found = [change.kind for change in compare_trees(scratch, *ends)]
                    assert found == wanted, (name, number)


@pytest.mark.parametrize("present", [[2**60 - 1, b"yy"], [2**60, b"y"], [2**59, 2**59, b"y"]])
def test_a_part_that_claims_more_than_a_blob_can_hold_takes_no_memory(sink, present):
    """A list of a stranger beside large holes is a difference, whether these were kept or not."""
    blob = sink.add(BLOB, b"x")
    content = t.write_parts(sink, [t.Part(2**60, blob), t.Part(1, blob)])
    lying = t.Node(b"f", t.PARTS, 0o644, 10**18 + 7, size=2**60 + 1, content=content)
    old = trees.tree(sink, {b"f": lying})
    for target in (sink, Scratch(sink)):
        new = trees.tree(target, {b"f": trees.sparse(target, b"f", present)})
        (change,) = compare_trees(target, old, new)
        assert change.kind == "modified"


def test_a_blob_that_is_shorter_than_its_part_is_no_equal_file(sink):
    """A list that claims more than its blobs hold is a difference, never an endless loop."""
    short = sink.add(BLOB, b"ab")
    content = t.write_parts(sink, [t.Part(10, short)])
    lying = t.Node(b"f", t.PARTS, 0o644, 10**18 + 7, size=10, content=content)
    assert told(sink, {b"f": trees.file(sink, b"f", b"ab" + bytes(8))}, {b"f": lying}) == [
        "modified f"
    ]


def test_the_same_blob_at_another_place_is_compared(sink):
    """Parts that hold the same blob are equal only where they stand at the same place in it."""
    one = trees.sparse(sink, b"f", [b"0123456789", b"56789"])
    two = trees.sparse(sink, b"f", [b"01234", b"0123456789"])
    assert told(sink, {b"f": one}, {b"f": two}) == ["modified f"]
    three = trees.sparse(sink, b"f", [b"01234", b"5678956789"])
    assert told(sink, {b"f": one}, {b"f": three}) == []


def test_large_holes_are_compared_by_their_length(sink):
    """Holes of exbibytes against holes cut elsewhere take no memory."""
    one = trees.sparse(sink, b"f", [2**60, 2**60, b"x"])
    two = trees.sparse(sink, b"f", [2**61, b"x"])
    three = trees.sparse(sink, b"f", [2**61, b"y"])
    assert told(sink, {b"f": one}, {b"f": two}) == []
    assert told(sink, {b"f": one}, {b"f": three}) == ["modified f"]


def test_it_costs_what_differs(sink):
    """Of a hundred directories only those on the way to the change are read."""
    many = {b"d%d" % n: {b"e": {b"f": b"%d" % n}} for n in range(100)}
    old = trees.tree(sink, many)
    new = trees.tree(sink, {**many, b"d5": {b"e": {b"f": b"new"}}})
    sink.reads = 0
    assert [change.path for change in compare_trees(sink, old, new)] == ["d5/e/f"]
    assert sink.reads <= 10


def test_a_missing_tree_is_an_error(sink):
    """A tree that is gone on either side is `Corrupt`, never a removal."""
    old = trees.tree(sink, {b"d": {b"f": b"1"}})
    new = trees.tree(sink, {b"d": {b"f": b"2"}})
    for gone in [digest for digest, _ in t.list_pages(sink, TREE, new)] + [new, old]:
        kept = sink.objects.pop(gone, None)
        if kept is not None:
            with pytest.raises(Corrupt):
                compare_trees(sink, old, new)
            sink.objects[gone] = kept


def test_more_paths_than_anybody_could_visit_are_refused(sink, monkeypatch):
    """Shared directories with very many paths end in a typed error."""
    monkeypatch.setattr(measure, "ENTRIES_MAX", 5000)
    roots = trees.crowded(sink)
    with pytest.raises(LimitExceeded):
        compare_trees(sink, *roots)
