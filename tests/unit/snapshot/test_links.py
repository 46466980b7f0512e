"""Groups of hard links: stable numbers, and only names that are really one file."""

from __future__ import annotations

import os

import msgspec
import pytest

from sandboxsdk.snapshot import tree as t
from sandboxsdk.snapshot.level import Level, Listing
from sandboxsdk.snapshot.links import LinkGroups


def inode(number: int, device: int = 1) -> os.stat_result:
    return os.stat_result((0o100644, number, device, 2, 0, 0, 0, 0, 0, 0))


@pytest.fixture
def top() -> Level:
    return Level(b"", None, inode(1))


def put(groups: LinkGroups[Level], level: Level, name: bytes, number: int, **more: int) -> None:
    level.nodes[name] = t.Node(name, t.FILE, 0o644)
    groups.add(level, name, inode(number, **more))


def found(groups: LinkGroups[Level]) -> list[tuple[int, list[bytes]]]:
    given = groups.found(lambda level, name: level.nodes.get(name))
    return [(number, [level.below(name) for level, name in names]) for number, names in given]


def test_names_of_one_inode_are_a_group(top):
    """Two names of one inode are a group, one name is none, and devices are told apart."""
    groups = LinkGroups[Level](salt=b"")
    inner = Level(b"d", top, inode(2))
    put(groups, top, b"b", 7)
    put(groups, inner, b"a", 7)
    put(groups, top, b"single", 8)
    put(groups, top, b"other", 7, device=2)
    ((number, names),) = found(groups)
    assert names == [b"b", b"d/a"]
    assert 0 < number < 2**63


def test_the_number_is_that_of_the_first_path(top):
    """The order in which names are found, and inode numbers, do not matter; the salt does."""
    numbers = set()
    for names, number in (((b"a", b"b", b"c"), 7), ((b"c", b"a", b"b"), 9), ((b"b", b"a"), 3)):
        groups = LinkGroups[Level](salt=b"")
        for name in names:
            put(groups, top, name, number)
        numbers |= {given for given, _ in found(groups)}
    assert len(numbers) == 1
    groups = LinkGroups[Level](salt=b"upper")
    put(groups, top, b"a", 7)
    put(groups, top, b"b", 7)
    assert {given for given, _ in found(groups)} != numbers


def test_names_that_differ_or_are_gone_are_no_group(top):
    """Names that were read differently are groups of their own; what is gone is in none."""
    groups = LinkGroups[Level](salt=b"")
    for name in (b"a", b"b", b"c", b"d", b"e"):
        put(groups, top, name, 7)
    for name in (b"b", b"d"):
        top.nodes[name] = msgspec.structs.replace(top.nodes[name], size=1, content=b"x" * 32)
    del top.nodes[b"c"]
    listed = found(groups)
    assert [names for _, names in listed] == [[b"a", b"e"], [b"b", b"d"]]
    assert len({number for number, _ in listed}) == 2


def test_a_name_counts_once(top):
    """A name that was noted twice is no group by itself."""
    groups = LinkGroups[Level](salt=b"")
    put(groups, top, b"a", 7)
    put(groups, top, b"a", 7)
    assert found(groups) == []


def test_paths_of_deep_levels_are_not_kept(top):
    """A level knows its path at any depth, and keeps it only where the kernel would take it."""
    level, expected = top, []
    for number in range(100):
        name = b"%02d" % number + b"n" * 98
        level = Level(name, level, inode(2))
        expected.append(name)
        assert level.path == b"/".join(expected)
        assert level.is_far == (len(level.path) > 4096)
        assert len(level._path) <= 4096
    assert level.below(b"f") == b"/".join([*expected, b"f"])
    assert top.below(b"f") == b"f"


def test_a_listing_is_bounded():
    """At most a thousand paths, and not more bytes than somebody would read, each once, sorted."""
    listing = Listing()
    for number in (5, 3, 5):
        listing.add(b"%d\xff" % number)
    assert listing.told() == ("3\udcff", "5\udcff")
    for number in range(5000):
        listing.add(b"%d" % number)
    assert len(listing.told()) <= 1000
    listing = Listing()
    for number in range(100):
        listing.add(b"%02d" % number + b"x" * 100_000)
    assert sum(map(len, listing.told())) < 1 << 20
