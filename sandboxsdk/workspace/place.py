"""Directories of the host as a workspace needs them: opened by a path that was real once, pinned by
identity, and told apart by file system.
"""

from __future__ import annotations

import contextlib
import errno
import os

from sandboxsdk import syscalls
from sandboxsdk.errors import WorkspaceInvalid
from sandboxsdk.model import Place

EMPTY = "empty"
# The kernel refuses these as an upper; others are told by the attribute that they cannot store.
_NO_UPPER = frozenset(
    ("overlay", "nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "vfat", "msdos", "exfat")
)


def open_pinned(path: str) -> int:
    """Open a directory by a path that was real once: a link on the way was put there since.

    Raises:
        WorkspaceInvalid: it is gone, or none any more.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        return syscalls.openat2(
            syscalls.AT_FDCWD, os.fsencode(path), flags, resolve=syscalls.RESOLVE_NO_SYMLINKS
        )
    except OSError as error:
        reason = "cannot be used: " + os.strerror(error.errno or errno.EIO)
        if error.errno == errno.ENOENT:
            reason = "does not exist any more"
        elif error.errno in (errno.ENOTDIR, errno.ELOOP):
            reason = "is not a directory any more, or a link leads to it now"
        hint = "put the directory back at this path; what the task holds is kept"
        raise WorkspaceInvalid(path=path, reason=reason, hint=hint) from error


def place_of(path: str, descriptor: int) -> Place:
    """Pin an open directory by its identity."""
    found = os.fstat(descriptor)
    owner = (found.st_uid, found.st_gid)
    return Place(path=path, device=found.st_dev, inode=found.st_ino, owner=owner)


def file_system(device: int) -> str:
    """Give the type of the file system with this device number; "" if the mount table has none."""
    wanted = f"{os.major(device)}:{os.minor(device)}".encode()
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            fields, _, rest = line.partition(b" - ")
            if fields.split(b" ", 3)[2] == wanted:
                return rest.split(b" ", 1)[0].decode("ascii", "replace")
    return ""


def shown(path: str) -> str:
    """Escape what would move a reader's cursor."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in path)


def carries_no_upper(kind: str) -> bool:
    """Say whether a file system of this type cannot hold the upper layer of an overlay."""
    return kind in _NO_UPPER or kind.startswith("fuse")


def open_base(task: int, path: str | None) -> int:
    """Open what a private workspace begins with: a directory, or `empty/` of the task's own.

    Raises:
        WorkspaceInvalid: the directory is gone, or none any more.
    """
    if path is not None:
        return open_pinned(path)
    with contextlib.suppress(FileExistsError):
        os.mkdir(EMPTY, 0o755, dir_fd=task)
    return os.open(EMPTY, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=task)
