"""The one place through which everything that must last is written: store, journal, restore, home.

Each function is one system call (or the loop that finishes it), below a directory descriptor where
it takes names. None follows a symbolic link in the last name, and none looks at what it writes.
Nobody else calls fsync.

`watcher`, when set, is called before each call with its name and arguments, and may raise: this is
how tests fail the n-th write, count syncs, and record what a power cut could leave of a sequence of
calls. Nothing in the library sets it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from .errors import HostFull, HostRefused, SandboxError
from .ids import new_id
from .syscalls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    renameat2,
    sync_file_range,
    syncfs,
)

Watcher = Callable[[str, tuple[Any, ...]], None]
watcher: Watcher | None = None

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FICLONE = 0x40049409
_COPY_BYTES_MAX = 1 << 30
_CHUNK_BYTES = 1 << 20
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Name = bytes | str


def _tell(call: str, *arguments: Any) -> None:
    if watcher is not None:
        watcher(call, arguments)


@contextlib.contextmanager
def translated(what: str, path: str) -> Iterator[None]:
    """Turn the host's errors into ours: `HostFull` where the disk is, else `HostRefused`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, SandboxError):
            raise  # Some of ours are OSErrors too.
        if error.errno in _DISK_FULL:
            raise HostFull(path=path, reason=os.strerror(error.errno)) from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise HostRefused(what=what, path=path, reason=reason) from error


def open_directory(name: Name, *, dir_fd: int | None = None) -> int:
    """Open a directory; a link in its place is refused."""
    return os.open(name, _DIRECTORY, dir_fd=dir_fd)


def create(name: Name, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
    """Make a file that was not there, and open it for reading and writing."""
    _tell("create", name, dir_fd)
    return os.open(name, _NEW, mode, dir_fd=dir_fd)


def write(fd: int, data: bytes | memoryview, offset: int) -> int:
    """Write all of it at an offset; gives the offset behind it."""
    view = memoryview(data)
    while view:
        _tell("write", fd, bytes(view) if watcher is not None else b"", offset)
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
    return offset


def clone(fd: int, source: int) -> None:
    """Let an empty file share the blocks of another one, which stay the other's when it is changed.

    Raises:
        OSError: the file system has no such thing, or the two are on different ones.
    """
    _tell("clone", fd, source)
    fcntl.ioctl(fd, _FICLONE, source)


def copy(fd: int, source: int, size: int) -> None:
    """Copy a file of this size into an empty one; holes stay holes."""
    truncate(fd, size)
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # Nothing but a hole is left.
        end = min(os.lseek(source, offset, os.SEEK_HOLE), size)
        while offset < end:
            done = _copy_some(fd, source, offset, end - offset)
            if not done:
                return  # It became shorter.
            offset += done


def _copy_some(fd: int, source: int, offset: int, length: int) -> int:
    _tell("copy", fd, source, offset)
    try:
        return os.copy_file_range(source, fd, min(length, _COPY_BYTES_MAX), offset, offset)
    except OSError as error:
        # Between file systems of different types the kernel refuses.
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    data = os.pread(source, min(length, _CHUNK_BYTES), offset)
    write(fd, data, offset)
    return len(data)


def truncate(fd: int, length: int) -> None:
    """Cut or extend a file to this length; what is added is a hole."""
    _tell("truncate", fd, length)
    os.ftruncate(fd, length)


def sync_data(fd: int) -> None:
    """Have a file's content and length on disk when this returns.

    Once it has failed, nothing about the file is known: never ask again for the same descriptor.
    """
    _tell("sync_data", fd)
    os.fdatasync(fd)


def sync(fd: int) -> None:
    """Have a file, or the names of a directory, on disk when this returns."""
    _tell("sync", fd)
    os.fsync(fd)


def write_out(fd: int) -> None:
    """Have what is changed in memory written, though not flushed: what somebody then changes
    through a mapping sets the file's times, which a second change of a page in memory does not.

    Only as far as the file system writes anything; in memory alone, times tell nothing.
    """
    with contextlib.suppress(OSError):
        sync_file_range(fd)


def sync_file_system(fd: int) -> None:
    """Have everything on the file system of a descriptor on disk when this returns."""
    _tell("sync_file_system", fd)
    syncfs(fd)


def rename(old: Name, new: Name, *, old_dir: int | None = None, new_dir: int | None = None) -> None:
    """Give an entry another name, in place of what has it."""
    _tell("rename", old, new, old_dir, new_dir)
    os.rename(old, new, src_dir_fd=old_dir, dst_dir_fd=new_dir)


def rename_new(old: bytes, new: bytes, *, old_dir: int, new_dir: int) -> None:
    """Give an entry a name that nothing has.

    Raises:
        FileExistsError: something has it.
    """
    _tell("rename", old, new, old_dir, new_dir)
    renameat2(old_dir, old, new_dir, new, RENAME_NOREPLACE)


def exchange(first: bytes, second: bytes, *, first_dir: int, second_dir: int) -> None:
    """Let two entries change names, in one step."""
    _tell("exchange", first, second, first_dir, second_dir)
    renameat2(first_dir, first, second_dir, second, RENAME_EXCHANGE)


def make_directory(name: Name, mode: int = 0o700, *, dir_fd: int | None = None) -> None:
    """Make a directory (its mode is subject to the umask)."""
    _tell("make_directory", name, dir_fd)
    os.mkdir(name, mode, dir_fd=dir_fd)


def make_link(target: Name, name: Name, *, dir_fd: int | None = None) -> None:
    """Make a symbolic link."""
    _tell("make_link", target, name, dir_fd)
    os.symlink(target, name, dir_fd=dir_fd)


def make_hard_link(old: Name, new: Name, *, old_dir: int, new_dir: int) -> None:
    """Give a file one more name; a link is linked itself, not followed."""
    _tell("make_hard_link", old, new, old_dir, new_dir)
    os.link(old, new, src_dir_fd=old_dir, dst_dir_fd=new_dir, follow_symlinks=False)


def make_fifo(name: Name, mode: int = 0o600, *, dir_fd: int | None = None) -> None:
    """Make a FIFO."""
    _tell("make_fifo", name, dir_fd)
    os.mkfifo(name, mode, dir_fd=dir_fd)


def make_whiteout(name: Name, *, dir_fd: int | None = None) -> None:
    """Make what stands in an overlay's layer for a name that is not there: a device 0:0."""
    _tell("make_whiteout", name, dir_fd)
    os.mknod(name, stat.S_IFCHR, 0, dir_fd=dir_fd)


def remove(name: Name, *, dir_fd: int | None = None) -> None:
    """Remove a name of anything but a directory."""
    _tell("remove", name, dir_fd)
    os.unlink(name, dir_fd=dir_fd)


def remove_directory(name: Name, *, dir_fd: int | None = None) -> None:
    """Remove an empty directory."""
    _tell("remove_directory", name, dir_fd)
    os.rmdir(name, dir_fd=dir_fd)


def _reached(fd: int, *, path_only: bool) -> int | str:
    """What the calls below take: the link in /proc leads to the very inode, not to a name."""
    return f"/proc/self/fd/{fd}" if path_only else fd


def set_mode(fd: int, mode: int, *, path_only: bool = False) -> None:
    """Set permission bits of an open file; set-id bits are dropped.

    `path_only`, here and below: the descriptor was opened with O_PATH, as what may not be read is.
    """
    _tell("set_mode", fd, mode)
    os.chmod(_reached(fd, path_only=path_only), mode & 0o1777)


def set_owner(fd: int, uid: int, gid: int, *, path_only: bool = False) -> None:
    """Set the owner of an open file."""
    _tell("set_owner", fd, uid, gid)
    os.chown(_reached(fd, path_only=path_only), uid, gid)


def set_times(fd: int, mtime_ns: int, *, path_only: bool = False) -> None:
    """Set both times of an open file, in nanoseconds since 1970."""
    _tell("set_times", fd, mtime_ns)
    os.utime(_reached(fd, path_only=path_only), ns=(mtime_ns, mtime_ns))


def set_times_of_entry(name: Name, mtime_ns: int, *, dir_fd: int) -> None:
    """Set both times of an entry, a link itself."""
    _tell("set_times", name, mtime_ns, dir_fd)
    os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=dir_fd, follow_symlinks=False)


def set_attribute(fd: int, name: Name, value: bytes, *, path_only: bool = False) -> None:
    """Set an extended attribute of an open file."""
    _tell("set_attribute", fd, name, value)
    os.setxattr(_reached(fd, path_only=path_only), name, value)


def remove_attribute(fd: int, name: Name, *, path_only: bool = False) -> None:
    """Remove an extended attribute of an open file."""
    _tell("remove_attribute", fd, name)
    os.removexattr(_reached(fd, path_only=path_only), name)


def replace(name: str, data: bytes, *, dir_fd: int, durable: bool) -> None:
    """Have a file with exactly this content under a name: the old one or the new one at any moment.

    With `durable` it is the new one after a power cut too, once this has returned; without, a power
    cut may leave an empty or half-written one, so the content must be able to tell.
    """
    fresh = f"{name}.{new_id()}.new"
    fd = create(fresh, dir_fd=dir_fd)
    try:
        try:
            write(fd, data, 0)
            if durable:
                sync_data(fd)
        finally:
            os.close(fd)
        rename(fresh, name, old_dir=dir_fd, new_dir=dir_fd)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(fresh, dir_fd=dir_fd)
        raise
    if durable:
        sync(dir_fd)
