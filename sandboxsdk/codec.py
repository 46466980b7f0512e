"""Bytes of stored records: msgspec for the shape, BLAKE3 for the digest. Owner of both libraries.

Records for people and other programs are JSON; what is stored in numbers is MessagePack.

Decoding trusts nothing: it is typed, it bounds what it reads, and every failure is `Corrupt`.
Any str comes back as it was: names of files are any bytes, which Python holds as lone surrogates,
and JSON has no way to say. They are written as NUL and four hexadecimal digits; so is NUL itself.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from blake3 import blake3

from .errors import Corrupt

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview
SUM_BYTES = 16

_encoder = msgspec.json.Encoder()
_packer = msgspec.msgpack.Encoder()
_PREFIX = struct.Struct("<BQ")
_NUL_IN_JSON = b"\\u0000"
_UNSAFE = re.compile("[\0\ud800-\udfff]")
_ESCAPED = re.compile("\0([0-9a-f]{4})")


def encode_json(value: object) -> bytes:
    """Encode a value as JSON, on one line."""
    try:
        data = _encoder.encode(value)
    except UnicodeEncodeError:
        data = _NUL_IN_JSON
    if _NUL_IN_JSON in data:
        data = _encoder.encode(_rewritten(msgspec.to_builtins(value), _escape))
    return data


def decode_json(data: bytes, kind: type[T], *, path: str) -> T:
    """Decode one JSON value of type `kind`.

    Raises:
        Corrupt: not JSON, not of this shape, or nested beyond reason; `path` names where it lay.
    """
    try:
        if _NUL_IN_JSON not in data:
            return msgspec.json.decode(data, type=kind)
        return msgspec.convert(_rewritten(msgspec.json.decode(data), _unescape), kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Corrupt(path=path, reason=f"is not a {kind.__name__}: {error}") from error


def encode_msgpack(value: object) -> bytes:
    """Encode a value as MessagePack: the one encoding that `decode_msgpack` takes for it."""
    return _packer.encode(value)


def decode_msgpack(data: Buffer, kind: type[T], *, path: str) -> T:
    """Decode one MessagePack value of type `kind`, written exactly as `encode_msgpack` writes it.

    So no two different byte strings mean the same: extra fields, repeated keys and other ways to
    write a number are refused.

    Raises:
        Corrupt: it is none, of another shape, or written in another way; `path` names where it lay.
    """
    try:
        value: T = _unpacker(kind).decode(data)  # type: ignore[arg-type]  # a type is hashable
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError) as error:
        raise Corrupt(path=path, reason=f"is not a {_name(kind)}: {error}") from error
    if _packer.encode(value) != data:
        raise Corrupt(path=path, reason=f"is not a {_name(kind)} as we would write it")
    return value


def seal(value: object) -> bytes:
    """Encode a value as MessagePack behind a sum of it: for a file that nobody synced."""
    body = encode_msgpack(value)
    return checksum(body) + body


def unseal(data: bytes, kind: type[T], *, path: str) -> T:
    """Decode what `seal` gave.

    Raises:
        Corrupt: it was cut or changed, or is of another shape; `path` names where it lay.
    """
    if data[:SUM_BYTES] != checksum(data[SUM_BYTES:]):
        raise Corrupt(path=path, reason="is not what was written")
    return decode_msgpack(data[SUM_BYTES:], kind, path=path)


@functools.cache
def _unpacker(kind: Any) -> Any:
    return msgspec.msgpack.Decoder(kind)


def _name(kind: type) -> str:
    return getattr(kind, "__name__", str(kind))


def digest(data: bytes) -> str:
    """BLAKE3-256, in 64 hexadecimal characters."""
    return blake3(data).hexdigest()


def typed_digest(kind: int, data: Buffer) -> bytes:
    """BLAKE3-256 over a type, a length and bytes, so that nothing of one type passes for another.

    The type is one byte, the length eight, little-endian.
    """
    hasher = blake3(_PREFIX.pack(kind, len(data)))
    hasher.update(data)
    return hasher.digest()


def checksum(*parts: Buffer) -> bytes:
    """The first `SUM_BYTES` of the BLAKE3-256 of some bytes: against damage, not forgery."""
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return hasher.digest(SUM_BYTES)


class Hasher:
    """An incremental `digest`."""

    def __init__(self) -> None:
        self._hash = blake3()

    def update(self, data: bytes) -> None:
        self._hash.update(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def to_builtins(value: object) -> Any:
    """Give a Struct as plain dicts and lists, to be stored inside another record."""
    return msgspec.to_builtins(value)


def to_struct(value: object, kind: type[T], *, path: str) -> T:
    """Give the Struct that plain dicts and lists stand for.

    Raises:
        Corrupt: they do not have its shape; `path` names where they lay.
    """
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise Corrupt(path=path, reason=f"is not a {kind.__name__}: {error}") from error


def _rewritten(value: Any, rewrite: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return rewrite(value)
    if isinstance(value, dict):
        return {_rewritten(key, rewrite): _rewritten(item, rewrite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rewritten(item, rewrite) for item in value]
    return value


def _escape(text: str) -> str:
    return _UNSAFE.sub(lambda found: f"\0{ord(found[0]):04x}", text)


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)
