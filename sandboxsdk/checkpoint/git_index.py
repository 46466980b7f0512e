"""What the index of a git repository says is staged, without what it notes of files on disk. (pure)

The format is git's own, of versions 2 and 3 (gitformat-index(5)); what is of another is not told.
"""

from __future__ import annotations

import struct

_HEAD = struct.Struct(">4sII")
_CACHED_BYTES = 40
_DIGEST_BYTES = 20
_FLAGS = struct.Struct(">H")
_EXTENDED = 0x4000
_MODE = slice(24, 28)

Staged = list[tuple[bytes, bytes, bytes, bytes]]


def staged(data: bytes) -> Staged | None:
    """Give mode, digest, flags and path of each entry; None if this is no index of ours."""
    if len(data) < _HEAD.size:
        return None
    magic, version, count = _HEAD.unpack_from(data)
    if magic != b"DIRC" or version not in (2, 3) or count > len(data) // _CACHED_BYTES:
        return None
    found: Staged = []
    at = _HEAD.size
    for _ in range(count):
        start = at
        at += _CACHED_BYTES + _DIGEST_BYTES
        if at + _FLAGS.size > len(data):
            return None
        (flags,) = _FLAGS.unpack_from(data, at)
        end_of_flags = at + (4 if flags & _EXTENDED else 2)
        end = data.find(b"\0", end_of_flags)
        if end < 0:
            return None
        digest = data[start + _CACHED_BYTES : at]
        mode = data[start : start + _CACHED_BYTES][_MODE]
        found.append((mode, digest, data[at:end_of_flags], data[end_of_flags:end]))
        # Entries end with one to eight NULs, at a multiple of eight bytes.
        at = start + (end - start + 8) // 8 * 8
    return found
