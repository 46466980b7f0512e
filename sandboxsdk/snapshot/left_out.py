"""What a walk leaves out, because the rules exclude it."""

from __future__ import annotations

import os
import stat
from typing import final

from .level import Level
from .rules import EXCLUDED_MAX, Rules


@final
class LeftOut:
    """Says of each entry whether it is left out, and notes the paths."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._paths: list[bytes] = []

    def takes(self, level: Level, name: bytes, found: os.stat_result) -> bool:
        """Tell whether an entry is left out; it is noted then."""
        exclude = self._rules.exclude
        if exclude is None:
            return False
        path = level.below(name)
        excluded = exclude(path, stat.S_ISDIR(found.st_mode))
        if self._rules.overlay and is_whiteout(found):
            # It is what it hides: something of the tree, or excluded, be it a file or a directory.
            excluded = name not in level.nodes and (excluded or exclude(path, True))
        if excluded and len(self._paths) <= EXCLUDED_MAX:
            self._paths.append(path)
        return excluded

    def told(self) -> tuple[bytes, ...]:
        """Give the paths, as far as they are told."""
        return tuple(self._paths)


def is_whiteout(found: os.stat_result) -> bool:
    """Tell whether an entry of an overlay's layer stands for a name that is not there."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
