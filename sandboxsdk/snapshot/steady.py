"""One file of a hostile directory, read until it does not change meanwhile.

Nothing but a regular file is read, no link is followed, and nothing that is mounted over a name is
opened. Speaks OSError: ESTALE says that something else lies there by now, EXDEV that another mount
does.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import NamedTuple

import msgspec

from sandboxsdk import disk
from sandboxsdk.host import Opener

from .attributes import read_attributes
from .content import store_content
from .rules import Rules
from .tree import BLOCK, CHARACTER, MTIME_MAX, MTIME_MIN, Node, Sink

_READS_MAX = 3
_CONTENT = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Reading(NamedTuple):
    """A file as it was read.

    Attributes:
        found: what it was after that.
        steady: whether it was the same before and after.
        whiteout: overlay marked it as a name that is not there.
    """

    node: Node
    found: os.stat_result
    steady: bool
    whiteout: bool


def read_file(sink: Sink, opener: Opener, parent: int, name: bytes, rules: Rules) -> Reading:
    """Store the content of a file, and say as what it was read.

    Args:
        sink: takes the content.
        opener: opens the name.
        parent: descriptor of its directory.
        name: of the file.
        rules: those of the walk.
    """
    fd, mode = _open_file(opener, parent, name, unlock=rules.unlock)
    try:
        if rules.mapped:
            disk.write_out(fd)
        try:
            reading = _read_steady(sink, fd, name, overlay=rules.overlay)
        finally:
            if mode is not None:
                with suppress(OSError):
                    os.fchmod(fd, mode)
        if mode is None:
            return reading
        # Opening it up and closing it again changed its ctime, and nothing else.
        node = msgspec.structs.replace(reading.node, mode=mode)
        return reading._replace(node=node, found=os.fstat(fd))
    finally:
        os.close(fd)


def mtime_of(found: os.stat_result) -> int:
    """Give the time of the last change, or the nearest one that a tree can hold."""
    return min(max(found.st_mtime_ns, MTIME_MIN), MTIME_MAX)


def plain_node(name: bytes, kind: int, found: os.stat_result, target: bytes = b"") -> Node:
    """Describe an entry that has nothing to read: a device by its number, a link by its target."""
    return Node(
        name,
        kind,
        stat.S_IMODE(found.st_mode),
        mtime_of(found),
        found.st_uid,
        found.st_gid,
        found.st_rdev if kind in (CHARACTER, BLOCK) else 0,
        target,
    )


def set_all_bits(fd: int, mode: int) -> None:
    """Set all twelve mode bits of what an O_PATH descriptor names, as only putting back may."""
    os.chmod(f"/proc/self/fd/{fd}", mode)


def _read_steady(sink: Sink, fd: int, name: bytes, *, overlay: bool) -> Reading:
    """Read an open file until it does not change meanwhile, or that was tried often enough."""
    for left in reversed(range(_READS_MAX)):
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise OSError(errno.ESTALE, "is no file any more")
        marked = read_attributes(fd, overlay=overlay)
        kind, content, size = store_content(sink, fd, before.st_size, before.st_blocks)
        after = os.fstat(fd)
        steady = _stamp(before) == _stamp(after) and size == after.st_size
        if steady or not left:
            node = Node(
                name,
                kind,
                stat.S_IMODE(after.st_mode),
                mtime_of(after),
                after.st_uid,
                after.st_gid,
                size,
                content,
                0,
                marked.attributes,
            )
            return Reading(node, after, steady, marked.whiteout)
    raise AssertionError("unreachable")


def _open_file(opener: Opener, parent: int, name: bytes, *, unlock: bool) -> tuple[int, int | None]:
    """Open a file for reading; gives its own mode too if it had to be opened up."""
    try:
        return opener.entry(parent, name, _CONTENT), None
    except PermissionError:
        if not unlock:
            raise
    entry = opener.entry(parent, name)
    try:
        found = os.fstat(entry)
        if found.st_uid != os.geteuid() or not stat.S_ISREG(found.st_mode):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        mode = stat.S_IMODE(found.st_mode)
        set_all_bits(entry, mode | stat.S_IRUSR)
        try:
            return os.open(f"/proc/self/fd/{entry}", _CONTENT & ~os.O_NOFOLLOW), mode
        except BaseException:
            set_all_bits(entry, mode)
            raise
    finally:
        os.close(entry)


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
