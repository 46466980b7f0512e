"""What a walk remembers of files so that the next one need not read them: a cache, never a truth.

A file whose inode, size, times and mode are what they were when it was read has the content that it
had then: nobody can set an inode's change time. Only a change in the very moment of reading could
go unseen, so a file that had changed shortly before the walk began is not remembered.

So it is with directories. One that is as it was lists the names that it listed then; where nothing
but remembered files and directories were in it, and those files are as they were, it has the tree
that it had then, as far as what lies below it has.
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

from .tree import FILE, MTIME_MAX, MTIME_MIN, SYMLINK, Attributes, Node

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
    uid: int
    gid: int
    size: int
    content: bytes
    attributes: Attributes


class Seen(msgspec.Struct, array_like=True, frozen=True):
    """A directory in which there was nothing but remembered files and directories.

    Attributes:
        stamp: of the directory.
        digest: of its tree.
        inner: names of the directories in it that were gone into.
        files, size: what is in it, without what lies below it.
        newest: the latest time of a file in it.
    """

    stamp: Stamp
    digest: bytes
    inner: tuple[bytes, ...]
    files: int
    size: int
    newest: int


class _File(msgspec.Struct, array_like=True, frozen=True):
    version: int
    generation: str
    # By the path of their directory, and by name.
    rows: dict[bytes, dict[bytes, _Row]]
    seen: dict[bytes, Seen]


_VERSION = 3
_NO_ROWS: dict[bytes, _Row] = {}


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
        self._seen: dict[bytes, Seen] = {}
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
        cache._rows, cache._seen = stored.rows, stored.seen
        cache._is_stored = stored.generation == generation
        if stored.generation != generation:
            cache._forget_missing(has)
        return cache

    def find(self, directory: bytes, name: bytes, found: os.stat_result) -> Node | None:
        """Give the node of a file or link that is as it was; None if it must be read."""
        row = self._rows.get(directory, {}).get(name)
        return None if row is None or row.stamp != stamp_of(found) else _node(name, row)

    def note(self, directory: bytes, node: Node, found: os.stat_result) -> None:
        """Remember a file or link as it was read, unless it changed shortly before this walk."""
        stamp = stamp_of(found)
        if not MTIME_MIN <= found.st_mtime_ns <= MTIME_MAX or len(stamp) != _STAMP.size:
            return  # No number of the file can say it.
        if self._is_young(found):
            self.has_young = True
            return
        row = _Row(
            stamp,
            node.kind,
            node.uid,
            node.gid,
            node.size,
            node.content,
            node.attributes,
        )
        self._rows.setdefault(directory, {})[node.name] = row

    def _is_young(self, found: os.stat_result) -> bool:
        coarse = found.st_ctime_ns % _SECOND_NS == 0
        old = self._began - (_YOUNG_COARSE_NS if coarse else _YOUNG_NS)
        return max(found.st_ctime_ns, found.st_mtime_ns) >= old

    def _old(self, since: int | None) -> int:
        """Give up to when no file is young, whatever its times are made of, nor after `since`."""
        old = self._began - _YOUNG_COARSE_NS - 1
        return old if since is None else min(old, since)

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
        old = learned._old(since)

        def recall(name: bytes, found: os.stat_result) -> Node | None:
            row = row_of(name)
            if row is None or found.st_nlink != 1 or row.stamp != stamp_of(found):
                return None
            mtime = found.st_mtime_ns
            if mtime > old or found.st_ctime_ns > old:
                return None
            carried[name] = row
            return _node(name, row)

        return recall

    # --- Directories as a whole -------------------------------------------------------------------

    def unchanged(
        self,
        path: bytes,
        directory: int,
        found: os.stat_result,
        learned: StatCache,
        since: int | None,
    ) -> Seen | None:
        """Give what is remembered of a directory, if that and each file in it are as they were, and
        older than `since`; what lies below it is not looked at.

        Args:
            directory: its descriptor.
            found: what it is.
            learned: the cache of this walk.
        """
        seen = self._seen.get(path)
        if seen is None or seen.stamp != stamp_of(found):
            return None
        if max(seen.newest, found.st_ctime_ns, found.st_mtime_ns) > learned._old(since):
            return None
        stat, pack = os.stat, _STAMP.pack
        try:
            for name, row in self._rows.get(path, _NO_ROWS).items():
                it = stat(name, dir_fd=directory, follow_symlinks=False)
                stamp = pack(
                    it.st_dev, it.st_ino, it.st_size, it.st_mtime_ns, it.st_ctime_ns, it.st_mode
                )
                if stamp != row.stamp or it.st_nlink != 1:
                    return None
        except (OSError, struct.error):
            return None
        return seen

    def nodes(self, path: bytes) -> dict[bytes, Node]:
        """Give the files of a directory that is `unchanged`."""
        return {name: _node(name, row) for name, row in self._rows.get(path, _NO_ROWS).items()}

    def digest(self, path: bytes) -> bytes:
        """Give the tree that a directory had; empty if that is not remembered."""
        seen = self._seen.get(path)
        return b"" if seen is None else seen.digest

    def carry(self, path: bytes, known: StatCache, digest: bytes) -> None:
        """Remember a directory that was `unchanged` in another cache, and the tree that it has."""
        seen = known._seen[path]
        self._seen[path] = (
            seen if digest == seen.digest else msgspec.structs.replace(seen, digest=digest)
        )
        if path in known._rows:
            self._rows[path] = known._rows[path]

    def see(
        self,
        path: bytes,
        found: os.stat_result,
        digest: bytes,
        inner: tuple[bytes, ...],
        others: int,
    ) -> None:
        """Remember a directory, if it has not just changed and all of `others`, the entries in it
        beside `inner`, are remembered files.
        """
        rows = self._rows.get(path, _NO_ROWS)
        if len(rows) != others or self._is_young(found):
            return
        files, size, newest = 0, 0, 0
        for row in rows.values():
            _, _, _, mtime, ctime, _ = _STAMP.unpack(row.stamp)
            files, size = files + (row.kind != SYMLINK), size + row.size
            newest = max(newest, mtime, ctime)
        self._seen[path] = Seen(stamp_of(found), digest, inner, files, size, newest)

    # --- As a file --------------------------------------------------------------------------------

    def compare(self, known: StatCache) -> None:
        """At the end of a walk: find out whether it knows anything else than the one before."""
        self._rows = {path: rows for path, rows in self._rows.items() if rows}
        self._is_stored = (
            known._is_stored
            and known.generation == self.generation
            and known._rows == self._rows
            and known._seen == self._seen
        )

    def save(self, name: str, directory: int) -> None:
        """Write it down, unless that would change nothing; that it could not be is no error: the
        next walk reads more.
        """
        if self._is_stored:
            return
        data = seal(_File(_VERSION, self.generation, self._rows, self._seen))
        try:
            disk.replace(name, data, dir_fd=directory, durable=False)
        except (OSError, SandboxError):
            return

    def _forget_missing(self, has: Callable[[Iterable[bytes]], set[bytes]]) -> None:
        """Drop what garbage collection may have taken: of a large file the list says too little,
        and of a directory its digest.
        """
        self._seen = {}
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
                if row.kind == SYMLINK
                or (row.kind == FILE and (not row.content or row.content in there))
            }


def _node(name: bytes, row: _Row) -> Node:
    _, _, _, mtime, _, mode = _STAMP.unpack(row.stamp)
    return Node(
        name,
        row.kind,
        mode & 0o7777,
        mtime,
        row.uid,
        row.gid,
        row.size,
        row.content,
        0,
        row.attributes,
    )


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
