"""Frozen layers, and which of them a task's files lie on.

Knows directories, digests of trees and nothing of what is in them: whoever freezes a layer says
what it shows. Mounts nothing, captures nothing, and knows neither tasks nor stores.

Invariants: a layer is not written once it has its files; no layer is needed, because everything
that one shows is in the store; a layer that a task lies on is not removed.
"""

from .layers import FILES, GONE, LAYERS_MAX, About, Layers, are_to_be_lost
from .stack import (
    FILE,
    NOTHING,
    Stack,
    Torn,
    belongs,
    forget_stack,
    mark_upper,
    read_stack,
    unmark_upper,
    write_stack,
)

__all__ = [
    "FILE",
    "FILES",
    "GONE",
    "LAYERS_MAX",
    "NOTHING",
    "About",
    "Layers",
    "Stack",
    "Torn",
    "are_to_be_lost",
    "belongs",
    "forget_stack",
    "mark_upper",
    "read_stack",
    "unmark_upper",
    "write_stack",
]
