"""Nodes of two directories are paired by name, and only those that differ are given."""

from __future__ import annotations

import hypothesis.strategies as st
import msgspec
from hypothesis import given

from sandboxsdk.snapshot import tree as t
from sandboxsdk.snapshot.pairs import differing

_NODES = st.dictionaries(
    st.sampled_from([b"a", b"b", b"c", b"d", b"e\xff"]), st.integers(0, 2), max_size=5
)


def _listed(sizes: dict[bytes, int]) -> list[t.Node]:
    return [t.Node(name, t.FIFO, mtime=sizes[name]) for name in sorted(sizes)]


@given(_NODES, _NODES, st.booleans())
def test_what_differs_is_given_by_name(old, new, shared):
    """Names come, go and change; whether equal nodes are one object makes no difference."""
    before, after = _listed(old), _listed(new)
    if shared:
        after = [before[before.index(node)] if node in before else node for node in after]
    else:
        after = [msgspec.structs.replace(node) for node in after]
    one, two = ({node.name: node for node in nodes} for nodes in (before, after))
    expected = [
        (name, one.get(name), two.get(name))
        for name in sorted(one.keys() | two.keys())
        if one.get(name) != two.get(name)
    ]
    assert list(differing(before, after)) == expected
