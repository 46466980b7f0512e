"""One entry of an open directory, by a single name: opened, written, renamed; what errors mean.

Every function takes a directory's descriptor and one name, so no link can lie on the way; none
follows a link in the name itself. Knows no paths and no tree.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator

from sandboxsdk.errors import Denied, FileConflict, FileMissing, HostFull, HostRefused, SandboxError
from sandboxsdk.ids import new_id
from sandboxsdk.syscalls import RENAME_NOREPLACE, renameat2

CHUNK_BYTES = 1 << 20
MODE_BITS = 0o1777
ENTRY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ZEROS = bytes(CHUNK_BYTES)
_CONTENT = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_FRESH = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DENIED = {
    errno.ELOOP: "is a symbolic link or leads through one, and none is followed",
    errno.EXDEV: "leads to another mount",
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
}
_CONFLICT = {
    errno.EEXIST: "exists already",
    errno.ENOTDIR: "is not a directory or leads through something that is none",
    errno.EISDIR: "is a directory",
    errno.ENOTEMPTY: "is a directory that is not empty",
    errno.ENXIO: "is neither a regular file nor a directory",
    errno.ESTALE: "was moved or is being filled by somebody else meanwhile",
}


@contextlib.contextmanager
def owned(descriptor: int) -> Iterator[int]:
    """Close a descriptor at the end of the block."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def translated(error: OSError, what: str, path: str) -> SandboxError:
    """Give our error for one of the host."""
    number = error.errno or 0
    if number in (errno.ENOENT, errno.ENODATA):
        return FileMissing(path=path)
    if number in _DENIED:
        return Denied(path=path, reason=_DENIED[number])
    if number in _CONFLICT:
        return FileConflict(path=path, reason=_CONFLICT[number])
    if number in (errno.ENOSPC, errno.EDQUOT):
        return HostFull(path=path, reason=os.strerror(number))
    return HostRefused(what=what, path=path, reason=os.strerror(number))


def chmod_entry(fd: int, mode: int) -> None:
    """Set the permission bits of what an O_PATH descriptor names."""
    # fchmod refuses O_PATH descriptors; the link in /proc leads to the very inode, not to a name.
    os.chmod(f"/proc/self/fd/{fd}", mode & MODE_BITS)


def open_regular(parent: int, name: bytes) -> int:
    """Open a file for reading; looks first, so that no device is opened, and again afterwards."""
    check_regular(os.stat(name, dir_fd=parent, follow_symlinks=False))
    fd = os.open(name, _CONTENT, dir_fd=parent)
    try:
        check_regular(os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_regular(entry: os.stat_result) -> None:
    """Raise OSError if it is no regular file."""
    if stat.S_ISREG(entry.st_mode):
        return
    number = {stat.S_IFLNK: errno.ELOOP, stat.S_IFDIR: errno.EISDIR}
    raise OSError(number.get(stat.S_IFMT(entry.st_mode), errno.ENXIO), "is no regular file")


@contextlib.contextmanager
def replacing(parent: int, name: bytes) -> Iterator[bytes]:
    """Give a fresh name to make something under; it replaces `name` when the block ends well."""
    fresh = f".{new_id()}.sandboxsdk".encode()
    try:
        yield fresh
        os.rename(fresh, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh, dir_fd=parent)
        raise


def rename_entry(parent: int, name: bytes, into: int, target: bytes, *, replace: bool) -> None:
    """Rename an entry; without `replace` never over another one."""
    if not replace:
        try:
            renameat2(parent, name, into, target, RENAME_NOREPLACE)
        except OSError as error:
            # A file system without the flag says EINVAL; so does a move into itself, twice.
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            with contextlib.suppress(FileNotFoundError):
                os.stat(target, dir_fd=into, follow_symlinks=False)
                raise OSError(errno.EEXIST, "exists") from None
        else:
            return
    os.rename(name, target, src_dir_fd=parent, dst_dir_fd=into)


def _pour(fd: int, data: bytes | Iterable[bytes]) -> None:
    chunks = (data,) if isinstance(data, bytes) else data
    length = 0
    for chunk in chunks:
        length += len(chunk)
        # A hole stays a hole, so that a sparse file of terabytes does not fill the other disk.
        if chunk == _ZEROS:
            os.lseek(fd, length, os.SEEK_SET)
            continue
        view = memoryview(chunk)
        while view:
            view = view[os.write(fd, view) :]
    os.ftruncate(fd, length)


def write_fresh(parent: int, name: bytes, data: bytes | Iterable[bytes], mode: int) -> None:
    """Make a file that was not there, with exactly these permission bits and never a set-id bit."""
    fd = os.open(name, _FRESH, 0o600, dir_fd=parent)
    try:
        _pour(fd, data)
        os.fchmod(fd, mode & MODE_BITS)
    finally:
        os.close(fd)
