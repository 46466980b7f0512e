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
from collections.abc import Mapping
from typing import Any

import msgspec

from sandboxsdk import clock
from sandboxsdk.codec import decode_json, digest, encode_json
from sandboxsdk.errors import Corrupt, Denied, HostFull, HostRefused, NotFound

_FIRST = "0" * 64
_BYTES_MAX = 4 * 1024**3
_SUM_LENGTH = 16
_SUM = b',"sum":"'
_END = re.compile(b'%s[0-9a-f]{%d}"}' % (_SUM, _SUM_LENGTH))
_TAIL_LENGTH = len(_SUM) + _SUM_LENGTH + len(b'"}')
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_FILE_OF_OURS = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENOTDIR)


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
    """Reads and appends one journal file. Appending needs the task's lease, reading nothing."""

    def __init__(self, path: str) -> None:
        self.path = path

    def entries(self) -> list[Entry]:
        """Read all entries; an unfinished last line (a crash while appending) is left out.

        Raises:
            NotFound: there is no journal.
            Corrupt: a finished line is damaged, missing or not ours; `line` says which.
        """
        return self._read()[0]

    def begin(self, kind: str, data: Mapping[str, Any], *, sync: bool = False) -> Entry:
        """Make the journal with its first entry.

        Raises:
            HostFull, HostRefused: it cannot be written, or there is one already.
        """
        return self._write([], 0, _FIRST, kind, data, sync=sync, flags=os.O_CREAT | os.O_EXCL)

    def append(self, kind: str, data: Mapping[str, Any], *, sync: bool = False) -> Entry:
        """Add one entry after the last whole one; with `sync` it survives a power cut when this
        returns. If it fails, the journal is as it was.

        Raises:
            NotFound: there is no journal.
            Corrupt: it is damaged; nothing is added to it.
            HostFull, HostRefused: it cannot be written.
        """
        found, length, prev = self._read()
        return self._write(found, length, prev, kind, data, sync=sync, flags=0)

    def _write(
        self,
        found: list[Entry],
        length: int,
        prev: str,
        kind: str,
        data: Mapping[str, Any],
        *,
        sync: bool,
        flags: int,
    ) -> Entry:
        entry = Entry(seq=len(found), at=clock.now_ns(), kind=kind, data=dict(data), prev=prev)
        line = _line(entry) + b"\n"
        flags |= os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self.path, flags, 0o600)
            try:
                os.ftruncate(descriptor, length)
                _write_all(descriptor, line, length)
                if sync:
                    os.fdatasync(descriptor)
            except BaseException:
                # What was not acknowledged is not there either.
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, length)
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise HostFull(path=self.path, reason=error.strerror) from error
            raise HostRefused(what="append to", path=self.path, reason=error.strerror) from error
        return entry

    def _read(self) -> tuple[list[Entry], int, str]:
        """Give the entries, the length of their lines in bytes, and the digest of the last line."""
        *lines, rest = _bytes_of(self.path).split(b"\n")
        entries: list[Entry] = []
        length, prev = 0, _FIRST
        for number, line in enumerate(lines, 1):
            if not _is_whole(line):
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
        if any(
            _is_whole(rest[: end.end()]) for end in _END.finditer(rest) if end.end() < len(rest)
        ):
            # Not an unfinished line: a crash leaves nothing behind a whole one but its newline.
            number = len(lines) + 1
            reason = f"line {number} is followed by something else than a newline"
            raise Corrupt(path=self.path, line=number, reason=reason)
        return entries, length, prev


def _bytes_of(path: str) -> bytes:
    """Read a regular file, and nothing that stands in its place."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with open(os.open(path, flags), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise Corrupt(path=path, line=0, reason="is not a regular file")
            if found.st_size > _BYTES_MAX:
                raise Corrupt(path=path, line=0, reason="is larger than a journal may be")
            return file.read()
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


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written
