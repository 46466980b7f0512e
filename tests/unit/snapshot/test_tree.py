"""Trees as they are stored: what is written comes back, and nothing else is ever taken."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxsdk.codec import decode_msgpack, encode_msgpack
from sandboxsdk.errors import Corrupt, LimitExceeded
from sandboxsdk.snapshot import tree as t
from sandboxsdk.store import BLOB, LIST, OBJECT_BYTES_MAX, TREE
from tests import trees

DIGEST = b"\x11" * 32

_NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
_ATTRIBUTES = st.dictionaries(
    st.binary(max_size=20).filter(lambda n: b"\0" not in n).map(lambda n: b"user.x" + n),
    st.binary(max_size=30),
    max_size=3,
).map(lambda found: tuple(sorted(found.items())))
_OWN = {
    "mode": st.integers(0, 0o7777),
    "mtime": st.integers(t.MTIME_MIN, t.MTIME_MAX),
    "uid": st.integers(0, 2**32 - 1),
    "gid": st.integers(0, 2**32 - 1),
}
_LINKS = st.integers(0, 2**63 - 1)
_NODES = st.one_of(
    st.builds(t.Node, _NAMES, st.just(t.FILE), link=_LINKS, attributes=_ATTRIBUTES, **_OWN),
    st.builds(
        t.Node,
        _NAMES,
        st.sampled_from([t.FILE, t.PARTS]),
        size=st.integers(1, t.SIZE_MAX),
        content=st.just(DIGEST),
        link=_LINKS,
        attributes=_ATTRIBUTES,
        **_OWN,
    ),
    st.builds(t.Node, _NAMES, st.just(t.DIRECTORY), content=st.just(DIGEST)),
    st.builds(
        t.Node,
        _NAMES,
        st.just(t.SYMLINK),
        content=st.binary(min_size=1, max_size=50).filter(lambda target: b"\0" not in target),
        link=_LINKS,
        **_OWN,
    ),
    st.builds(t.Node, _NAMES, st.sampled_from([t.FIFO, t.SOCKET]), link=_LINKS, **_OWN),
    st.builds(
        t.Node,
        _NAMES,
        st.sampled_from([t.CHARACTER, t.BLOCK]),
        size=st.integers(0, t.SIZE_MAX),
        **_OWN,
    ),
)


class Lying:
    """A reader that gives these pages in turn, whatever is asked for."""

    def __init__(self, *pages: bytes) -> None:
        self._pages = pages
        self.asked = 0

    def read(self, kind: int, digest: bytes) -> bytes:
        self.asked += 1
        return self._pages[(self.asked - 1) % len(self._pages)]


def page(*nodes: Any, version: Any = t.VERSION, following: Any = b"", **own: Any) -> list[Any]:
    """Give a page of a directory as plain values."""
    plain = [msgspec.to_builtins(node, builtin_types=(bytes,)) for node in nodes]
    head = {"mode": 0o755, "mtime": 0, "uid": 0, "gid": 0, "attributes": []} | own
    return [version, *head.values(), plain, following]


def raw_node(**changes: Any) -> list[Any]:
    """Give an empty file `f` as plain values, with some of them changed."""
    fields: dict[str, Any] = dict.fromkeys(t.Node.__struct_fields__, 0)
    fields |= {"name": b"f", "content": b"", "attributes": [], "kind": t.FILE}
    return list((fields | changes).values())


def read_page(*values: Any) -> t.Directory:
    return t.read_directory(Lying(encode_msgpack(values[0])), DIGEST)


@given(
    nodes=st.lists(_NODES, max_size=6, unique_by=lambda node: node.name),
    attributes=_ATTRIBUTES,
    own=st.fixed_dictionaries(_OWN),
)
def test_a_directory_comes_back_as_it_was_written(nodes, attributes, own):
    """Whatever a file system can hold is read as it was written."""
    sink = trees.Memory()
    listed = sorted(nodes, key=lambda node: node.name)
    written = t.Directory(attributes=attributes, nodes=listed, **own)
    digest = t.write_directory(sink, written)
    assert t.read_directory(sink, digest) == written
    assert t.write_directory(sink, t.read_directory(sink, digest)) == digest


@given(
    nodes=st.lists(_NODES, max_size=12, unique_by=lambda node: node.name),
    size=st.integers(100, 500),
)
def test_pages_add_up_to_the_directory(nodes, size):
    """However small the pages are, what they hold together is the directory."""
    sink = trees.Memory()
    listed = sorted(nodes, key=lambda node: node.name)
    written = t.Directory(0o755, 5, 1, 2, ((b"user.a", b"1"),), listed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(t, "_PAGE_BYTES", size)
        digest = t.write_directory(sink, written)
    assert t.read_directory(sink, digest) == written
    pages = list(t.list_pages(sink, TREE, digest))
    assert len(pages) == len(sink.objects)
    assert pages[0][0] == digest


def test_a_very_large_directory_is_several_objects():
    """200,000 long names are an index and leaves, and all of them come back; one name more, less
    or changed makes a leaf or two anew, and so does another mode only the index.
    """
    sink = trees.Memory()
    nodes = [t.Node(b"%06d" % n + b"n" * 94, t.FILE, 0o644, n) for n in range(200_000)]
    digest = t.write_directory(sink, t.Directory(0o755, 0, 0, 0, (), nodes))
    assert 200_000 // 80 <= len(sink.objects) <= 200_000 // 50
    assert all(len(data) <= OBJECT_BYTES_MAX for _, data in sink.objects.values())
    assert t.read_directory(sink, digest).nodes == nodes
    assert {found for found, _ in t.list_pages(sink, TREE, digest)} == set(sink.objects)
    middle = 100_000
    for changed in (
        [*nodes[:middle], *nodes[middle + 1 :]],
        [*nodes[:middle], t.Node(nodes[middle].name, t.FIFO), *nodes[middle + 1 :]],
        [*nodes, t.Node(b"z", t.FIFO)],
        [t.Node(b"-", t.FIFO), *nodes],
    ):
        before = len(sink.objects)
        t.write_directory(sink, t.Directory(0o755, 0, 0, 0, (), changed))
        assert len(sink.objects) - before in (2, 3)
    before = len(sink.objects)
    t.write_directory(sink, t.Directory(0o700, 0, 0, 0, (), nodes))
    assert len(sink.objects) - before == 1


def leaved(*listed: list[list[Any]], **own: Any) -> tuple[trees.Memory, bytes]:
    """Store an index of these leaves as plain values."""
    sink = trees.Memory()
    digests = [sink.add(TREE, encode_msgpack([t.LEAVED_VERSION, nodes])) for nodes in listed]
    head = {"mode": 0o755, "mtime": 0, "uid": 0, "gid": 0, "attributes": []} | own
    return sink, sink.add(TREE, encode_msgpack([t.LEAVED_VERSION, *head.values(), digests]))


def test_leaves_that_are_cut_elsewhere_say_the_same():
    """A reader takes any cut; what is written of it is cut as always."""
    names = [b"%03d" % n for n in range(300)]
    rows = [raw_node(name=name) for name in names]
    sink, digest = leaved(rows[:7], rows[7:250], rows[250:])
    found, leaves = t.read_leaved(sink, digest)
    assert [node.name for node in found.nodes] == names
    assert not leaves
    again = t.write_directory(sink, found)
    assert again != digest
    assert t.read_directory(sink, again) == found
    assert t.read_leaved(sink, again)[1]


def test_an_index_of_what_cannot_be_is_refused():
    """Leaves out of order, empty, of another version or missing; and what an index says itself."""
    one, two = raw_node(name=b"a"), raw_node(name=b"b")
    for reason, (sink, digest) in {
        "in order": leaved([two], [one]),
        "not list 'a' in order": leaved([one], [one]),
        "no name": leaved([one], [raw_node(name=b"a/b")]),
        "is not a _TreeLeaf": leaved([one], []),
        "is not a _TreeIndex": leaved(),
        "a mode, a time": leaved([one], mode=0o10000),
        "an attribute": leaved([one], attributes=[[b"trusted.x", b""]]),
    }.items():
        with pytest.raises(Corrupt, match=reason):
            t.read_directory(sink, digest)
    sink, digest = leaved([one], [two])
    for lost in set(sink.objects) - {digest}:
        broken = trees.Memory()
        broken.objects = {key: value for key, value in sink.objects.items() if key != lost}
        with pytest.raises(Corrupt):
            t.read_directory(broken, digest)
        with pytest.raises(Corrupt):
            list(t.list_pages(broken, TREE, digest))
    for digests in ([b"x"], [DIGEST[:31]]):
        index = Lying(encode_msgpack([t.LEAVED_VERSION, 0, 0, 0, 0, [], digests]))
        with pytest.raises(Corrupt, match="no digest"):
            t.read_directory(index, DIGEST)
        with pytest.raises(Corrupt, match="no digest"):
            list(t.list_pages(index, TREE, DIGEST))
    newer = trees.Memory()
    leaf = newer.add(TREE, encode_msgpack([3, [one]]))
    index = newer.add(TREE, encode_msgpack([t.LEAVED_VERSION, 0, 0, 0, 0, [], [leaf]]))
    with pytest.raises(Corrupt, match="leaf of version 3"):
        t.read_directory(newer, index)


def test_leaves_end_where_too_much_is_listed(monkeypatch):
    """An index of one leaf again and again is refused before all of them are read."""
    monkeypatch.setattr(t, "ENTRIES_MAX", 25)
    sink, _ = leaved([raw_node(name=b"%d" % n) for n in range(10)])
    (leaf,) = [found for found, (_, data) in sink.objects.items() if data[:2] == b"\x92\x02"]
    index = sink.add(TREE, encode_msgpack([t.LEAVED_VERSION, 0, 0, 0, 0, [], [leaf] * 1000]))
    sink.reads = 0
    with pytest.raises(Corrupt, match="more than 25 entries"):
        t.read_directory(sink, index)
    assert sink.reads <= 4


@pytest.mark.parametrize(
    ("limit", "value"), [("_LEAVES_MAX", 2), ("_PAGE_BYTES", 100), ("_PAGE_ITEMS_MAX", 20)]
)
def test_what_has_too_many_or_too_large_leaves_is_a_chain(monkeypatch, limit, value):
    """Names may be chosen so that each of them ends a leaf, or none does."""
    nodes = [t.Node(b"%03d" % n, t.FIFO) for n in range(400)]
    monkeypatch.setattr(t, limit, value)
    sink = trees.Memory()
    written = t.Directory(0o755, 0, 0, 0, (), nodes)
    digest = t.write_directory(sink, written)
    assert sink.objects[digest][1][:2] == bytes((0x98, t.VERSION))
    assert t.read_leaved(sink, digest) == (written, {})


def test_nodes_with_large_attributes_fit_their_pages():
    """The largest attributes that a node may have never make an object too large."""
    sink = trees.Memory()
    value = b"v" * (t.ATTRIBUTE_BYTES_MAX - 100)
    attributes = tuple((b"user.%03d" % n, value) for n in range(16))
    nodes = [t.Node(b"%03d" % n, t.FILE, attributes=attributes) for n in range(20)]
    digest = t.write_directory(sink, t.Directory(0o755, 0, 0, 0, attributes, nodes))
    assert all(len(data) <= OBJECT_BYTES_MAX for _, data in sink.objects.values())
    assert t.read_directory(sink, digest).nodes == nodes


@given(
    lengths=st.lists(st.tuples(st.integers(1, 2**40), st.booleans()), min_size=1, max_size=20),
    size=st.integers(48, 300),
)
def test_parts_come_back_as_they_were_written(lengths, size):
    """A list of blobs and holes is read as it was written, on however many pages."""
    sink = trees.Memory()
    parts = [t.Part(length, DIGEST if full else b"") for length, full in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(t, "_PAGE_BYTES", size)
        digest = t.write_parts(sink, parts)
    node = t.Node(b"f", t.PARTS, size=sum(part.length for part in parts), content=digest)
    assert t.read_parts(sink, node) == parts
    assert len(list(t.list_pages(sink, LIST, digest))) == len(sink.objects)


def test_a_very_long_list_of_parts_is_several_objects():
    """400,000 parts are paged, and all of them come back."""
    sink = trees.Memory()
    parts = [t.Part(1 + n, DIGEST if n % 2 else b"") for n in range(400_000)]
    digest = t.write_parts(sink, parts)
    assert len(sink.objects) == 3
    node = t.Node(b"f", t.PARTS, size=sum(part.length for part in parts), content=digest)
    assert t.read_parts(sink, node) == parts


@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 60), st.booleans(), st.integers(0, 3)), min_size=0, max_size=30
    ),
    size=st.integers(64, 6000),
)
def test_where_pages_end_says_the_sum_of_their_nodes(lengths, size):
    """Pages are cut behind the node that makes them too large, however they are written."""
    nodes = [
        t.Node(
            b"%02d" % number + b"n" * length,
            t.FILE,
            size=int(full),
            content=DIGEST if full else b"",
            attributes=tuple((b"user.%d" % n, b"v" * length) for n in range(attributes)),
        )
        for number, (length, full, attributes) in enumerate(lengths)
    ]
    pages: list[list[t.Node]] = [[]]
    total = 0
    for node in nodes:
        if total > size:
            pages.append([])
            total = 0
        pages[-1].append(node)
        total += len(node.name) + len(node.content) + 64
        total += sum(len(name) + len(value) + 16 for name, value in node.attributes)
    sink = trees.Memory()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(t, "_PAGE_BYTES", size)
        digest = t.write_directory(sink, t.Directory(0o755, 0, 0, 0, (), nodes))
    written = []
    for _, data in t.list_pages(sink, TREE, digest):
        count = len(decode_msgpack(data, list, path="")[6])
        written.append(count)
    assert written == [len(page) for page in pages]


def test_what_is_too_much_is_not_written(monkeypatch):
    """More entries or parts than a tree may hold are refused when they are written."""
    monkeypatch.setattr(t, "ENTRIES_MAX", 2)
    monkeypatch.setattr(t, "PARTS_MAX", 2)
    nodes = [t.Node(b"%d" % n, t.FIFO) for n in range(3)]
    sink = trees.Memory()
    with pytest.raises(LimitExceeded, match="more than 2 entries"):
        t.write_directory(sink, t.Directory(0o755, 0, 0, 0, (), nodes))
    with pytest.raises(LimitExceeded, match="more than 2 parts"):
        t.write_parts(sink, [t.Part(1, b"")] * 3)
    assert not sink.objects


@pytest.mark.parametrize(
    "name",
    [b"", b".", b"..", b"/", b"a/b", b"/etc", b"a\0", b"\0", b"n" * 256, b"../x"],
)
def test_what_is_no_name_is_refused(name):
    """A name that would lead elsewhere, or that no file system takes, is refused."""
    with pytest.raises(Corrupt, match="no name"):
        read_page(page(raw_node(name=name)))


@pytest.mark.parametrize("name", [b"...", b" ", b"\n", b"\x1b[2J", b"\xff\xfe", b"n" * 255, b"-x"])
def test_every_legal_name_is_taken(name):
    """Names are bytes: whatever a file system takes comes back."""
    assert read_page(page(raw_node(name=name))).nodes[0].name == name


@pytest.mark.parametrize("names", [(b"b", b"a"), (b"a", b"a"), (b"a", b"c", b"b"), (b"a-", b"a")])
def test_names_out_of_order_or_twice_are_refused(names):
    """Names are listed once each and in the order of their bytes."""
    with pytest.raises(Corrupt, match="in order"):
        read_page(page(*(raw_node(name=name) for name in names)))


def test_order_is_checked_across_pages():
    """The second page begins after the first; the same name on both is twice the same name."""
    pages = [page(raw_node(name=b"b"), following=DIGEST), page(raw_node(name=b"b"))]
    with pytest.raises(Corrupt, match="in order"):
        t.read_directory(Lying(*map(encode_msgpack, pages)), DIGEST)


def test_pages_of_different_directories_are_refused():
    """All pages of a directory say the same of it."""
    pages = [page(raw_node(name=b"a"), following=DIGEST), page(raw_node(name=b"b"), mode=0o700)]
    with pytest.raises(Corrupt, match="pages of different directories"):
        t.read_directory(Lying(*map(encode_msgpack, pages)), DIGEST)


_WRONG_NODES: list[dict[str, Any]] = [
    {"kind": 8},
    {"kind": -1},
    {"kind": 2**63},
    {"mode": 0o10000},
    {"mode": 0o100644},
    {"mode": -1},
    {"mtime": 2**63},
    {"mtime": 2**64 - 1},
    {"uid": -1},
    {"uid": 2**32},
    {"gid": 2**32},
    {"size": -1, "content": DIGEST},
    {"size": 2**63, "content": DIGEST},
    {"size": 2**64 - 1, "content": DIGEST},
    {"size": 1},
    {"content": DIGEST},
    {"size": 1, "content": DIGEST[:31]},
    {"size": 1, "content": DIGEST + b"\0"},
    {"link": -1},
    {"link": 2**63},
    {"kind": t.PARTS},
    {"kind": t.PARTS, "content": DIGEST},
    {"kind": t.PARTS, "size": 1},
    {"kind": t.DIRECTORY},
    {"kind": t.DIRECTORY, "content": DIGEST[:20]},
    {"kind": t.DIRECTORY, "content": DIGEST, "link": 1},
    {"kind": t.DIRECTORY, "content": DIGEST, "mode": 0o755},
    {"kind": t.DIRECTORY, "content": DIGEST, "mtime": 1},
    {"kind": t.DIRECTORY, "content": DIGEST, "uid": 1},
    {"kind": t.DIRECTORY, "content": DIGEST, "size": 1},
    {"kind": t.DIRECTORY, "content": DIGEST, "attributes": [(b"user.a", b"")]},
    {"kind": t.SYMLINK},
    {"kind": t.SYMLINK, "content": b"a\0b"},
    {"kind": t.SYMLINK, "content": b"x" * 4096},
    {"kind": t.SYMLINK, "content": b"x", "size": 1},
    {"kind": t.SYMLINK, "content": b"x", "attributes": [(b"user.a", b"")]},
    {"kind": t.FIFO, "size": 1},
    {"kind": t.FIFO, "content": DIGEST},
    {"kind": t.FIFO, "attributes": [(b"user.a", b"")]},
    {"kind": t.SOCKET, "content": b"x"},
    {"kind": t.CHARACTER, "content": DIGEST},
    {"kind": t.CHARACTER, "size": -1},
    {"kind": t.BLOCK, "size": 2**63},
    {"attributes": [(b"security.capability", b"")]},
    {"attributes": [(b"trusted.overlay.opaque", b"y")]},
    {"attributes": [(b"user.", b"")]},
    {"attributes": [(b"user", b"")]},
    {"attributes": [(b"USER.a", b"")]},
    {"attributes": [(b"user.a\0b", b"")]},
    {"attributes": [(b"user." + b"x" * 251, b"")]},
    {"attributes": [(b"user.a", b"x" * (t.ATTRIBUTE_BYTES_MAX + 1))]},
    {"attributes": [(b"user.b", b""), (b"user.a", b"")]},
    {"attributes": [(b"user.a", b""), (b"user.a", b"")]},
    {"attributes": [(b"user.%02d" % n, b"x" * 65_000) for n in range(17)]},
]


@pytest.mark.parametrize("changes", _WRONG_NODES)
def test_what_no_directory_can_hold_is_refused(changes):
    """Kinds, modes, times, owners, sizes, digests, links and attributes are checked one by one."""
    with pytest.raises(Corrupt):
        read_page(page(raw_node(**changes)))


@pytest.mark.parametrize(
    "own",
    [
        {"mode": 0o10755},
        {"mode": -1},
        {"mtime": 2**63},
        {"uid": 2**32},
        {"gid": -1},
        {"attributes": [(b"trusted.x", b"")]},
        {"attributes": [(b"user.b", b""), (b"user.a", b"")]},
    ],
)
def test_a_directorys_own_metadata_is_checked(own):
    """What a directory says of itself is checked like what it says of a file."""
    with pytest.raises(Corrupt):
        read_page(page(**own))


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": True},
        {"mode": 420.0},
        {"mode": float("nan")},
        {"mode": "420"},
        {"mode": None},
        {"name": "f"},
        {"name": None},
        {"name": [102]},
        {"content": ""},
        {"attributes": {}},
        {"attributes": [[b"user.a"]]},
        {"attributes": [[b"user.a", b"", b""]]},
        {"attributes": [["user.a", b""]]},
        {"attributes": [b"user.a"]},
        {"kind": False},
        {"size": 0.5},
    ],
)
def test_values_of_another_type_are_refused(wrong):
    """A bool or a float is no number, and text is no bytes."""
    with pytest.raises(Corrupt):
        read_page(page(raw_node(**wrong)))


def test_a_newer_version_asks_for_an_upgrade():
    """A page of a newer version is not guessed at: the error says what to do."""
    for version in (t.VERSION + 1, 2**31, 2**64 - 1):
        with pytest.raises(Corrupt, match="newer version") as caught:
            read_page(page(version=version))
        assert "upgrade" in caught.value.hint
        with pytest.raises(Corrupt, match="newer version"):
            t.read_parts(
                Lying(encode_msgpack([version, [], b""])),
                t.Node(b"f", t.PARTS, size=1, content=DIGEST),
            )
    for version in (0, -1):
        with pytest.raises(Corrupt, match="has version"):
            read_page(page(version=version))


def test_other_shapes_are_refused():
    """Extra fields, missing fields, maps, other containers and trailing bytes are no pages."""
    good = page(raw_node())
    shapes = [
        [*good, 0],
        good[:-1],
        dict(enumerate(good)),
        good[6],
        None,
        "text",
        b"bytes",
        page([*raw_node(), b""]),
        page(raw_node()[:2]),
        page({"name": b"f", "kind": 0}),
    ]
    for shape in shapes:
        with pytest.raises(Corrupt):
            read_page(shape)
    data = encode_msgpack(good)
    assert t.read_directory(Lying(data), DIGEST).nodes
    for wrong in (data + b"\0", data[:-1], b"", data + data):
        with pytest.raises(Corrupt):
            t.read_directory(Lying(wrong), DIGEST)


def test_there_is_one_way_to_write_a_page():
    """Longer forms of the same numbers, bytes and arrays are refused."""
    data = encode_msgpack(page(raw_node()))
    assert data[:2] == b"\x98\x01"
    longer = [
        b"\x98\xcc\x01" + data[2:],
        b"\x98\xd0\x01" + data[2:],
        b"\x98\xcf" + (1).to_bytes(8, "big") + data[2:],
        b"\xdc\x00\x08" + data[1:],
        b"\xdd\x00\x00\x00\x08" + data[1:],
        data.replace(b"\xc4\x01f", b"\xc5\x00\x01f"),
        data.replace(b"\xc4\x01f", b"\xc6\x00\x00\x00\x01f"),
    ]
    for wrong in longer:
        assert wrong != data
        with pytest.raises(Corrupt):
            t.read_directory(Lying(wrong), DIGEST)


@settings(max_examples=300)
@given(data=st.binary(max_size=200), at=st.integers(0, 400), flip=st.integers(1, 255))
def test_no_bytes_do_more_than_be_refused(data, at, flip):
    """Random bytes, and a good page with a byte changed, give a directory or `Corrupt`."""
    good = bytearray(encode_msgpack(page(raw_node(name=b"a"), raw_node(name=b"b", mtime=10**18))))
    good[at % len(good)] ^= flip
    for candidate in (data, bytes(good), b"\x98\x01" + data):
        try:
            found = t.read_directory(Lying(candidate), DIGEST)
        except Corrupt:
            continue
        names = [node.name for node in found.nodes]
        assert names == sorted(set(names))
        assert not {b"", b".", b".."} & set(names)
        t.write_directory(trees.Memory(), found)


_SUM = "does not add up"


@pytest.mark.parametrize(
    ("size", "parts", "reason"),
    [
        (3, [(1, DIGEST)], _SUM),
        (3, [(4, DIGEST)], _SUM),
        (3, [(2, DIGEST), (2, b"")], _SUM),
        (3, [(3, DIGEST), (0, b"")], _SUM),
        (3, [(4, DIGEST), (-1, b"")], _SUM),
        (3, [(-1, b""), (4, DIGEST)], _SUM),
        (3, [], _SUM),
        (3, [(2**63, b""), (3, DIGEST)], _SUM),
        (3, [(2**64 - 1, b"")], _SUM),
        (t.SIZE_MAX, [(t.SIZE_MAX, b""), (1, b"")], _SUM),
        (3, [(3, DIGEST[:5])], "no digest"),
        (3, [(3, DIGEST + DIGEST)], "no digest"),
    ],
)
def test_parts_that_do_not_add_up_are_refused(size, parts, reason):
    """Parts have lengths above zero, whose sum is the size of the file, never more on the way."""
    node = t.Node(b"f", t.PARTS, size=size, content=DIGEST)
    with pytest.raises(Corrupt, match=reason):
        t.read_parts(Lying(encode_msgpack([t.VERSION, parts, b""])), node)


@pytest.mark.parametrize("following", [b"x", DIGEST[:31], DIGEST * 2])
def test_what_follows_is_a_digest(following):
    """What names the next page has the length of a digest."""
    with pytest.raises(Corrupt, match="no digest"):
        read_page(page(following=following))
    node = t.Node(b"f", t.PARTS, size=1, content=DIGEST)
    reader = Lying(encode_msgpack([t.VERSION, [(1, b"")], following]))
    with pytest.raises(Corrupt, match="no digest"):
        t.read_parts(reader, node)
    with pytest.raises(Corrupt, match="no digest"):
        list(t.list_pages(reader, LIST, DIGEST))


def test_pages_without_end_end():
    """A reader that gives one page after another for ever is stopped."""
    empty = Lying(encode_msgpack(page(following=DIGEST)))
    with pytest.raises(Corrupt, match="more than 4096 pages"):
        t.read_directory(empty, DIGEST)
    assert empty.asked == 4096
    with pytest.raises(Corrupt, match="more than 4096 pages"):
        list(t.list_pages(empty, TREE, DIGEST))
    node = t.Node(b"f", t.PARTS, size=t.SIZE_MAX, content=DIGEST)
    with pytest.raises(Corrupt, match="more than 4096 pages"):
        t.read_parts(Lying(encode_msgpack([t.VERSION, [], DIGEST])), node)


def test_as_many_pages_as_there_may_be_are_read(monkeypatch):
    """The last one of them ends the directory."""
    monkeypatch.setattr(t, "_PAGES_MAX", 3)
    pages = [page(raw_node(name=b"%d" % n), following=DIGEST if n < 2 else b"") for n in range(3)]
    found = t.read_directory(Lying(*map(encode_msgpack, pages)), DIGEST)
    assert [node.name for node in found.nodes] == [b"0", b"1", b"2"]


def test_what_lists_too_much_is_refused_on_the_way(monkeypatch):
    """More entries or parts than a tree may hold are refused before all pages are read."""
    monkeypatch.setattr(t, "ENTRIES_MAX", 25)
    monkeypatch.setattr(t, "PARTS_MAX", 25)
    many = Lying(
        encode_msgpack(page(*(raw_node(name=b"%d" % n) for n in range(10)), following=DIGEST))
    )
    with pytest.raises(Corrupt, match="more than 25 entries"):
        t.read_directory(many, DIGEST)
    assert many.asked == 3
    node = t.Node(b"f", t.PARTS, size=t.SIZE_MAX, content=DIGEST)
    parts = Lying(encode_msgpack([t.VERSION, [(1, b"")] * 10, DIGEST]))
    with pytest.raises(Corrupt, match="more than 25 parts"):
        t.read_parts(parts, node)
    assert parts.asked == 3


def test_errors_name_the_tree_and_escape_names():
    """The error says which tree it is, and a name in it cannot move the reader's cursor."""
    with pytest.raises(Corrupt) as caught:
        read_page(page(raw_node(name=b"\x1b[2J/")))
    assert DIGEST.hex() in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_missing_page_is_corrupt():
    """A page or list that is not there is `Corrupt`, never a shorter directory."""
    sink = trees.Memory()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(t, "_PAGE_BYTES", 100)
        nodes = [t.Node(b"%02d" % n, t.FIFO) for n in range(10)]
        digest = t.write_directory(sink, t.Directory(0o755, 0, 0, 0, (), nodes))
    for lost in [found for found, _ in t.list_pages(sink, TREE, digest)]:
        broken = trees.Memory()
        broken.objects = {key: value for key, value in sink.objects.items() if key != lost}
        with pytest.raises(Corrupt):
            t.read_directory(broken, digest)


def test_an_object_of_another_type_is_no_tree():
    """The same bytes stored as a file's content do not pass for a tree or a list."""
    sink = trees.Memory()
    data = encode_msgpack(page(raw_node(name=b"a")))
    blob = sink.add(BLOB, data)
    assert blob != sink.add(TREE, data)
    with pytest.raises(Corrupt):
        t.read_directory(sink, blob)
