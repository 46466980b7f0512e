"""Runs processes in isolation: the `Runtime` port and the runtimes that implement it.

Knows namespaces, programs, limits and descriptors; must not know tasks, checkpoints or what a layer
is: it is told a `View` and mounts it.

Invariants: what is asked is enforced, or refused with CapabilityError, or reported as not enforced,
and never silently less; a command is over only when all that it started is dead; a box that is
closed, lost, or whose owner died leaves no process, no mount and no cgroup.
"""

from .arguments import HOME, WORKSPACE
from .bubblewrap import Bubblewrap
from .plain import Plain
from .runtime import BoxPlan, Command, Ended, Instance, Pressure, Running, Runtime
from .watch import Watch

__all__ = [
    "HOME",
    "WORKSPACE",
    "BoxPlan",
    "Bubblewrap",
    "Command",
    "Ended",
    "Instance",
    "Plain",
    "Pressure",
    "Running",
    "Runtime",
    "Watch",
]
