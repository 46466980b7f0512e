"""What is put together from a base and changes is stored byte for byte as if it were new."""

from __future__ import annotations

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from sandboxsdk.snapshot import laying, leaves
from sandboxsdk.snapshot import tree as t
from sandboxsdk.snapshot.laying import Base, Laid
from tests import trees

_names = st.integers(0, 40).map(lambda number: b"%03d" % number)
_nodes = st.builds(
    lambda name, size, attributes: t.Node(
        name, t.FILE, 0o644, size * 7, 1, 2, size, b"d" * 32 if size else b"", 0, attributes
    ),
    _names,
    st.integers(0, 1 << 40),
    st.sampled_from([(), (), (), ((b"user.x", b"y"),)]),
)
_listed = st.lists(_nodes, unique_by=lambda node: node.name).map(
    lambda nodes: sorted(nodes, key=lambda node: node.name)
)
_own = t.Directory(0o755, 5, 6, 7, ((b"user.own", b"z"),), ())


_layers = st.lists(st.lists(st.tuples(_names, st.none() | _nodes), max_size=12), max_size=4)


@given(_listed, _layers)
def test_changes_give_what_a_fresh_directory_gives(listed, layers):
    """Names come, go and change, layer over layer; what lies below stays what it was."""
    lay_over(listed, layers, again=False)


@given(_listed, _layers, st.booleans(), st.integers(1, 6), st.integers(1, 12))
def test_leaves_are_those_of_a_fresh_directory(listed, layers, again, mean, least):
    """However small leaves are, those that stay are where a fresh directory has them too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaves, "_MEAN", mean)
        patch.setattr(laying, "LEAVED_MIN", least)
        patch.setattr(t, "LEAVED_MIN", least)
        lay_over(listed, layers, again=again)


def lay_over(listed, layers, *, again):
    """Lay changes over a directory, and over what comes of it.

    Args:
        again: read each from the store before.
    """
    sink = trees.Memory()
    base = Base(msgspec.structs.replace(_own, nodes=listed))
    below = list(listed)
    for changes in layers:
        laid, model = Laid(base), {node.name: node for node in below}
        for name, node in changes:
            if node is None:
                assert laid.pop(name, None) == model.pop(name, None)
            else:
                changed = msgspec.structs.replace(node, name=name)
                laid[name] = model[name] = changed
                assert laid[name] == changed
            assert len(laid) == len(model)
            assert (name in laid) == (name in model)
        made = laid.finished(_own)
        expected = sorted(model.values(), key=lambda node: node.name)
        assert list(made.directory.nodes) == expected
        assert made.names == [node.name for node in expected]
        whole = msgspec.structs.replace(_own, nodes=expected)
        digest = made.store(sink)
        assert digest == t.write_directory(sink, whole)
        if again:
            read = Base.read(sink, digest)
            assert read.directory == made.directory
            assert dict(read.leaves) == dict(made.leaves)
        assert list(base.directory.nodes) == below
        assert base.names == [node.name for node in below]
        base, below = read if again else made, expected


@pytest.mark.parametrize("count", [200, 2_000, 20_000])
def test_one_change_of_a_large_directory_is_one_leaf(count):
    """What is stored anew is a leaf or two and the index, and nothing else is even looked at."""
    sink = trees.Memory()
    nodes = [t.Node(b"%06d" % number, t.FIFO, 0o600, number) for number in range(count)]
    base = Base(msgspec.structs.replace(_own, nodes=nodes))
    base.store(sink)
    for name, node in (
        (b"000064", t.Node(b"000064", t.FIFO, 0o600, 1)),
        (b"000064x", t.Node(b"000064x", t.FIFO)),
        (b"000100", None),
        (next(n.name for n in nodes if leaves.is_end(n.name)), None),
    ):
        asked = Counting()
        laid = Laid(base)
        if node is None:
            laid.pop(name, None)
        else:
            laid[name] = node
        laid.finished(_own).store(asked)
        assert asked.added in (2, 3)
        assert asked.bytes < 30_000 + 34 * len(base.leaves)


def test_a_directory_that_was_small_meanwhile_is_cut_as_a_fresh_one():
    """Leaves of what it was before do not come back when it grows again."""
    sink = trees.Memory()
    nodes = [t.Node(b"%06d" % number, t.FIFO, 0o600, number) for number in range(400)]
    base = Base(msgspec.structs.replace(_own, nodes=nodes))
    base.store(sink)
    for count in (100, 130, 128, 129, 300):
        laid = Laid(base)
        for node in nodes[:count]:
            laid[node.name] = node
        for node in nodes[count:]:
            laid.pop(node.name, None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(laying, "_ONE_BY_ONE_MAX", 1_000)
            base = laid.finished(_own)
        whole = msgspec.structs.replace(_own, nodes=nodes[:count])
        assert base.store(sink) == t.write_directory(sink, whole)


class Counting:
    """A sink that counts what it is given."""

    added = bytes = 0

    def add(self, kind, data):
        self.added += 1
        self.bytes += len(data)
        return blake3(bytes([kind]) + data).digest()


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 64, 65, 300, 70_000])
def test_directories_of_every_size_are_put_together(count):
    """The length of a list is written in three ways, and very long ones take several pages."""
    sink = trees.Memory()
    nodes = [t.Node(b"%06d" % number, t.FIFO, 0o600, number) for number in range(count)]
    laid = Laid(Base(msgspec.structs.replace(_own, nodes=nodes)))
    new = t.Node(b"000000x", t.FIFO, 0o600, 1)
    laid[new.name] = new
    whole = msgspec.structs.replace(_own, nodes=sorted([*nodes, new], key=lambda n: n.name))
    assert laid.finished(_own).store(sink) == t.write_directory(sink, whole)


def test_many_changes_are_sorted_at_once(monkeypatch):
    """Above a limit they are not put in one by one."""
    monkeypatch.setattr(laying, "_ONE_BY_ONE_MAX", 2)
    nodes = [t.Node(b"%03d" % number, t.FIFO) for number in range(10)]
    laid = Laid(Base(msgspec.structs.replace(_own, nodes=nodes)))
    for number in (3, 4, 5):
        assert laid.pop(b"%03d" % number, None) is not None
    laid[b"999"] = t.Node(b"999", t.FIFO)
    assert laid.pop(b"nothing", None) is None
    with pytest.raises(KeyError):
        laid[b"003"]
    made = laid.finished(_own)
    assert made.names == [b"%03d" % number for number in (0, 1, 2, 6, 7, 8, 9, 999)]
    assert made.find(b"003") is None
    assert made.find(b"999") == t.Node(b"999", t.FIFO)
