"""How a hostile tree is walked: directories below a descriptor, a cursor through them, removal.

Speaks OSError and bytes; `tree` makes typed errors and paths of it. Everything below the start is
taken to be hostile: names change type at any moment, directories move, and somebody fills what we
empty.

Invariants:
- A path of several components is resolved by openat2 under RESOLVE_* rules, or one component at a
  time with O_NOFOLLOW; both refuse links and other mounts. Every other call takes one name.
- A cursor holds one descriptor, at any depth, and goes back only to the directory it came from.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from sandboxsdk.syscalls import (
    AT_FDCWD,
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)

from .entry import ENTRY, chmod_entry

NAMES_MAX = 4_000_000
_BATCH = 10_000
_PATH_BYTES_MAX = 4000
_DIRECTORY = ENTRY | os.O_DIRECTORY
_RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV


@functools.cache
def has_openat2() -> bool:
    """Say whether the kernel has openat2; old container filters answer EPERM, not ENOSYS."""
    try:
        os.close(openat2(AT_FDCWD, b".", _DIRECTORY, resolve=_RESOLVE))
    except OSError as error:
        return error.errno not in (errno.ENOSYS, errno.EPERM, errno.EINVAL)
    return True


class Opener:
    """The one place where a path becomes a directory: an O_PATH descriptor, or an OSError."""

    def __init__(self, *, with_openat2: bool) -> None:
        self._with_openat2 = with_openat2

    def directory(self, start: int, parts: Sequence[bytes]) -> int:
        if not parts:
            return os.open(".", _DIRECTORY, dir_fd=start)
        if self._with_openat2:
            try:
                return _descend(start, _slices(parts), _step_openat2)
            except OSError as error:
                # ENOTDIR may mean a link or a file; the stepwise walk is as safe and finds out
                # which.
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
        return _descend(start, parts, functools.partial(_step_nofollow, _mount_of(start)))

    def entry(self, directory: int, name: bytes, flags: int = ENTRY) -> int:
        """Open an entry of any type, a link itself, but nothing that is mounted over the name.

        `flags` may ask for more than a descriptor of the name; they include O_NOFOLLOW.
        """
        if self._with_openat2:
            return openat2(directory, name, flags, resolve=_RESOLVE)
        fd = os.open(name, flags, dir_fd=directory)
        if _mount_of(fd) != _mount_of(directory):
            os.close(fd)
            raise OSError(errno.EXDEV, "is a mount point")
        return fd


def _descend(start: int, steps: Iterable[bytes], step: Callable[[int, bytes], int]) -> int:
    fd = start
    try:
        for name in steps:
            below = step(fd, name)
            if fd != start:
                os.close(fd)
            fd = below
    except BaseException:
        if fd != start:
            os.close(fd)
        raise
    return fd


def _slices(parts: Sequence[bytes]) -> Iterator[bytes]:
    """Cut a path where it would be too long for one system call; a tree may be deeper than that."""
    start, length = 0, 0
    for index, part in enumerate(parts):
        if index > start and length + len(part) > _PATH_BYTES_MAX:
            yield b"/".join(parts[start:index])
            start, length = index, 0
        length += len(part) + 1
    yield b"/".join(parts[start:])


def _step_openat2(directory: int, path: bytes) -> int:
    return openat2(directory, path, _DIRECTORY, resolve=_RESOLVE)


def _step_nofollow(mount: int, directory: int, name: bytes) -> int:
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
    except NotADirectoryError:
        entry = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISLNK(entry.st_mode):
            raise OSError(errno.ELOOP, "is a symbolic link") from None
        raise
    if _mount_of(fd) != mount:
        os.close(fd)
        raise OSError(errno.EXDEV, "is a mount point")
    return fd


def _mount_of(fd: int) -> int:
    """Give the id of the mount a descriptor lies on; its device where /proc does not tell."""
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        for line in info:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    return os.fstat(fd).st_dev


class Cursor:
    """A place below a root that moves by steps and holds few descriptors, however deep it is.

    Args:
        force: give the owner full rights over each directory.
        kept: so many descriptors of the directories above it are held, so that going back to one
            costs nothing. Only for who reads: one that was moved away meanwhile is not noticed.
    """

    def __init__(
        self,
        opener: Opener,
        root: int,
        base: Sequence[bytes],
        *,
        force: bool = False,
        kept: int = 0,
    ) -> None:
        self._opener, self._root, self._base, self._force = opener, root, list(base), force
        self._trail: list[tuple[bytes, tuple[int, int] | None]] = []
        self._kept, self._above_us = kept, list[int]()
        self.fd: int = opener.directory(root, base)
        try:
            self._unlock(self.fd)
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        self._go(-1)
        while self._above_us:
            os.close(self._above_us.pop())

    def _go(self, fd: int) -> None:
        """Be at another directory. Said before the old one is closed: an interrupt in between must
        not have it closed twice.
        """
        old, self.fd = self.fd, fd
        if old >= 0:
            os.close(old)

    def _unlock(self, fd: int) -> None:
        """Give the owner full rights over a directory to be emptied; /proc reaches mode 000 too."""
        if not self._force:
            return
        mode = os.fstat(fd).st_mode
        if mode & 0o700 != 0o700:
            with contextlib.suppress(PermissionError):
                chmod_entry(fd, mode | 0o700)

    def names(self, limit: int) -> list[bytes]:
        """Give at most `limit` names of the directory, in the kernel's order."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        fd = os.open(".", flags, dir_fd=self.fd)
        try:
            with os.scandir(fd) as entries:
                return [os.fsencode(entry.name) for entry in islice(entries, limit)]
        finally:
            os.close(fd)

    def enter(self, name: bytes) -> None:
        below = self._opener.directory(self.fd, [name])
        if len(self._trail) < self._kept:
            # In this order: an interrupt may lose a descriptor, and must not have it closed twice.
            above, self.fd = self.fd, below
            self._above_us.append(above)
            self._trail.append((name, None))
            return
        try:
            self._unlock(below)
            self._trail.append((name, _identity(self.fd)))
        except BaseException:
            os.close(below)
            raise
        self._go(below)

    def leave(self) -> bytes:
        """Go back to the directory that `enter` came from, and no other; gives the name left."""
        name, identity = self._trail.pop()
        self._go(self._above_us.pop() if identity is None else self._above(identity))
        return name

    def _above(self, identity: tuple[int, int]) -> int:
        # `..` costs the same at any depth. It leads anywhere once the directory was moved, so it
        # counts only if it is the directory we came from; nothing is done with it before that is
        # known.
        with contextlib.suppress(OSError):
            fd = os.open("..", _DIRECTORY, dir_fd=self.fd)
            if _identity(fd) == identity:
                return fd
            os.close(fd)
        fd = self._opener.directory(self._root, self._base + [step[0] for step in self._trail])
        if _identity(fd) == identity:
            return fd
        os.close(fd)
        raise OSError(errno.ESTALE, "moved meanwhile")


def _identity(fd: int) -> tuple[int, int]:
    entry = os.fstat(fd)
    return entry.st_dev, entry.st_ino


def remove_entry(opener: Opener, parent: int, name: bytes) -> None:
    """Remove an entry of whatever type, and all below it."""
    try:
        os.unlink(name, dir_fd=parent)
    except IsADirectoryError:
        cursor = Cursor(opener, parent, [name], force=True)
        try:
            _empty(cursor)
        finally:
            cursor.close()
        os.rmdir(name, dir_fd=parent)


def _empty(cursor: Cursor) -> None:
    """Remove everything below the cursor, in batches, so that a million names cost little."""
    levels: list[tuple[list[bytes], Iterator[int]]] = [([], _rounds())]
    while levels:
        pending, rounds = levels[-1]
        if pending:
            # Gone, or something else by now: the next look at the directory tells.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                try:
                    cursor.enter(pending.pop())
                except OSError as error:
                    if error.errno != errno.ELOOP:
                        raise
                else:
                    levels.append(([], _rounds()))
            continue
        if _clear(cursor, pending):
            next(rounds)
            continue
        levels.pop()
        if levels:
            left = cursor.leave()
            try:
                os.rmdir(left, dir_fd=cursor.fd)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                next(levels[-1][1])
                levels[-1][0].append(left)


def _clear(cursor: Cursor, pending: list[bytes]) -> bool:
    """Unlink a batch of names; directories go into `pending`. False when there is nothing."""
    names = cursor.names(_BATCH)
    for name in names:
        try:
            os.unlink(name, dir_fd=cursor.fd)
        except IsADirectoryError:
            pending.append(name)
        except FileNotFoundError:
            pass
    return bool(names)


def _rounds() -> Iterator[int]:
    """Bound how often one directory is looked at: somebody may fill it as fast as we empty it."""
    yield from range(NAMES_MAX // _BATCH)
    raise OSError(errno.ESTALE, "names keep appearing")
