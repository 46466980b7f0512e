"""The registry: what is asked of all tasks of a home, answered without reading all their journals.

A cache in one SQLite file. Knows task records and where journals lie; must not know what a journal
says: whoever asks hands in how one is read.

Invariants: a task is in it exactly as its journal was when it was last looked at, and each question
looks whether that is still so; losing the file, or any byte of it, costs time and nothing else.
"""

from .registry import FILE, Registry

__all__ = ["FILE", "Registry"]
