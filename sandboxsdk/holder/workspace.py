"""The overlay behind a box's workspace: mounted, taken off, mounted anew with other layers.

All directories are reached below clones that were made before the host's mounts were let go of, so
no path of the host is looked up any more. Names come from the caller, who made what they name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from sandboxsdk import syscalls as sc

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Overlay:
    """The overlay of one box.

    Args:
        base: clone of the directory at the bottom.
        task: clone of the directory that upper and work directories lie in.
        layers: clone of the directory that frozen layers lie in; -1 if there is none.
    """

    def __init__(self, *, base: int, task: int, layers: int) -> None:
        self._base, self._task, self._layers = base, task, layers

    def mount(self, view: dict[str, Any], target: str) -> None:
        """Mount what `view` names (`stack`, `upper`, `work`) on a directory."""
        opened: list[int] = []
        try:
            names = [(self._layers, name) for name in view["stack"]]
            names += [(self._task, view[name]) for name in ("upper", "work")]
            for place, name in names:
                # One by one: what was opened before a failure is closed.
                opened += [os.open(name, _DIRECTORY, dir_fd=place)]
            *stack, upper, work = opened
            made = _overlay([*stack, self._base], upper, work)
            try:
                sc.move_mount(made, target)
            finally:
                os.close(made)
        finally:
            for descriptor in opened:
                os.close(descriptor)


def _overlay(lowers: Sequence[int], upper: int, work: int) -> int:
    # redirect_dir, index and metacopy stay off: each would make a frozen layer depend on its base.
    options = [("userxattr", None), ("volatile", None), ("xino", "off")]
    return sc.overlay_mount(lowers=lowers, upper=upper, work=work, options=options)
