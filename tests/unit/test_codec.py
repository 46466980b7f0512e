"""Stored records come back as they were, or as Corrupt."""

from __future__ import annotations

import contextlib
import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxsdk.codec import (
    Hasher,
    checksum,
    decode_json,
    decode_msgpack,
    digest,
    encode_json,
    encode_msgpack,
    to_builtins,
    to_struct,
    typed_digest,
)
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


PACKED = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.floats(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=20,
)


class Row(msgspec.Struct, array_like=True, frozen=True):
    name: bytes
    count: int = 0


@given(st.binary(max_size=40), st.integers(-(2**63), 2**64 - 1))
def test_packed_rows_come_back(name, count):
    """What is packed comes back as it was."""
    row = Row(name, count)
    assert decode_msgpack(encode_msgpack(row), Row, path="p") == row


@given(PACKED)
def test_packed_values_come_back(value):
    """Any value that can be packed is the only one with its bytes."""
    data = encode_msgpack(value)
    assert encode_msgpack(decode_msgpack(data, object, path="p")) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x92\xc4\x01a",  # cut off
        b"\x92\xc4\x01a\x05\x00",  # a byte too many
        b"\x91\xc4\x01a",  # a default left out
        b"\x93\xc4\x01a\x05\x06",  # a field too many
        b"\x92\xc4\x01a\xcc\x05",  # a small number written long
        b"\x92\xc5\x00\x01a\x05",  # a short length written long
        b"\x92\xa1a\x05",  # text for bytes
        b"\x92\xc4\x01a\xc3",  # a boolean for a number
        b"\x92\xc4\x01a\xcb" + b"\x00" * 8,  # a float for a number
        b"\x82\xa4name\xc4\x01a\xa5count\x05",  # a map for an array
        b"\xdd\xff\xff\xff\xff",  # four billion elements
        b"\xc6\xff\xff\xff\xff",  # four gigabytes
        b"\x91" * 100_000,  # bottomless
        b"\xc1",
    ],
)
def test_packed_otherwise_is_corrupt(data):
    """There is one way to write a value; anything else is refused, and names the place."""
    with pytest.raises(Corrupt, match="somewhere"):
        decode_msgpack(data, Row, path="somewhere")


@given(st.binary(max_size=100))
def test_packed_garbage_is_decoded_or_corrupt(data):
    """No other error leaves the decoder, and what it takes is what would be written."""
    with contextlib.suppress(Corrupt):
        assert encode_msgpack(decode_msgpack(data, Row, path="p")) == data


@given(st.binary(max_size=50), st.integers(0, 255), st.integers(0, 255))
def test_typed_digests_tell_types_apart(data, one, two):
    """The same bytes under another type are another object; buffers of any sort are the same."""
    assert (typed_digest(one, data) == typed_digest(two, data)) == (one == two)
    assert typed_digest(one, data) == typed_digest(one, memoryview(bytearray(data)))
    assert typed_digest(one, data).hex() == digest(
        bytes([one]) + len(data).to_bytes(8, "little") + data
    )


@given(st.lists(st.binary(max_size=30), max_size=4))
def test_a_checksum_is_of_all_parts(parts):
    """It is the first half of the digest of the bytes together."""
    assert checksum(*parts).hex() == digest(b"".join(parts))[:32]
