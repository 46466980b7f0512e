"""This machine: files below a descriptor, locks, programs, facts.

Owner of the host's awkward corners.

Knows nothing of sandboxes. Invariants: no file operation here follows a symlink that somebody else
may have planted; a lock dies with its holder; nothing is started by forking the caller.
"""

from .lock import FileLock
from .program import (
    Program,
    boot_id,
    command_line,
    environment,
    host_name,
    output_of,
    start_python,
)
from .tree import Tree
from .whole import disk_usage, remove_tree

__all__ = [
    "FileLock",
    "Program",
    "Tree",
    "boot_id",
    "command_line",
    "disk_usage",
    "environment",
    "host_name",
    "output_of",
    "remove_tree",
    "start_python",
]
