"""A regular file's content into a sink: one blob, or for large and sparse files a list of parts.

Works on an open descriptor, which may be of a file that somebody is writing: never more is read
than the size that was asked for, and whether it changed meanwhile the caller finds out.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from sandboxsdk.store import BLOB, cut_chunks

from .tree import FILE, PARTS, Part, Sink, write_parts

# Above this a file is cut into chunks, so that a change of a byte costs a chunk.
WHOLE_BYTES_MAX = 4 << 20


def store_content(sink: Sink, fd: int, size: int, blocks: int) -> tuple[int, bytes, int]:
    """Store the content of a file; gives its kind, what its node names, and the bytes really read.

    Args:
        size: as fstat said; the file may have become shorter.
        blocks: of 512 bytes on disk; fewer than the size needs mean holes.
    """
    if size == 0:
        return FILE, b"", 0
    holes = blocks * 512 < size and _has_hole(fd, size)
    if size <= WHOLE_BYTES_MAX and not holes:
        data = _read_all(fd, size)
        return FILE, (sink.add(BLOB, data) if data else b""), len(data)
    parts: list[Part] = []
    position = 0
    for start, end in _extents(fd, size) if holes else [(0, size)]:
        if start > position:
            parts.append(Part(start - position, b""))
        position = start
        for chunk in cut_chunks(_Stretch(fd, start, end)):
            parts.append(Part(len(chunk), sink.add(BLOB, chunk)))
            position += len(chunk)
        if position < end:
            break  # It became shorter meanwhile.
    else:
        if holes and position < size:
            parts.append(Part(size - position, b""))
            position = size
    if not parts:
        return FILE, b"", 0
    return PARTS, write_parts(sink, parts), position


def _read_all(fd: int, size: int) -> bytes:
    data = os.pread(fd, size, 0)
    if len(data) == size or not data:
        return data
    pieces, position = [data], len(data)
    while position < size and (data := os.pread(fd, size - position, position)):
        pieces.append(data)
        position += len(data)
    return b"".join(pieces)


class _Stretch:
    """What a chunker reads from: the bytes from `start` to `end`, or to where the file ends."""

    def __init__(self, fd: int, start: int, end: int) -> None:
        self._fd, self._position, self._end = fd, start, end

    def read(self, count: int = -1) -> bytes:
        left = self._end - self._position
        wanted = left if count < 0 else min(count, left)
        data = os.pread(self._fd, wanted, self._position) if wanted > 0 else b""
        self._position += len(data)
        return data


def _has_hole(fd: int, size: int) -> bool:
    """Ask the file system: one that compresses, or keeps small files elsewhere, has few blocks."""
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE) < size
    except OSError:
        return False


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Give the stretches of a file that hold data, from start to end."""
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if start >= size:
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, end
        position = end
