"""One tree of an overlay (base or upper), read below its root's descriptor.

Everything in an upper was written by a guest, and may change while we look: no link is followed,
nothing but a regular file is opened for reading, no name is trusted to be the same file twice, and
nothing is ever written. Paths are relative to the root, with "/" between names; "" is the root. The
number of open descriptors is bounded, however deep the tree is.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from sandboxsdk import syscalls
from sandboxsdk.codec import Hasher
from sandboxsdk.errors import HostRefused
from sandboxsdk.snapshot import Entry

WHITEOUT = Entry(0, 0)
"""Stands for a name that the layer hides."""

_OPAQUE = "user.overlay.opaque"
_WHITEOUT = "user.overlay.whiteout"
# What a name answers when it was removed or replaced between two looks at it.
_VANISHED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_UNREADABLE = (*_VANISHED, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV)
_OPEN_MAX = 32
_PATH_BYTES_MAX = 3072
_CHUNK = 1024 * 1024
_RACES_MAX = 8


@final
class Layer:
    """The tree below `root`, a descriptor that the layer takes over; `path` is for messages."""

    def __init__(self, root: int, *, path: str) -> None:
        self._root = root
        self._path = path
        # Directories by path, the one used longest ago first.
        self._open: dict[str, int] = {}

    def __enter__(self) -> Layer:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._root, *self._open.values()):
            os.close(descriptor)
        self._open.clear()

    def directory(self, path: str) -> int | None:
        """Give an O_PATH descriptor of a directory, valid until the next call; None if missing.

        A directory that something is mounted on counts as missing: overlays see no mounts.

        Raises:
            HostRefused: it may not be searched.
        """
        if not path:
            return self._root
        known = self._open.pop(path, None)
        if known is None:
            above, _, name = path.rpartition("/")
            parent = self._root if not above else self._open.get(above)
            if parent is None:
                parent = self._descend(above)
                if parent is None:
                    return None
                self._keep(above, parent)
            known = self._step(parent, name, path)
            if known is None:
                return None
        self._keep(path, known)
        return known

    def listing(self, directory: int, path: str) -> tuple[list[str], bytes]:
        """Give a directory's names and its marker: b"y" is opaque, b"x" has whiteouts by attribute.

        Raises:
            HostRefused: it may not be read.
        """
        try:
            reader = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
            try:
                return os.listdir(reader), _attribute(reader, _OPAQUE) or b""
            finally:
                os.close(reader)
        except OSError as error:
            if error.errno in _VANISHED:
                return [], b""
            raise self._refused(path, error) from error

    def entry(self, directory: int, path: str, *, marked: bool = False) -> Entry | None:
        """Describe one name of an open directory: None is nothing, WHITEOUT is a hidden name.

        Args:
            directory: what `directory` gave for the path above.
            marked: whether an empty file may be a whiteout, told by its attribute.

        Raises:
            HostRefused: the directory may not be searched.
        """
        name = path.rpartition("/")[2]
        for _ in range(_RACES_MAX):
            try:
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                kind, target = stat.S_IFMT(found.st_mode), None
                if kind == stat.S_IFLNK:
                    target = os.readlink(name, dir_fd=directory)
            except OSError as error:
                if error.errno in _VANISHED:
                    return None
                if error.errno == errno.EINVAL:
                    continue  # It was a link a moment ago.
                raise self._refused(path, error) from error
            if kind == stat.S_IFCHR and found.st_rdev == 0:
                return WHITEOUT
            size = found.st_size if kind == stat.S_IFREG else None
            if marked and size == 0 and self._is_marked(directory, path):
                return WHITEOUT
            device = found.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
            return Entry(kind, stat.S_IMODE(found.st_mode), size, target, device)
        return None

    def digest(self, path: str, size: int) -> str | None:
        """Digest a regular file of exactly `size` bytes; None if it is none, or may not be read."""
        hasher, offset = Hasher(), 0
        with self.file(path) as descriptor:
            if descriptor is None or os.fstat(descriptor).st_size != size:
                return None
            try:
                while offset < size:
                    chunk = os.pread(descriptor, min(_CHUNK, size - offset), offset)
                    if not chunk:
                        return None
                    hasher.update(chunk)
                    offset += len(chunk)
            except OSError as error:
                raise self._refused(path, error) from error
        return hasher.hexdigest()

    def same_content(self, other: Layer, path: str) -> bool:
        """Compare a file of two layers byte by byte; what may not be read counts as different."""
        with self.file(path) as first, other.file(path) as second:
            if first is None or second is None:
                return False
            size = os.fstat(first).st_size
            if os.fstat(second).st_size != size:
                return False
            try:
                for offset in range(0, size, _CHUNK):
                    chunk = os.pread(first, _CHUNK, offset)
                    if not chunk or chunk != os.pread(second, _CHUNK, offset):
                        return False
            except OSError as error:
                raise self._refused(path, error) from error
        return True

    @contextmanager
    def file(self, path: str) -> Iterator[int | None]:
        """Open a regular file for reading; None when it is none, or may not be read."""
        above = self.directory(path.rpartition("/")[0])
        descriptor = None if above is None else self._open_file(above, path)
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _keep(self, path: str, descriptor: int) -> None:
        self._open[path] = descriptor
        if len(self._open) > _OPEN_MAX:
            os.close(self._open.pop(next(iter(self._open))))

    def _descend(self, path: str) -> int | None:
        """Open a directory from the root on, in as few calls as the length of a path allows."""
        here, start = self._root, 0
        names = path.split("/")
        while start < len(names):
            end, length = start + 1, len(os.fsencode(names[start]))
            while end < len(names) and length < _PATH_BYTES_MAX:
                length += 1 + len(os.fsencode(names[end]))
                end += 1
            try:
                found = self._step(here, "/".join(names[start:end]), path)
            finally:
                if here != self._root:
                    os.close(here)
            if found is None:
                return None
            here, start = found, end
        return here

    def _step(self, parent: int, names: str, path: str) -> int | None:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
        resolve = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV
        try:
            return syscalls.openat2(parent, os.fsencode(names), flags, resolve=resolve)
        except OSError as error:
            if error.errno in (*_VANISHED, errno.EXDEV):
                return None
            raise self._refused(path, error) from error

    def _open_file(self, directory: int, path: str) -> int | None:
        # O_NONBLOCK: what was a file may be a FIFO by now, and opening one would wait for a writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            descriptor = os.open(path.rpartition("/")[2], flags, dir_fd=directory)
        except OSError as error:
            if error.errno in _UNREADABLE:
                return None
            raise self._refused(path, error) from error
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        return None

    def _is_marked(self, directory: int, path: str) -> bool:
        descriptor = self._open_file(directory, path)
        if descriptor is None:
            return False
        try:
            return _attribute(descriptor, _WHITEOUT) is not None
        finally:
            os.close(descriptor)

    def _refused(self, path: str, error: OSError) -> HostRefused:
        reason = os.strerror(error.errno or errno.EIO)
        hint = "make it readable for its owner (chmod u+rwX) and try again"
        if error.errno not in (errno.EACCES, errno.EPERM):
            hint = "the host could not read its own file system; nothing was changed"
        where = f"{self._path}/{path}" if path else self._path
        return HostRefused(what="cannot read", path=where, reason=reason, hint=hint)


def _attribute(descriptor: int, name: str) -> bytes | None:
    try:
        return os.getxattr(descriptor, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.EACCES, errno.EPERM):
            return None
        raise
