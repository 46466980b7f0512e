"""What layers show over another tree than the one that they were made over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandboxsdk.snapshot import rebased
from sandboxsdk.snapshot.scratch import Scratch
from tests import trees

_specs = st.recursive(
    st.binary(max_size=2),
    lambda below: st.dictionaries(st.sampled_from([b"a", b"b", b"c"]), below, max_size=3),
    max_leaves=8,
).filter(lambda spec: isinstance(spec, dict))


def overlaid(old, new, onto):
    """Say it naively: a dict is a directory, bytes are a file."""
    shown = {}
    for name in new.keys() | onto.keys():
        was, now, below = old.get(name), new.get(name), onto.get(name)
        if now == was:
            found = below
        elif isinstance(now, dict) and isinstance(below, dict):
            found = overlaid(was if isinstance(was, dict) else {}, now, below)
        else:
            found = now
        if found is not None:
            shown[name] = found
    return shown


@given(_specs, _specs, _specs)
def test_what_differs_hides_what_lies_below(old, new, onto):
    """Everything else shows through."""
    sink = trees.Memory()
    digests = [trees.tree(sink, spec) for spec in (old, new, onto)]
    found = rebased(Scratch(sink), *digests)
    assert found == trees.tree(Scratch(sink), overlaid(old, new, onto))
