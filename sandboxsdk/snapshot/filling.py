"""The content of a large file, written part by part, and checks of what a reader gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sandboxsdk import disk
from sandboxsdk.errors import Corrupt
from sandboxsdk.store import BLOB

from .tree import Node, Reader, read_parts


def fill(fd: int, node: Node, reader: Reader, check: Callable[[], None]) -> None:
    """Write the parts of a large file; what is not written is a hole.

    Args:
        check: is called now and then, and may raise.
    """
    offset = 0
    places: dict[bytes, list[tuple[int, int]]] = {}
    disk.truncate(fd, node.size)
    for part in read_parts(reader, node):
        if part.content:
            places.setdefault(part.content, []).append((offset, part.length))
        offset += part.length
    for digest, data in reader.read_many(BLOB, list(places)):
        check()
        for at, length in places.pop(digest, ()):
            check_length(digest, data, length)
            disk.write(fd, data, at)
    check_all_given(places)


def check_length(digest: bytes, data: bytes, length: int) -> None:
    """Refuse a content that is longer or shorter than its file says.

    Raises:
        Corrupt: it is.
    """
    if len(data) != length:
        reason = f"has {len(data)} bytes, and its file says {length}"
        raise Corrupt(path=f"object {digest.hex()}", reason=reason, digest=digest.hex())


def check_all_given(left: dict[bytes, list[Any]]) -> None:
    """Refuse to go on without what was asked for.

    Raises:
        Corrupt: something is left.
    """
    for digest in left:
        raise Corrupt(path=f"object {digest.hex()}", reason="is missing", digest=digest.hex())
