"""Checkpoints of a task: taking them, finding them, comparing them, going back to them; and what is
made of them: patches, files to move a task with, changes applied to a directory.

Knows the journal's entries about checkpoints, the store and the workspace; must not know leases,
boxes or commands: whoever calls what changes something holds the task.

Invariants: a checkpoint exists exactly when its record is in the task's journal, and is written
there only after all that it needs is on disk; a restore is in the journal before the first file is
touched, until the last one is; what a restore replaces is kept as a checkpoint unless asked not to.
The same holds for an application, which writes nothing where its user changed what the task did.
"""

from .applying import Asked, apply, undo
from .bundle import read_bundle, write_bundle
from .checkpoint import Checkpoint
from .history import History
from .restoring import Place

__all__ = [
    "Asked",
    "Checkpoint",
    "History",
    "Place",
    "apply",
    "read_bundle",
    "undo",
    "write_bundle",
]
