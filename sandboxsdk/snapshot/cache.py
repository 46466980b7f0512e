"""What a walk remembers of files so that the next one need not read them: a cache, never a truth.

A file whose inode, size, times and mode are what they were when it was read has the content that it
had then: nobody can set an inode's change time. Only a change in the very moment of reading could
go unseen, so a file that had changed shortly before the walk began is not remembered.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from typing import final

import msgspec

from sandboxsdk import clock, disk
from sandboxsdk.codec import seal, unseal
from sandboxsdk.errors import Corrupt, SandboxError

from .tree import FILE, MTIME_MAX, MTIME_MIN, Attributes, Node

# The kernel stamps files with a clock that ticks every 1 to 10 ms; file systems that store whole
# seconds, or two, are told by stamps without a fraction.
_YOUNG_NS = 50_000_000
YOUNG_SECONDS = _YOUNG_NS / 1_000_000_000
_YOUNG_COARSE_NS = 4_000_000_000
_SECOND_NS = 1_000_000_000
_FILE_BYTES_MAX = 1 << 30

# Device and inode, size, mtime and ctime in nanoseconds, mode: as bytes, there are many of them.
Stamp = bytes
_STAMP = struct.Struct("<QQqqqI")
Recall = Callable[[bytes, os.stat_result], Node | None]


class _Row(msgspec.Struct, array_like=True, frozen=True, gc=False):
    stamp: Stamp
    kind: int
    size: int
    content: bytes
    attributes: Attributes


class _File(msgspec.Struct, array_like=True, frozen=True):
    version: int
    generation: str
    # By the path of their directory, and by name.
    rows: dict[bytes, dict[bytes, _Row]]


_VERSION = 2


def stamp_of(found: os.stat_result) -> Stamp:
    """Give what must be the same for a file to be the same."""
    values = (
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_mode,
    )
    try:
        return _STAMP.pack(*values)
    except struct.error:
        # A time beyond 64 bits: no row says it, but the file can be told from another.
        return repr(values).encode()


@final
class StatCache:
    """The files that one walk saw, by directory and name; the next walk asks and makes another.

    Args:
        generation: of the store that the digests lie in.
    """

    def __init__(self, generation: str) -> None:
        self.generation = generation
        self._began = clock.now_ns()
        self._rows: dict[bytes, dict[bytes, _Row]] = {}
        # Whether some file is not remembered because it had just changed.
        self.has_young: bool = False
        # Whether a file says the same.
        self._is_stored = False

    @classmethod
    def load(
        cls,
        name: str,
        directory: int,
        *,
        generation: str,
        has: Callable[[Iterable[bytes]], set[bytes]],
    ) -> StatCache:
        """Read the file `name` of an open directory; an empty cache if there is none that is whole.

        Args:
            generation: of the store now; if another one was written down, `has` says which blobs
                are still there.
        """
        cache = cls(generation)
        try:
            data = _read(name, directory)
            stored = unseal(data, _File, path=name)
        except (OSError, Corrupt):
            return cache
        if stored.version != _VERSION:
            return cache
        cache._rows = stored.rows
        cache._is_stored = stored.generation == generation
        if stored.generation != generation:
            cache._forget_missing(has)
        return cache

    def find(self, directory: bytes, name: bytes, found: os.stat_result) -> Node | None:
        """Give the node of a file that is as it was; None if it must be read."""
        row = self._rows.get(directory, {}).get(name)
        if row is None or row.stamp != stamp_of(found):
            return None
        return Node(
            name,
            row.kind,
            found.st_mode & 0o7777,
            found.st_mtime_ns,
            found.st_uid,
            found.st_gid,
            row.size,
            row.content,
            0,
            row.attributes,
        )

    def note(self, directory: bytes, node: Node, found: os.stat_result) -> None:
        """Remember a file as it was read, unless it changed too shortly before this walk."""
        if not MTIME_MIN <= found.st_mtime_ns <= MTIME_MAX:
            return  # No number of the file can say it.
        newest = max(found.st_ctime_ns, found.st_mtime_ns)
        coarse = found.st_ctime_ns % _SECOND_NS == 0
        if newest >= self._began - (_YOUNG_COARSE_NS if coarse else _YOUNG_NS):
            self.has_young = True
            return
        row = _Row(stamp_of(found), node.kind, node.size, node.content, node.attributes)
        self._rows.setdefault(directory, {})[node.name] = row

    def recalling(self, directory: bytes, learned: StatCache, since: int | None) -> Recall | None:
        """Give what tells the files of one directory; None if nothing of it is known.

        It gives the node of a file that has one name, is as it was, and is older than `since`, and
        has the cache of this walk remember that file too. Of others it says nothing: `find` and
        `note` tell whether they are known.
        """
        rows = self._rows.get(directory)
        if not rows:
            return None
        row_of = rows.get
        carried: dict[bytes, _Row] = learned._rows.setdefault(directory, {})
        # Up to this no file is young, whatever its times are made of.
        old = learned._began - _YOUNG_COARSE_NS - 1
        if since is not None:
            old = min(old, since)

        def recall(name: bytes, found: os.stat_result) -> Node | None:
            row = row_of(name)
            if row is None or found.st_nlink != 1 or row.stamp != stamp_of(found):
                return None
            mtime = found.st_mtime_ns
            if mtime > old or found.st_ctime_ns > old:
                return None
            carried[name] = row
            return Node(
                name,
                row.kind,
                found.st_mode & 0o7777,
                mtime,
                found.st_uid,
                found.st_gid,
                row.size,
                row.content,
                0,
                row.attributes,
            )

        return recall

    def compare(self, known: StatCache) -> None:
        """At the end of a walk: find out whether it knows anything else than the one before."""
        self._rows = {path: rows for path, rows in self._rows.items() if rows}
        self._is_stored = (
            known._is_stored and known.generation == self.generation and known._rows == self._rows
        )

    def save(self, name: str, directory: int) -> None:
        """Write it down, unless that would change nothing; that it could not be is no error: the
        next walk reads more.
        """
        if self._is_stored:
            return
        data = seal(_File(_VERSION, self.generation, self._rows))
        try:
            disk.replace(name, data, dir_fd=directory, durable=False)
        except (OSError, SandboxError):
            return

    def _forget_missing(self, has: Callable[[Iterable[bytes]], set[bytes]]) -> None:
        """Drop what garbage collection may have taken: of a large file the list says too little."""
        wanted = {
            row.content
            for rows in self._rows.values()
            for row in rows.values()
            if row.kind == FILE and row.content
        }
        there = has(wanted)
        for path, rows in self._rows.items():
            self._rows[path] = {
                name: row
                for name, row in rows.items()
                if row.kind == FILE and (not row.content or row.content in there)
            }


def _read(name: str, directory: int) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=directory)
    try:
        # Python does not close a descriptor that it refuses, as that of a directory.
        with open(fd, "rb", closefd=False) as file:
            # Not the most that there may be: so much memory would be asked for.
            return file.read(min(os.fstat(fd).st_size, _FILE_BYTES_MAX))
    finally:
        os.close(fd)
