"""What the upper of a task lies over: a tree, and the frozen layers that show it.

The stack is written before the upper is exchanged, and each upper is marked with the stack that it
was made for. An upper that is about to be frozen, laid over what it becomes, shows the same; so a
crash between the two does no harm.
"""

from __future__ import annotations

import contextlib
import errno
import os

import msgspec

from sandboxsdk import disk
from sandboxsdk.codec import seal, unseal
from sandboxsdk.errors import Corrupt
from sandboxsdk.host import owned

FILE = "stack"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MARK = "user.overlay.sandboxsdk"
_VERSION = 1
_BYTES_MAX = 1 << 20


class Stack(msgspec.Struct, array_like=True, frozen=True):
    """What lies below an upper.

    Attributes:
        id: what its upper is marked with; empty where none was ever written.
        previous: the id of the stack before, whose upper may still be there.
        bottom: digest of what lies at the bottom; empty is what the task began with.
        tree: digest of what the layers show over it; empty is the bottom itself.
        files, size: regular files in that tree, and bytes of their contents.
        layers: their names, top first.
        disk_bytes: what they take on disk.
    """

    version: int = _VERSION
    id: str = ""
    previous: str = ""
    bottom: bytes = b""
    tree: bytes = b""
    files: int = 0
    size: int = 0
    layers: tuple[str, ...] = ()
    disk_bytes: int = 0


NOTHING = Stack()


class Torn(Exception):
    """What an upper lies over is not known any more: a power cut lost it."""


def read_stack(task: int) -> Stack:
    """Read the stack of the task in an open directory.

    Raises:
        Torn: it is damaged.
    """
    try:
        with owned(os.open(FILE, _READ, dir_fd=task)) as file:
            data = os.pread(file, _BYTES_MAX, 0)
    except FileNotFoundError:
        return NOTHING
    except OSError as error:
        raise Torn from error
    try:
        stack = unseal(data, Stack, path=FILE)
    except Corrupt as error:
        raise Torn from error
    if stack.version != _VERSION:
        raise Torn
    return stack


def write_stack(task: int, stack: Stack) -> None:
    """Have the upper of a task lie over this from now on."""
    disk.replace(FILE, seal(stack), dir_fd=task, durable=False)


def forget_stack(task: int) -> None:
    """Have the upper lie over the base itself."""
    with contextlib.suppress(FileNotFoundError):
        disk.remove(FILE, dir_fd=task)


def mark_upper(upper: int, stack: Stack) -> None:
    """Note down in an upper which stack it was made for.

    Overlay keeps attributes of this name from the guest, and captures pass them over.
    """
    if stack.id:
        disk.set_attribute(upper, _MARK, stack.id.encode())


def unmark_upper(upper: int | str) -> None:
    """Take the mark away."""
    try:
        os.removexattr(upper, _MARK)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise


def belongs(upper: int | str, stack: Stack) -> bool:
    """Tell whether an upper was made for this stack, or frozen into its top layer."""
    try:
        marked = os.getxattr(upper, _MARK).decode("ascii", "replace")
    except OSError as error:
        # The guest may have closed it to its owner; then nobody can tell, and it is believed.
        if error.errno in (errno.EACCES, errno.EPERM):
            return True
        marked = ""
    return marked in (stack.id, stack.previous)
