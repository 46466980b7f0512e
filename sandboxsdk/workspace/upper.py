"""Making the upper of a private view: empty, marked with its stack, looking like what it covers.

An upper appears whole, under its name, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from sandboxsdk import disk
from sandboxsdk.errors import CapabilityError
from sandboxsdk.host import boot_id, owned
from sandboxsdk.ids import new_id
from sandboxsdk.layers import Stack, mark_upper
from sandboxsdk.snapshot import Directory, read_attributes

from .flattening import set_metadata
from .place import carries_no_upper, file_system

UPPER = "upper"
UNFINISHED = "upper-"
_BOOT = "boot"
_READABLE = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_REMEDY = "set SANDBOXSDK_HOME to a directory on ext4, xfs, btrfs or tmpfs"


def make_upper(task: int, stack: Stack, root: Directory) -> str:
    """Make an empty upper in a task's directory, under a name that is swept if it keeps it.

    Args:
        root: what the root of the view is to look like; its nodes do not matter.
    """
    fresh = f"{UNFINISHED}{new_id()}"
    disk.make_directory(fresh, 0o700, dir_fd=task)
    with owned(disk.open_directory(fresh, dir_fd=task)) as upper:
        _probe(upper)
        mark_upper(upper, stack)
        set_metadata(upper, root)
    return fresh


def place_upper(task: int, fresh: str) -> None:
    """Give an upper that was made its name, which is free."""
    disk.rename(fresh, UPPER, old_dir=task, new_dir=task)


@contextlib.contextmanager
def opened_up(upper: str) -> Iterator[None]:
    """Give us all rights to an upper of ours for the block: a guest may have closed it."""
    mode = stat.S_IMODE(os.stat(upper, follow_symlinks=False).st_mode)
    if mode & 0o700 == 0o700:
        yield
        return
    os.chmod(upper, mode | 0o700)
    try:
        yield
    finally:
        os.chmod(upper, mode)


def note_boot(task: int) -> None:
    """Note down under which boot of the kernel the upper is written."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with owned(os.open(_BOOT, flags, 0o600, dir_fd=task)) as record:
        os.write(record, boot_id().encode())


def is_from_another_boot(directory: str) -> bool:
    """Tell whether the upper of the task in `directory` was made under an earlier boot."""
    try:
        with open(f"{directory}/{_BOOT}", "rb") as file:
            return file.read(100) != boot_id().encode()
    except OSError:
        return False


def root_of(directory: int) -> Directory:
    """Describe a directory (an O_PATH descriptor) as the root of a view over it would look."""
    found = os.fstat(directory)
    attributes: tuple[tuple[bytes, bytes], ...] = ()
    with contextlib.suppress(OSError), owned(os.open(".", _READABLE, dir_fd=directory)) as reader:
        attributes = read_attributes(reader, overlay=True).attributes
    mode = stat.S_IMODE(found.st_mode) & 0o1777
    return Directory(mode, found.st_mtime_ns, found.st_uid, found.st_gid, attributes, ())


def _probe(upper: int) -> None:
    """Find out now what the kernel would refuse with a bare EINVAL, or silently not store."""
    kind = file_system(os.fstat(upper).st_dev)
    reason = ""
    if carries_no_upper(kind):
        reason = f"its file system ({kind}) cannot be the upper layer of an overlay"
    else:
        try:
            os.setxattr(upper, "user.sandboxsdk", b"1")
            os.removexattr(upper, "user.sandboxsdk")
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            reason = f"its file system ({kind or 'unknown'}) stores no user attributes"
    if reason:
        raise CapabilityError(
            wanted="a private workspace in this home", reason=reason, hint=_REMEDY
        )
