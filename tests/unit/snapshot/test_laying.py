"""What is put together from a base and changes is stored byte for byte as if it were new."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxsdk.snapshot import laying
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


@given(_listed, st.lists(st.lists(st.tuples(_names, st.none() | _nodes), max_size=12), max_size=4))
def test_changes_give_what_a_fresh_directory_gives(listed, layers):
    """Names come, go and change, layer over layer; what lies below stays what it was."""
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
        assert made.store(sink) == t.write_directory(sink, whole)
        assert list(base.directory.nodes) == below
        assert base.names == [node.name for node in below]
        base, below = made, expected


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
