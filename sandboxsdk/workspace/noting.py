"""Which names a user's directory had when a task was made: what tells a file that the user removed
since from one that never was.
"""

from __future__ import annotations

import os

from sandboxsdk import disk
from sandboxsdk.errors import SandboxError
from sandboxsdk.host import owned
from sandboxsdk.model import Workspace
from sandboxsdk.snapshot import Names, excluding, note_names, read_names

from .place import open_pinned

FILE = "names"
# It is done while a task is made, which is to take no time: of a larger directory nothing is noted,
# and a change of its names then counts as a change of every name in the same directory.
_ENTRIES_MAX = 2_000
_BYTES_MAX = 16 * 1024 * 1024


def note_base_names(workspace: Workspace, directory: str) -> None:
    """Note the names in a user's directory down in a task's, if they are not too many."""
    assert workspace.path is not None
    with owned(open_pinned(workspace.path)) as root:
        noted = note_names(root, _ENTRIES_MAX, excluding(workspace.exclude))
    if noted is None:
        return
    with owned(disk.open_directory(directory)) as place:
        disk.replace(FILE, noted, dir_fd=place, durable=False)


def read_noted_names(directory: str) -> Names | None:
    """Give what was noted; None if nothing was, or it is damaged."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(f"{directory}/{FILE}", "rb", opener=lambda path, _: os.open(path, flags)) as file:
            return read_names(file.read(_BYTES_MAX))
    except (OSError, SandboxError):
        return None
