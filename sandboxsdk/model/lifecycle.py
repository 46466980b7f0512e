"""What a task can become: the transitions as data. (pure)"""

from __future__ import annotations

from .records import Status

_OPEN: tuple[Status, ...] = ("pending", "active", "paused")

# From which states an entry of the journal leads where. Entries of other kinds, and these in other
# states, change nothing.
TRANSITIONS: dict[str, tuple[tuple[Status, ...], Status]] = {
    "attached": (("pending",), "active"),
    "completed": (_OPEN, "completed"),
    "failed": (_OPEN, "failed"),
    "cancelled": (_OPEN, "cancelled"),
}


def may_become(status: Status, kind: str) -> bool:
    """Say whether an entry of this kind changes the state."""
    return status in TRANSITIONS[kind][0]


def status_after(status: Status, kind: str) -> Status:
    """Give the state after an entry."""
    sources, target = TRANSITIONS.get(kind, ((), status))
    return target if status in sources else status
