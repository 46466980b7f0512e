"""What happened, in order: one append-only journal per task, the truth that everything else is
rebuilt from.

Knows lines and their chain; must not know what a kind of entry means or what a task is.

Invariants: a finished line never changes; every line names the digest of the one before; an append
that returned is in the file; a torn last line is as if it had never been written.
"""

from .journal import FILE, Entry, Journal

__all__ = ["FILE", "Entry", "Journal"]
