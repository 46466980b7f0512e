"""This machine: files below a descriptor, locks, programs, facts.

Owner of the host's awkward corners.

Knows nothing of sandboxes. Invariants: no file operation here follows a symlink that somebody else
may have planted; a lock dies with its holder; nothing is started by forking the caller.
"""

from .database import Database
from .descent import Cursor, Opener, has_openat2, remove_entry
from .entry import chmod_entry, owned, translated
from .lock import FileLock
from .passage import Passage
from .program import (
    Program,
    boot_id,
    command_line,
    environment,
    host_name,
    output_of,
    start_python,
)
from .thread import Worker
from .tree import Tree
from .whole import disk_usage, remove_tree

__all__ = [
    "Cursor",
    "Database",
    "FileLock",
    "Opener",
    "Passage",
    "Program",
    "Tree",
    "Worker",
    "boot_id",
    "chmod_entry",
    "command_line",
    "disk_usage",
    "environment",
    "has_openat2",
    "host_name",
    "output_of",
    "owned",
    "remove_entry",
    "remove_tree",
    "start_python",
    "translated",
]
