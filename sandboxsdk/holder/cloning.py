"""Directories of the host as a box gets them: cloned mounts, pinned by identity, and id-mapped in
boxes of root.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from sandboxsdk import syscalls as sc

_IDS = 0xFFFFFFFF


def clone(path: str, identity: Sequence[int], *, userns: int, write: bool = True) -> int:
    """Give a detached clone of what is mounted below a path.

    Args:
        identity: device and inode that the path must lead to.
        userns: descriptor of the user namespace that ids are mapped by; -1 leaves them alone.
    """
    directory = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        found = os.fstat(directory)
        if [found.st_dev, found.st_ino] != list(identity):
            raise OSError(116, "it was replaced while the box was being built", path)
        made = sc.open_tree(directory, "", sc.OPEN_TREE_CLONE | sc.AT_RECURSIVE | sc.AT_EMPTY_PATH)
    finally:
        os.close(directory)
    attributes = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV
    if not write:
        attributes |= sc.MOUNT_ATTR_RDONLY
    sc.mount_setattr(made, attributes=attributes, recursive=True)
    if userns >= 0:
        # Not recursive: a file system below that cannot be id-mapped stays as it is.
        sc.mount_setattr(made, attributes=sc.MOUNT_ATTR_IDMAP, userns=userns)
    return made


def swap_map(one: int, other: int) -> str:
    """Give the text of an id map that swaps two ids and keeps every other. (pure)

    A bijection over all ids: a map of one id makes files of other owners unreadable (EOVERFLOW) and
    an overlay's upper directory read-only.
    """
    low, high = sorted((one, other))
    if low == high:
        return f"0 0 {_IDS}\n"
    lines = [(0, 0, low), (low, high, 1), (low + 1, low + 1, high - low - 1), (high, low, 1)]
    lines.append((high + 1, high + 1, _IDS - high - 1))
    return "".join(f"{a} {b} {count}\n" for a, b, count in lines if count)


def make_idmap(dropped: int, owner: tuple[int, int]) -> int:
    """Give a descriptor of a user namespace that makes the box the owner of what `owner` (uid, gid)
    owns.
    """
    ready, says = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            sc.unshare(sc.CLONE_NEWUSER)
            os.write(says, b"1")
            signal.pause()
        finally:
            os._exit(0)
    try:
        os.close(says)
        if not os.read(ready, 1):
            raise OSError(1, "a user namespace for the id map could not be made")
        for name, owned in (("uid_map", owner[0]), ("gid_map", owner[1])):
            with open(f"/proc/{child}/{name}", "w", encoding="ascii") as file:
                file.write(swap_map(owned, dropped))
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
