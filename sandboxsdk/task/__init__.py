"""Tasks: what lasts, who holds it, and what happened to it.

Knows the journal, the lease and the workspace; must not know commands, boxes or runtimes.

Invariants: a task exists exactly when its directory has a journal that begins with its creation;
only the holder of the lease writes; the lease dies with its holder; deleting is one rename.
"""

from .forking import check_forks
from .running import claim, let_go, note_ended, note_running, running_on, still
from .session import Session
from .task import Task, make

__all__ = [
    "Session",
    "Task",
    "check_forks",
    "claim",
    "let_go",
    "make",
    "note_ended",
    "note_running",
    "running_on",
    "still",
]
