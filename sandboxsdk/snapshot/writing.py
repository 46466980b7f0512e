"""Single entries written below an open directory: each is new, and is there whole or not at all.

Every function takes a directory's descriptor and one name, knows no tree and keeps nothing between
calls, so that several threads may use it. Speaks OSError; the caller knows the path.

Invariants:
- A file is written under a fresh name and renamed when its content is complete and its metadata
  set; with `direct` the directory is private to the caller, and the name itself must be free.
- What is there is never opened for writing, and a file of several names is never changed: it may
  have a name elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

from sandboxsdk import disk
from sandboxsdk.host import Opener
from sandboxsdk.ids import is_id, new_id

from .tree import Attributes, Directory, Node

_SUFFIX = b".sandboxsdk"

Owner = tuple[int, int] | None
Supply = Callable[[bytes, Node, int], bool]
"""Writes the content of a file, of which it is told the path, what it is, and the descriptor; False
if it cannot.
"""


def is_leftover(name: bytes) -> bool:
    """Tell whether a name is one of the fresh names that a killed restore leaves behind."""
    return (
        name.startswith(b".")
        and name.endswith(_SUFFIX)
        and is_id(name[1 : -len(_SUFFIX)].decode("ascii", "replace"))
    )


@contextlib.contextmanager
def _replacing(directory: int, name: bytes, *, direct: bool) -> Iterator[bytes]:
    """Give the name to make something under; it has its own when the block ends well."""
    fresh = name if direct else b"." + new_id().encode() + _SUFFIX
    try:
        yield fresh
        if not direct:
            disk.rename(fresh, name, old_dir=directory, new_dir=directory)
    except FileExistsError:
        # Not ours, whatever it is.
        raise
    except BaseException:
        with contextlib.suppress(OSError):
            disk.remove(fresh, dir_fd=directory)
        raise


def write_file(
    directory: int,
    name: bytes,
    node: Node,
    fill: Callable[[int], object],
    *,
    owner: Owner,
    direct: bool,
) -> None:
    """Write a regular file; `fill` is given its descriptor.

    Raises:
        IsADirectoryError: a directory has the name.
    """
    with _replacing(directory, name, direct=direct) as fresh:
        fd = disk.create(fresh, dir_fd=directory)
        try:
            fill(fd)
            for key, value in node.attributes:
                disk.set_attribute(fd, key, value)
            if owner is not None:
                disk.set_owner(fd, *owner)
            disk.set_mode(fd, node.mode & 0o777)
            disk.set_times(fd, node.mtime)
        finally:
            os.close(fd)


def write_supplied(
    directory: int, path: bytes, node: Node, supply: Supply, *, owner: Owner, direct: bool
) -> bool:
    """Write a regular file whose content comes from elsewhere; False, and no file, if it does not.

    Raises:
        IsADirectoryError: a directory has the name.
    """

    def fill(fd: int) -> None:
        if not supply(path, node, fd):
            raise _NotSupplied

    try:
        write_file(directory, node.name, node, fill, owner=owner, direct=direct)
    except _NotSupplied:
        return False
    return True


class _NotSupplied(Exception):
    pass


def write_link(
    directory: int, name: bytes, node: Node, opener: Opener, *, owner: Owner, direct: bool
) -> None:
    """Make a symbolic link.

    Raises:
        IsADirectoryError: a directory has the name.
    """
    with _replacing(directory, name, direct=direct) as fresh:
        disk.make_link(node.content, fresh, dir_fd=directory)
        with _opened(opener, directory, fresh, stat.S_IFLNK) as fd:
            if owner is not None:
                disk.set_owner(fd, *owner, path_only=True)
            disk.set_times(fd, node.mtime, path_only=True)


def write_fifo(
    directory: int, name: bytes, node: Node, opener: Opener, *, owner: Owner, direct: bool
) -> None:
    """Make a FIFO; it is never opened.

    Raises:
        IsADirectoryError: a directory has the name.
    """
    with _replacing(directory, name, direct=direct) as fresh:
        disk.make_fifo(fresh, dir_fd=directory)
        with _opened(opener, directory, fresh, stat.S_IFIFO) as fd:
            if owner is not None:
                disk.set_owner(fd, *owner, path_only=True)
            disk.set_mode(fd, node.mode & 0o777, path_only=True)
            disk.set_times(fd, node.mtime, path_only=True)


def write_hard_link(
    directory: int, name: bytes, file_directory: int, file_name: bytes, *, direct: bool
) -> None:
    """Give a file one more name.

    Raises:
        IsADirectoryError: a directory has the name.
    """
    with _replacing(directory, name, direct=direct) as fresh:
        disk.make_hard_link(file_name, fresh, old_dir=file_directory, new_dir=directory)
    if not direct:
        # rename does nothing when both are names of one file already.
        with contextlib.suppress(FileNotFoundError):
            disk.remove(fresh, dir_fd=directory)


@contextlib.contextmanager
def _opened(opener: Opener, directory: int, name: bytes, kind: int) -> Iterator[int]:
    """Open what was just made, without any rights over it; ESTALE if it is something else."""
    fd = opener.entry(directory, name)
    try:
        entry = os.fstat(fd)
        if stat.S_IFMT(entry.st_mode) != kind or entry.st_nlink != 1:
            raise OSError(errno.ESTALE, "was replaced meanwhile")
        yield fd
    finally:
        os.close(fd)


def touch_file(directory: int, old: Node, new: Node, opener: Opener, *, owner: Owner) -> bool:
    """Set the metadata of a file that has its content already.

    False if it cannot be done there: it is not the regular file that `old` says, or has more names.
    """
    try:
        fd = opener.entry(directory, new.name)
    except FileNotFoundError:
        return False
    try:
        entry = os.fstat(fd)
        if not stat.S_ISREG(entry.st_mode) or entry.st_nlink != 1:
            return False
        if (entry.st_size, entry.st_mtime_ns) != (old.size, old.mtime):
            return False
        if old.attributes != new.attributes:
            if entry.st_mode & 0o200 == 0:
                # Only who may write a file may set its attributes.
                disk.set_mode(fd, entry.st_mode | 0o200, path_only=True)
            _set_attributes(fd, new.attributes)
        if owner is not None:
            disk.set_owner(fd, *owner, path_only=True)
        disk.set_mode(fd, new.mode & 0o777, path_only=True)
        disk.set_times(fd, new.mtime, path_only=True)
    finally:
        os.close(fd)
    return True


def finish_directory(fd: int, wanted: Directory, *, owner: Owner, attributes: bool) -> None:
    """Set a directory's own metadata, which is done last: its time changes with every entry."""
    if attributes:
        _set_attributes(fd, wanted.attributes)
    if owner is not None:
        disk.set_owner(fd, *owner, path_only=True)
    disk.set_mode(fd, wanted.mode & 0o1777, path_only=True)
    disk.set_times(fd, wanted.mtime, path_only=True)


def _set_attributes(fd: int, wanted: Attributes) -> None:
    names = {name for name, _ in wanted}
    for found in os.listxattr(f"/proc/self/fd/{fd}"):
        name = os.fsencode(found)
        if name.startswith(b"user.") and name not in names:
            disk.remove_attribute(fd, name, path_only=True)
    for name, value in wanted:
        disk.set_attribute(fd, name, value, path_only=True)


def remove_if_empty(parent: int, name: bytes) -> None:
    """Remove a directory, unless it holds something or is none."""
    try:
        disk.remove_directory(name, dir_fd=parent)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
