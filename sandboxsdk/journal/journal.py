"""The append-only, hash-chained record of what happened to one task, in JSON lines.

A line is the entry as a JSON object whose last member, `sum`, is the beginning of the digest of all
before it: the chain protects every line but the last, the sum that one too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from sandboxsdk import clock, disk
from sandboxsdk.codec import decode_json, digest, encode_json
from sandboxsdk.errors import Corrupt, Denied, HostRefused, NotFound

FILE = "journal.jsonl"
"""Its name in the directory of a task."""

_FIRST = "0" * 64
_SECTOR = 512
# So many lines may be written without a sync, before or with one that is synced.
_LOST_LINES_MAX = 16
_BYTES_MAX = 4 * 1024**3
# So many journals are remembered.
_KNOWN_MAX = 64
_SUM_LENGTH = 16
_SUM = b',"sum":"'
_END = re.compile(b'%s[0-9a-f]{%d}"}' % (_SUM, _SUM_LENGTH))
_TAIL_LENGTH = len(_SUM) + _SUM_LENGTH + len(b'"}')
_NO_FILE_OF_OURS = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENOTDIR)


# Device and inode, size, mtime and ctime in nanoseconds: nobody can set an inode's change time.
_Stamp = tuple[int, int, int, int, int]
T = TypeVar("T")


class Entry(msgspec.Struct, frozen=True):
    """One thing that happened.

    Attributes:
        seq: counts from 0 without gaps.
        at: UTC nanoseconds.
        kind: a word, e.g. "created".
        data: facts, in the shape that this kind has.
        prev: digest of the line before, 64 zeros for the first.
    """

    seq: int
    at: int
    kind: str
    data: dict[str, Any]
    prev: str


class Journal:
    """Reads and appends one journal file. Appending needs the task's lease, reading nothing.

    Threads of one process may append at once: they take turns.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other threads of this process from appending during the block; blocks nest.

        What is read in the block is still so when something is appended in it. Other processes are
        kept away by the task's lease.
        """
        guard = _guard_of(self.path)  # Held by name: it is gone when nobody has it.
        with guard.lock:
            yield

    def entries(self) -> list[Entry]:
        """Read all entries; an unfinished last line (a crash while appending) is left out.

        Raises:
            NotFound: there is no journal.
            Corrupt: a finished line is damaged, missing or not ours; `line` says which.
        """
        return list(self._read().entries)

    def folded(self, fold: Callable[[T | None, Sequence[Entry], str], T]) -> T:
        """Give what all entries add up to; costs those that are new since this was asked last.

        Args:
            fold: gives a new value that adds entries to an earlier one, or to nothing, and is told
                the path for its errors. It must not change the earlier value, and always be the
                same function.

        Raises:
            NotFound, Corrupt: as `entries`.
        """
        known = self._read()
        with _looking:
            count, value = known.folds.get(fold, (0, None))
            entries = known.entries[count:]
        if entries or value is None:
            value = fold(value, entries, self.path)
            with _looking:
                known.folds[fold] = (count + len(entries), value)
        made: T = value
        return made

    def begin(self, kind: str, data: Mapping[str, Any], *, sync: bool = False) -> Entry:
        """Make the journal with its first entry.

        Raises:
            HostFull, HostRefused: it cannot be written, or there is one already.
        """
        return self._write(_Known(), kind, data, sync=sync, first=True)

    def append(self, kind: str, data: Mapping[str, Any], *, sync: bool = False) -> Entry:
        """Add one entry after the last whole one; with `sync` it survives a power cut when this
        returns. If it fails, the journal is as it was.

        Raises:
            NotFound: there is no journal.
            Corrupt: it is damaged; nothing is added to it.
            HostFull, HostRefused: it cannot be written.
        """
        with self.alone():
            return self._write(self._read(), kind, data, sync=sync, first=False)

    def _write(
        self,
        known: _Known,
        kind: str,
        data: Mapping[str, Any],
        *,
        sync: bool,
        first: bool,
    ) -> Entry:
        entry = Entry(
            seq=len(known.entries), at=clock.now_ns(), kind=kind, data=dict(data), prev=known.prev
        )
        line = _line(entry)
        length = known.length
        with disk.translated("append to", self.path):
            if first:
                descriptor = disk.create(self.path)
            else:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_size != length:
                    disk.truncate(descriptor, length)
                disk.write(descriptor, line + b"\n", length)
                if sync:
                    disk.sync_data(descriptor)
                stamp = _stamp(os.fstat(descriptor))
            except BaseException:
                # What was not acknowledged is not there either.
                with contextlib.suppress(OSError):
                    disk.truncate(descriptor, length)
                raise
            finally:
                os.close(descriptor)
        _remember(self.path, known.followed(entry, line, stamp))
        return entry

    def _read(self) -> _Known:
        """Give what the file says; it is read if it is another one than when we looked last."""
        known = _remembered(self.path)
        if known is None:
            known = _Known()
            data, known.stamp = _bytes_of(self.path)
            known.entries, known.length, known.prev = self._parsed(data)
            _remember(self.path, known)
        return known

    def _parsed(self, data: bytes) -> tuple[list[Entry], int, str]:
        """Give the entries, the length of their lines in bytes, and the digest of the last line."""
        *lines, rest = data.split(b"\n")
        entries: list[Entry] = []
        length, prev = 0, _FIRST
        for number, line in enumerate(lines, 1):
            whole = _is_whole(line)
            if not whole and len(lines) - number < _LOST_LINES_MAX and _is_lost(data, length):
                return entries, length, prev
            if not whole:
                raise Corrupt(
                    path=self.path, line=number, reason=f"line {number} is not what was written"
                )
            entry = decode_json(line, Entry, path=f"{self.path}, line {number}")
            if entry.seq != len(entries) or entry.prev != prev:
                reason = f"line {number} does not follow the one before it"
                raise Corrupt(path=self.path, line=number, reason=reason)
            entries.append(entry)
            length += len(line) + 1
            prev = digest(line)
        # A newline that a power cut has lost may have left a NUL.
        found = rest.rstrip(b"\0")
        if any(
            _is_whole(found[: end.end()]) for end in _END.finditer(found) if end.end() < len(found)
        ):
            # Not an unfinished line: a crash leaves nothing behind a whole one but its newline.
            number = len(lines) + 1
            reason = f"line {number} is followed by something else than a newline"
            raise Corrupt(path=self.path, line=number, reason=reason)
        return entries, length, prev


class _Known:
    """What a journal said when we looked last.

    Attributes:
        length: of the lines that count, in bytes.
        prev: digest of the last of them.
        stamp: of the file then.
        folds: what the first entries add up to: how many, and the value, by who adds them up.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.length = 0
        self.prev = _FIRST
        self.stamp: _Stamp | None = None
        self.folds: dict[Any, tuple[int, Any]] = {}

    def followed(self, entry: Entry, line: bytes, stamp: _Stamp) -> _Known:
        """Say the same with one more line."""
        self.entries.append(entry)
        self.length += len(line) + 1
        self.prev = digest(line)
        self.stamp = stamp
        return self


def _stamp(found: os.stat_result) -> _Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _remembered(path: str) -> _Known | None:
    """Give what is known of a journal whose file is as it was."""
    with _looking:
        known = _journals.get(path)
    if known is None:
        return None
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return known if stat.S_ISREG(found.st_mode) and _stamp(found) == known.stamp else None


def _remember(path: str, known: _Known) -> None:
    with _looking:
        _journals[path] = known
        _journals.move_to_end(path)
        while len(_journals) > _KNOWN_MAX:
            _journals.popitem(last=False)


class _Guard:
    """The lock of one journal among the threads of this process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()


_guards: weakref.WeakValueDictionary[str, _Guard] = weakref.WeakValueDictionary()
_looking = threading.Lock()
_journals: OrderedDict[str, _Known] = OrderedDict()


def _guard_of(path: str) -> _Guard:
    with _looking:
        return _guards.setdefault(path, _Guard())


def _start_anew() -> None:
    """In a forked child: wait for no thread that is the parent's."""
    global _guards, _looking
    _guards, _looking = weakref.WeakValueDictionary(), threading.Lock()


os.register_at_fork(after_in_child=_start_anew)


def _is_lost(data: bytes, start: int) -> bool:
    """Tell whether a power cut has left the line that begins at `start`, and what is behind it.

    Of what was not synced it may leave sectors and lose others, which are NULs then: from a border
    of sectors (or from where the first of the lines began) to the next. A line has no NUL, and no
    damage of single bytes looks like this. What was acknowledged was synced, with all before it.
    """
    first = data.find(b"\0", start)
    if first < 0 or b"\n" in data[start:first]:
        return False
    behind = len(data) - len(data[first:].lstrip(b"\0"))
    begins = first == start or first % _SECTOR == 0
    return begins and (behind == len(data) or behind % _SECTOR == 0)


def _bytes_of(path: str) -> tuple[bytes, _Stamp]:
    """Read a regular file, and nothing that stands in its place; gives its stamp from before."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise Corrupt(path=path, line=0, reason="is not a regular file")
            if found.st_size > _BYTES_MAX:
                raise Corrupt(path=path, line=0, reason="is larger than a journal may be")
            return file.read(), _stamp(found)
    except FileNotFoundError:
        raise NotFound(reason=f"no journal at {path}") from None
    except PermissionError as error:
        hint = "give its owner the right to read and write it back, as it had in the beginning"
        raise Denied(path=path, reason=error.strerror, hint=hint) from error
    except OSError as error:
        if error.errno in _NO_FILE_OF_OURS:
            raise Corrupt(path=path, line=0, reason="is not a regular file") from error
        raise HostRefused(what="read", path=path, reason=error.strerror) from error


def _line(entry: Entry) -> bytes:
    body = encode_json(entry)
    return b'%s%s%s"}' % (body[:-1], _SUM, _sum(body[:-1]))


def _is_whole(line: bytes) -> bool:
    body = line[:-_TAIL_LENGTH]
    return len(line) > _TAIL_LENGTH and line[-_TAIL_LENGTH:] == b'%s%s"}' % (_SUM, _sum(body))


def _sum(body: bytes) -> bytes:
    return digest(body)[:_SUM_LENGTH].encode("ascii")
