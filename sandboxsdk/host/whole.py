"""Whole trees of the host, below a directory descriptor: how much they take, and removing them."""

from __future__ import annotations

import os
import stat

from sandboxsdk.errors import SandboxError

from .tree import Tree

# In blocks of 512 bytes, as stat counts them.
_ENTRY_BLOCKS_MIN = 8


def remove_tree(directory: int, name: bytes | str) -> None:
    """Remove the entry `name` of an open directory and all below it; see `Tree.remove_tree`."""
    Tree(directory).remove_tree(os.fsencode(name))


def disk_usage(directory: int) -> int:
    """Give the bytes that an open directory and all below it take on disk, hard links once.

    An entry counts as one block at least: empty files use up a disk too. What cannot be read counts
    as itself alone.
    """
    total = os.fstat(directory).st_blocks
    seen: set[tuple[int, int]] = set()
    for _, entry in Tree(directory).walk(unreadable=_pass_over):
        if entry.st_nlink > 1 and not stat.S_ISDIR(entry.st_mode):
            identity = entry.st_dev, entry.st_ino
            if identity in seen:
                continue
            seen.add(identity)
        total += max(entry.st_blocks, _ENTRY_BLOCKS_MIN)
    return total * 512


def _pass_over(path: bytes, error: SandboxError) -> None:
    """Nothing: what cannot be read is left out."""
