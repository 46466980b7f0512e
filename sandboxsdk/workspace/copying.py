"""The content of a user's files for a copy of the directory: shared blocks, or bytes."""

from __future__ import annotations

import errno
import os
import stat
from typing import final

from sandboxsdk import disk
from sandboxsdk.errors import CapabilityError
from sandboxsdk.host import Opener, has_openat2
from sandboxsdk.snapshot import Node

_CONTENT = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# What says that it is the file system that cannot, and not this one file.
_INCAPABLE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.ENOSYS)


@final
class BaseContent:
    """Gives files the content that lies under the same path of a directory, while it is the same.

    Args:
        base: descriptor of the directory; it stays the caller's.
        clone: share blocks with the original, or fail.
    """

    def __init__(self, base: int, *, clone: bool) -> None:
        self._base, self._clone = base, clone
        self._opener = Opener(with_openat2=has_openat2())

    def __call__(self, path: bytes, node: Node, target: int) -> bool:
        """Write the content of a file into an empty one; False if it is not what was captured.

        Raises:
            CapabilityError: blocks are to be shared, and the file system cannot.
        """
        source = self._opened(path)
        if source is None:
            return False
        try:
            return _is_captured(source, node) and (
                self._written(source, node, target) and _is_captured(source, node)
            )
        finally:
            os.close(source)

    def _opened(self, path: bytes) -> int | None:
        *above, name = path.split(b"/")
        try:
            directory = self._opener.directory(self._base, above)
        except OSError:
            return None
        try:
            return os.open(name, _CONTENT, dir_fd=directory)
        except OSError:
            return None
        finally:
            os.close(directory)

    def _written(self, source: int, node: Node, target: int) -> bool:
        try:
            if self._clone:
                disk.clone(target, source)
            else:
                disk.copy(target, source, node.size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            if self._clone and error.errno in _INCAPABLE:
                reason = "its file system and the home's are not one that shares blocks"
                hint = 'use kind="copy", or keep both on one btrfs or xfs'
                raise CapabilityError(wanted="a reflink", reason=reason, hint=hint) from error
            return False
        return True


def _is_captured(source: int, node: Node) -> bool:
    found = os.fstat(source)
    return stat.S_ISREG(found.st_mode) and (found.st_size, found.st_mtime_ns) == (
        node.size,
        node.mtime,
    )
