"""Stored records come back as they were, or as Corrupt."""

from __future__ import annotations

import contextlib
import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxsdk.codec import Hasher, decode_json, digest, encode_json, to_builtins, to_struct
from sandboxsdk.errors import Corrupt
from sandboxsdk.model import Limits, Spec, TaskRecord

ANY_TEXT = st.text(st.characters(codec=None))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=20,
)


class Shape(msgspec.Struct, frozen=True):
    name: str
    count: int = 0


@given(VALUES)
def test_any_value_comes_back(value):
    """Whatever text holds, NUL and lone surrogates too, it is stored as JSON and comes back."""
    data = encode_json(value)
    json.loads(data)
    assert b"\n" not in data
    assert decode_json(data, object, path="p") == value


@given(ANY_TEXT, st.integers(-(2**63), 2**63 - 1))
def test_structs_come_back(name, count):
    """A Struct with any name goes through bytes and through plain dicts."""
    shape = Shape(name, count)
    assert decode_json(encode_json(shape), Shape, path="p") == shape
    assert to_struct(to_builtins(shape), Shape, path="p") == shape


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{", b"null", b"[]", b"5", b'{"name": 5}', b'{"name": "x", "count": "5"}'),
        *(b'{"count": 5}', b"\xff", b'{"name": "\xff"}', b'{"name": "\\ud800"}', b'{"name": "x"}}'),
        *(b'{"name": "x", "count": 1e999}', b'{"name": "x", "count": 99999999999999999999999.5}'),
        *(b"[" * 100_000, b'{"name":' * 50_000, b'{"name": "x", "other": ' + b"[" * 100_000),
        *(b'{"name": 5, "o": "\\u0000"}', b"[" * 100_000 + b'"\\u0000"'),
    ],
    ids=lambda data: repr(data[:30]),
)
def test_other_bytes_are_corrupt(data):
    """Wrong types, wrong bytes and bottomless nesting raise Corrupt, which names the place."""
    with pytest.raises(Corrupt, match="somewhere"):
        decode_json(data, Shape, path="somewhere")


@given(st.binary(max_size=200))
def test_garbage_is_decoded_or_corrupt(data):
    """No other error leaves the decoder."""
    with contextlib.suppress(Corrupt):
        decode_json(data, Shape, path="p")


def test_values_that_no_constructor_accepts_are_corrupt():
    """A stored record is checked as strictly as one that is made."""
    with pytest.raises(Corrupt):
        decode_json(b'{"runtime": "vmware"}', Spec, path="p")
    with pytest.raises(Corrupt):
        to_struct(
            {"id": "x", "description": "d", "spec": {"limits": {"pids": -1}}}, TaskRecord, path="p"
        )
    with pytest.raises(Corrupt):
        decode_json(b'{"memory": "5XB"}', Limits, path="p")
    for odd in (None, 5, "x", [], {"name": object()}):
        with pytest.raises(Corrupt):
            to_struct(odd, Shape, path="p")


def test_what_is_not_a_number_is_stored_as_nothing():
    """JSON has no NaN; it does not come back as something else."""
    assert decode_json(encode_json(math.nan), object, path="p") is None


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_digest_in_parts_is_the_digest_of_the_whole(parts):
    """The incremental digest equals the other, and has 64 hexadecimal characters."""
    hasher = Hasher()
    for part in parts:
        hasher.update(part)
    assert hasher.hexdigest() == digest(b"".join(parts))
    assert len(digest(b"")) == 64
