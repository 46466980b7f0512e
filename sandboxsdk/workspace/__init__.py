"""The files behind /workspace: a private view by overlay layers, a copy, or a directory itself.

Decides what may be a workspace, keeps a private view's storage inside a task's directory, says how
it is to be mounted (a `View`), and tells what changed. Mounts nothing, starts nothing, and knows
neither tasks, leases nor boxes: whoever calls holds the task.

Invariants: a user's directory is read and never written by a private workspace; no link is followed
once a path was resolved; nothing in an upper or a frozen layer is modified; `diff` costs what
changed, not what exists.
"""

from .choosing import settle
from .direct import CopiedWorkspace, DirectWorkspace
from .fitting import Excluded
from .noting import note_base_names, read_noted_names
from .overlay import Mounted, OverlayWorkspace
from .scan import Scan
from .target import Target
from .validity import resolve
from .workspace import OpenWorkspace, open_workspace

__all__ = [
    "CopiedWorkspace",
    "DirectWorkspace",
    "Excluded",
    "Mounted",
    "OpenWorkspace",
    "OverlayWorkspace",
    "Scan",
    "Target",
    "note_base_names",
    "open_workspace",
    "read_noted_names",
    "resolve",
    "settle",
]
