"""Copies between two trees, and what they did: the box's files and the host's, in either direction.

Knows no box and no workspace, only trees. Everything is read and written through a Tree, so that
nothing can be redirected; what is neither file, directory nor link is skipped and named.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Literal

import msgspec

from sandboxsdk.errors import (
    Denied,
    FileConflict,
    FileMissing,
    HostRefused,
    LimitExceeded,
    SandboxError,
    UsageError,
)
from sandboxsdk.host import Tree
from sandboxsdk.units import format_size

_SKIPPED_SHOWN = 10
KINDS: dict[int, Literal["file", "directory", "symlink", "fifo", "socket", "device"]] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}

AnyPath = str | os.PathLike[str]


class TransferReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an upload or download copied.

    Attributes:
        files: files and symbolic links.
        bytes: of the files' content.
        skipped: paths relative to what was copied: FIFOs, sockets, devices, what could not be read
            or changed its type meanwhile.
    """

    files: int
    bytes: int
    skipped: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.skipped

    def __str__(self) -> str:
        lines = [f"{self.files} file{'s' * (self.files != 1)}, {format_size(self.bytes)}"]
        lines += [f"skipped {_printable(path)}" for path in self.skipped[:_SKIPPED_SHOWN]]
        if len(self.skipped) > _SKIPPED_SHOWN:
            lines.append(f"skipped {len(self.skipped) - _SKIPPED_SHOWN} more")
        return "\n".join(lines)


def _printable(path: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in path)


@contextlib.contextmanager
def host_source(host_path: AnyPath) -> Iterator[tuple[Tree, bytes]]:
    """Open what the user named on the host: a directory itself, or the one that a file lies in."""
    try:
        real = os.path.realpath(os.fsencode(host_path), strict=True)
        mode = os.stat(real, follow_symlinks=False).st_mode
        directory = real if stat.S_ISDIR(mode) else os.path.dirname(real)
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _host_unusable(host_path, error) from None
    try:
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            reason = "is neither a file nor a directory"
            raise UsageError(what="host_path", value=os.fspath(host_path), reason=reason)
        yield Tree(fd), b"." if directory == real else os.path.basename(real)
    finally:
        os.close(fd)


@contextlib.contextmanager
def host_target(host_path: AnyPath) -> Iterator[tuple[Tree, bytes]]:
    """Open the host directory that the target lies in; `.` and `/` are themselves the target."""
    head, name = os.path.split(os.fsencode(host_path).rstrip(b"/") or b"/.")
    if name in (b"", b".", b".."):
        head, name = os.path.join(head, name), b"."
    try:
        fd = os.open(head or b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _host_unusable(host_path, error) from None
    try:
        yield Tree(fd), name
    finally:
        os.close(fd)


def _host_unusable(host_path: AnyPath, error: OSError | ValueError) -> UsageError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return UsageError(what="host_path", value=os.fspath(host_path), reason=reason)


class _Tally:
    """What a copy has done so far; `add` stops it at the limit, before the bytes are written."""

    def __init__(self, limit: int) -> None:
        self.files, self.bytes, self.limit = 0, 0, limit
        self.skipped: list[str] = []

    def skip(self, path: bytes, _error: SandboxError | None = None) -> None:
        self.skipped.append(os.fsdecode(path))

    def add(self, path: bytes, size: int) -> None:
        shown = os.fsdecode(path)
        if self.bytes + size > self.limit:
            reason = f"{shown}: its {size} bytes pass the limit of {self.limit} for one copy"
            raise LimitExceeded(path=shown, limit=self.limit, reason=reason)
        self.bytes += size
        self.files += 1


def copy_tree(
    source: Tree, path: bytes, entry: os.stat_result, target: Tree, into: bytes, *, limit: int
) -> TransferReport:
    """Copy an entry and all below it from one tree to another; what cannot be read is skipped."""
    tally = _Tally(limit)
    if not stat.S_ISDIR(entry.st_mode):
        if not _copy_entry(source, path, entry, target, into, tally):
            tally.skip(b".")
    else:
        # Directories get their own bits last: one that is not writable must be filled first.
        made = [(into, entry.st_mode)]
        target.mkdir(into, 0o700, parents=True, exist_ok=True)
        start = 0 if path == b"." else len(path) + 1
        # The target may lie within the source (a box that works in a directory of the host itself).
        own = target.stat(into)
        inside: set[bytes] = set()
        entries = source.walk(
            path,
            enter=lambda at: at not in inside,
            unreadable=lambda at, _: tally.skip(at[start:] or b"."),
        )
        for name, found in entries:
            if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino):
                inside.add(name)
                continue
            below = name[start:]
            place = below if into == b"." else into + b"/" + below
            if stat.S_ISDIR(found.st_mode):
                target.mkdir(place, 0o700, exist_ok=True)
                made.append((place, found.st_mode))
            elif not _copy_entry(source, name, found, target, place, tally):
                tally.skip(below)
        for place, mode in reversed(made):
            if place != b".":
                target.chmod(place, mode)
    return TransferReport(files=tally.files, bytes=tally.bytes, skipped=tuple(tally.skipped))


def _copy_entry(
    source: Tree, path: bytes, entry: os.stat_result, target: Tree, into: bytes, tally: _Tally
) -> bool:
    """Copy a file or a link; False for what is neither, vanished, changed or is unreadable."""
    with contextlib.ExitStack() as stack:
        # Only what reading says is forgiven: an error of the target ends the copy.
        try:
            if stat.S_ISLNK(entry.st_mode):
                content, link = None, source.readlink(path)
            elif stat.S_ISREG(entry.st_mode):
                content, link = stack.enter_context(source.content(path)), b""
            else:
                return False
        except (FileMissing, FileConflict, Denied, HostRefused):
            return False
        if content is None:
            tally.add(path, 0)
            target.symlink(into, link, parents=True, replace=True)
        else:
            opened, chunks = content
            tally.add(path, opened.st_size)
            target.write(into, chunks, stat.S_IMODE(opened.st_mode), parents=True)
    return True
