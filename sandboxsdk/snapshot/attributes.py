"""Extended attributes of an open file or directory: the user's own, and overlay's marks among them.

In a directory that an overlay was written into, `user.overlay.*` is the kernel's; what the guest
calls so is stored with one more `overlay.` in its name.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from sandboxsdk.errors import LimitExceeded

from .tree import ATTRIBUTES_BYTES_MAX, Attributes

_OPAQUE = "user.overlay.opaque"
_WHITEOUT = "user.overlay.whiteout"
_MINE = b"user."
_MARKS = b"user.overlay."
_ESCAPED = b"user.overlay.overlay."
_NONE = (errno.ENODATA, errno.ENOTSUP, errno.EACCES, errno.EPERM)


class Marked(NamedTuple):
    """The user's attributes in the order of their names, and what overlay noted beside them.

    Attributes:
        opaque: of a directory: `y` hides what lies below it, `x` says that there are files in it
            that stand for names that are not there.
        whiteout: a file stands for a name that is not there, if its directory says so too.
    """

    attributes: Attributes = ()
    opaque: bytes = b""
    whiteout: bool = False


_UNMARKED = Marked()


def read_attributes(fd: int, *, overlay: bool) -> Marked:
    """Give the `user.*` attributes; the kernel keeps others from us.

    Args:
        fd: of an open file or directory.
        overlay: whether `user.overlay.*` are marks.

    Raises:
        LimitExceeded: they are larger than a tree takes.
    """
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno in _NONE:
            return _UNMARKED
        raise
    if not names:
        return _UNMARKED
    found = []
    total = 0
    for name in names:
        raw = shown = os.fsencode(name)
        if not raw.startswith(_MINE):
            continue
        if overlay and raw.startswith(_MARKS):
            if not raw.startswith(_ESCAPED):
                continue
            shown = _MARKS + raw[len(_ESCAPED) :]
        value = _value(fd, name)
        if value is None:
            continue
        total += len(shown) + len(value)
        if total > ATTRIBUTES_BYTES_MAX:
            reason = f"a file has more than {ATTRIBUTES_BYTES_MAX:,} bytes of attributes"
            raise LimitExceeded(reason=reason)
        found.append((shown, value))
    if not overlay:
        return Marked(tuple(sorted(found)))
    opaque = (_value(fd, _OPAQUE) if _OPAQUE in names else None) or b""
    return Marked(tuple(sorted(found)), opaque, _WHITEOUT in names)


def _value(fd: int, name: str) -> bytes | None:
    """Give the value of one attribute; None if it is not there (any more)."""
    try:
        return os.getxattr(fd, name)
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise
