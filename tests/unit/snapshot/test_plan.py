"""A plan says exactly what differs, and refuses what no checkpoint can be."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxsdk.errors import Corrupt, LimitExceeded
from sandboxsdk.snapshot import tree as t
from sandboxsdk.snapshot.measure import DEPTH_MAX, ENTRIES_MAX, Measure, Trees
from sandboxsdk.snapshot.plan import Place, Plan, plan
from tests.trees import Memory, below, directory, file, sparse, symlink, tree


@pytest.fixture
def sink():
    return Memory()


def steps(made: Plan) -> dict[str, list[bytes]]:
    """Give the paths of each kind of step."""
    return {
        "gone": sorted(place.path(node.name) for place, node in made.removals),
        "fresh": sorted(place.path() for place, _ in made.fresh),
        "entries": sorted(place.path(node.name) for place, node in made.entries),
        "links": sorted(p.path(n.name) for group in made.links.values() for p, n in group),
        "metadata": sorted(place.path(node.name) for place, node, _ in made.metadata),
        "changed": sorted(e.place.path() for e in made.directories if e.changed),
    }


def only(**expected: list[bytes]) -> dict[str, list[bytes]]:
    names = ("gone", "fresh", "entries", "links", "metadata", "changed")
    return {name: expected.get(name, []) for name in names}


def changed(node: t.Node, **fields) -> t.Node:
    return msgspec.structs.replace(node, **fields)


def test_equal_trees_need_nothing(sink):
    """Nothing is planned, and nothing read, when both trees are one."""
    same = tree(sink, {b"a": b"1", b"d": {b"b": b"2"}})
    sink.reads = 0
    made = plan(sink, same, same)
    assert steps(made) == only()
    assert sink.reads == made.total == made.data == 0


def test_equal_directories_are_not_read(sink):
    """Of two trees only the directories that differ are read."""
    wide = {b"%d" % n: {b"f": b"%d" % n} for n in range(100)}
    one, two = tree(sink, {**wide, b"x": {b"f": b"1"}}), tree(sink, {**wide, b"x": {b"f": b"2"}})
    sink.reads = 0
    made = plan(sink, one, two)
    assert steps(made) == only(entries=[b"x/f"], changed=[b"x"])
    assert sink.reads == 4


def test_every_kind_of_difference(sink):
    """Removals, new directories, files, links and metadata each get their step."""
    data, more = file(sink, b"data", b"one"), (b"user.a", b"1")
    before = {
        b"gone": b"1",
        b"gone-too": {b"x": b"2"},
        b"data": data,
        b"mode": file(sink, b"mode", b"3"),
        b"attributes": file(sink, b"attributes", b"3"),
        b"link": "one",
        b"to-file": {b"x": b"4"},
        b"to-directory": b"5",
        b"same": b"6",
    }
    after = {
        b"new": b"7",
        b"new-too": {b"x": b"8", b"deep": {b"y": b"9"}},
        b"data": file(sink, b"data", b"two"),
        b"mode": file(sink, b"mode", b"3", mode=0o600),
        b"attributes": file(sink, b"attributes", b"3", attributes=(more,)),
        b"link": "two",
        b"to-file": b"4",
        b"to-directory": {b"x": b"5"},
        b"same": b"6",
    }
    made = plan(sink, tree(sink, before), tree(sink, after))
    assert steps(made) == only(
        gone=[b"gone", b"gone-too", b"to-directory", b"to-file"],
        fresh=[b"new-too", b"to-directory"],
        entries=[b"data", b"link", b"new", b"to-file"],
        metadata=[b"attributes", b"mode"],
        changed=[b""],
    )
    assert {old.name: (old.mode, new.mode) for _, old, new in made.metadata} == {
        b"attributes": (0o644, 0o644),
        b"mode": (0o644, 0o600),
    }
    # new-too, its file, deep, its file; to-directory and its file; four entries.
    assert made.total == 10


@pytest.mark.parametrize(
    ("was", "wanted"),
    [
        ({"mode": 0o4755}, {"mode": 0o755}),
        ({"mode": 0o755}, {"mode": 0o3755}),
        ({"uid": 1, "gid": 2}, {"uid": 3, "gid": 4}),
    ],
)
def test_what_is_never_written_is_no_difference(sink, was, wanted):
    """Set-id bits, sticky files and, without `owners`, owners do not count."""
    one, two = (
        tree(sink, {b"f": changed(file(sink, b"f", b"x"), **fields)}) for fields in (was, wanted)
    )
    assert one != two
    assert steps(plan(sink, one, two)) == only()


def test_owners_count_when_they_are_mapped(sink):
    """With `owners` a difference counts if both owners become different ones."""
    one, two = (tree(sink, {b"f": file(sink, b"f", b"x", uid=uid)}) for uid in (1, 2))
    assert steps(plan(sink, one, two, owners=lambda u, g: (u, g))) == only(metadata=[b"f"])
    assert steps(plan(sink, one, two, owners=lambda u, g: (7, 7))) == only()


def test_a_directory_of_its_own_changes_alone(sink):
    """A directory whose mode or attributes differ is a step without changed entries."""
    one = directory(sink, [below(b"d", directory(sink, mode=0o755))])
    more = (b"user.a", b"1")
    two = directory(sink, [below(b"d", directory(sink, mode=0o700, attributes=(more,)))])
    made = plan(sink, one, two)
    assert steps(made) == only()
    found = {e.place.path(): (e.metadata, e.attributes) for e in made.directories}
    assert found == {b"": (False, False), b"d": (True, True)}


def test_sockets_and_devices_are_never_made(sink):
    """They are named; the same one stays, and another thing in its place goes."""
    before = {b"same": t.Node(b"same", t.SOCKET), b"file": b"x", b"gone": t.Node(b"gone", t.SOCKET)}
    after = {
        b"same": t.Node(b"same", t.SOCKET, mtime=5),
        b"file": t.Node(b"file", t.CHARACTER, size=259),
        b"new": t.Node(b"new", t.BLOCK, size=7),
        b"gone": b"y",
    }
    made = plan(sink, tree(sink, before), tree(sink, after))
    assert steps(made) == only(gone=[b"file"], entries=[b"gone"], changed=[b""])
    assert sorted(made.skipped) == [b"file", b"new"]


# --- Files of several names -----------------------------------------------------------------------


def linked(sink: Memory, names: bytes, number: int, data: bytes = b"shared") -> dict[bytes, t.Node]:
    return {bytes([n]): file(sink, bytes([n]), data, link=number) for n in names}


def test_a_group_that_is_the_same_is_left_alone(sink):
    """Numbers may differ: what counts is which names are one file."""
    one = tree(sink, {**linked(sink, b"ab", 3), b"x": b"1"})
    two = tree(sink, {**linked(sink, b"ab", 9), b"x": b"2"})
    assert steps(plan(sink, one, two)) == only(entries=[b"x"], changed=[b""])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"names": b"ab", "number": 1}, {"names": b"ab", "number": 1, "data": b"other"}),
        ({"names": b"ab", "number": 1}, {"names": b"abc", "number": 1}),
        ({"names": b"abc", "number": 1}, {"names": b"ab", "number": 2}),
    ],
)
def test_a_group_that_differs_is_written_anew(sink, before, after):
    """Another content or membership makes all names of the group anew."""
    one, two = tree(sink, linked(sink, **before)), tree(sink, linked(sink, **after))
    made = steps(plan(sink, one, two))
    assert made["links"] == [bytes([n]) for n in after["names"]]
    assert made["entries"] == made["metadata"] == []


def test_a_group_reaches_into_equal_directories(sink):
    """A name in a directory that is the same in both trees is made anew with its group."""
    same = {b"d": {b"deep": linked(sink, b"a", 1)}}
    one = tree(sink, {**same, b"x": {b"f": b"1"}})
    two = tree(sink, {**same, b"x": {b"f": file(sink, b"f", b"shared", link=1)}})
    made = plan(sink, one, two)
    assert steps(made) == only(links=[b"d/deep/a", b"x/f"], changed=[b"d/deep", b"x"])
    order = [e.place.path() for e in made.directories]
    assert order.index(b"d") < order.index(b"d/deep")


def test_a_group_reaches_into_new_directories(sink):
    """Names in new directories come with these; the other names are steps."""
    one = tree(sink, {b"a": file(sink, b"a", b"shared")})
    two = tree(sink, {**linked(sink, b"a", 1), b"new": linked(sink, b"b", 1)})
    made = plan(sink, one, two)
    assert steps(made) == only(fresh=[b"new"], links=[b"a"], changed=[b""])
    assert made.data == len(b"shared")


def test_a_split_group_is_written_anew(sink):
    """A file that shall have one name only is never the one that has two."""
    one = tree(sink, linked(sink, b"ab", 1))
    two = tree(sink, {b"a": file(sink, b"a", b"shared"), b"b": file(sink, b"b", b"shared")})
    assert steps(plan(sink, one, two)) == only(entries=[b"a", b"b"], changed=[b""])


def test_links_of_one_inode_are_separate_links(sink):
    """Symbolic links that were one inode are no group."""
    one = tree(sink, {b"a": symlink(b"a", b"x"), b"b": symlink(b"b", b"x")})
    two = tree(sink, {b"a": symlink(b"a", b"x", link=4), b"b": symlink(b"b", b"x", link=4)})
    assert steps(plan(sink, one, two)) == only()


@pytest.mark.parametrize(
    "other",
    [
        {"mode": 0o600},
        {"size": 1, "content": bytes(32)},
        {"kind": t.SYMLINK, "size": 0, "content": b"/etc"},
        {"kind": t.FIFO, "size": 0, "content": b""},
        {"attributes": ((b"user.a", b"1"),)},
    ],
)
def test_names_of_one_file_must_agree(sink, other):
    """Two nodes of one number that are not the same file are refused."""
    first = file(sink, b"a", b"shared", link=5)
    two = tree(sink, {b"a": first, b"d": {b"b": changed(first, name=b"b", **other)}})
    with pytest.raises(Corrupt, match="do not agree"):
        Measure(Trees(sink)).of(two)
    with pytest.raises(Corrupt, match="do not agree"):
        plan(sink, tree(sink, {b"a": b"1", b"d": {}}), two)


# --- Measures and limits --------------------------------------------------------------------------


def test_a_tree_is_measured(sink):
    """Entries, bytes without holes, levels; a file of two names counts once."""
    digest = tree(
        sink,
        {
            b"a": b"123",
            b"d": {b"e": {b"f": b"45"}, b"l": "x"},
            b"s": sparse(sink, b"s", [1 << 40, b"678"]),
            **linked(sink, b"xy", 1, b"9"),
        },
    )
    assert Measure.whole(Trees(sink), digest) == (9, 9, 3, True)


def test_a_bomb_of_shared_directories_is_refused(sink):
    """Forty directories that hold the next one twice are 2^40 paths, and no checkpoint."""
    digest = tree(sink, {b"f": b"x"})
    for _ in range(40):
        digest = directory(sink, [below(b"a", digest), below(b"b", digest)])
    with pytest.raises(LimitExceeded, match="entries"):
        Measure(Trees(sink)).of(digest)
    with pytest.raises(LimitExceeded, match="entries"):
        plan(sink, tree(sink, {}), tree(sink, {b"d": below(b"d", digest)}))


def test_a_bomb_that_differs_everywhere_is_refused(sink):
    """Two bombs that differ at the bottom are not compared path by path."""
    one, two = tree(sink, {b"f": b"x"}), tree(sink, {b"f": b"y"})
    for _ in range(40):
        one, two = (directory(sink, [below(b"a", d), below(b"b", d)]) for d in (one, two))
    with pytest.raises(LimitExceeded, match="entries"):
        plan(sink, one, two)


def test_too_many_levels_are_refused(sink):
    """A tree deeper than the limit is refused, one that is as deep is measured."""
    digest = tree(sink, {})
    for _ in range(DEPTH_MAX - 1):
        digest = directory(sink, [below(b"d", digest)])
    assert Measure(Trees(sink)).of(digest).depth == DEPTH_MAX
    deeper = directory(sink, [below(b"d", digest)])
    with pytest.raises(LimitExceeded, match="levels"):
        Measure(Trees(sink)).of(deeper)
    with pytest.raises(LimitExceeded, match="levels"):
        plan(sink, tree(sink, {}), deeper)


def test_a_directory_in_itself_is_refused():
    """A reader that gives a directory which contains itself is found out."""

    class Loop(Memory):
        def read(self, kind, digest):
            page = t.encode_msgpack(
                [1, 0o755, 0, 0, 0, [], [t.Node(b"d", t.DIRECTORY, content=bytes(32))], b""]
            )
            return page if digest == bytes(32) else super().read(kind, digest)

    with pytest.raises(Corrupt, match="contains itself"):
        Measure(Trees(Loop())).of(bytes(32))


def test_a_missing_tree_is_corrupt(sink):
    """A tree of which a directory is missing is refused before anything is planned."""
    inner = tree(sink, {b"x": b"1"})
    digest = directory(sink, [below(b"d", inner)])
    del sink.objects[inner]
    with pytest.raises(Corrupt):
        plan(sink, tree(sink, {}), digest)


def test_a_place_knows_its_path():
    """The root has no name; names are joined in order."""
    root = Place()
    place = Place(Place(root, b"a"), b"b")
    assert (root.path(), root.path(b"x"), place.path(), place.path(b"x")) == (
        b"",
        b"x",
        b"a/b",
        b"a/b/x",
    )
    assert ENTRIES_MAX > 10**6


names = st.sampled_from([b"a", b"b", b"c"])
contents = st.sampled_from([b"", b"1", b"2"]) | st.sampled_from(["x", "y"])
specs = st.recursive(
    st.dictionaries(names, contents, max_size=3),
    lambda inner: st.dictionaries(names, contents | inner, max_size=3),
    max_leaves=12,
)


@given(one=specs, two=specs)
@settings(max_examples=200)
def test_a_plan_makes_one_tree_of_the_other(one, two):
    """Removals and additions, done on a model of the files, give exactly the tree wanted."""
    sink = Memory()
    made = plan(sink, tree(sink, one), tree(sink, two))
    model = flat(one)
    for place, node in made.removals:
        path = place.path(node.name)
        model = {p: w for p, w in model.items() if p != path and not p.startswith(path + b"/")}
    wanted = flat(two)
    for place, node in made.entries:
        model[place.path(node.name)] = wanted[place.path(node.name)]
    for place, _ in made.fresh:
        path = place.path()
        model |= {p: w for p, w in wanted.items() if p == path or p.startswith(path + b"/")}
    assert model == wanted
    untouched = {p for p in flat(one) if flat(one)[p] == wanted.get(p) and flat(one)[p] != "dir"}
    assert not untouched & {place.path(node.name) for place, node in made.entries}


def flat(spec: dict, path: bytes = b"") -> dict[bytes, object]:
    found: dict[bytes, object] = {}
    for name, what in spec.items():
        if isinstance(what, dict):
            found[path + name] = "dir"
            found |= flat(what, path + name + b"/")
        else:
            found[path + name] = what
    return found
