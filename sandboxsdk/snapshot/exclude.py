"""Which paths are left out: patterns as in a .gitignore file, whose meaning pathspec knows."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence

from sandboxsdk.errors import UsageError

from .rules import Exclude

# How pathspec names what of a path lies below the directory that a pattern names.
_BELOW = "ps_d"


def excluding(patterns: Sequence[str]) -> Exclude | None:
    """Give what says of a path, and of whether it is a directory, that it is left out.

    Raises:
        UsageError: a pattern that cannot be.
    """
    if not patterns:
        return None
    # Imported where it is needed: most workspaces leave nothing out.
    from pathspec import GitIgnoreSpec

    try:
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise TypeError("it is no text")  # noqa: TRY301 - told as pathspec's refusals are
        with warnings.catch_warnings():
            # Of what a later Python may read otherwise.
            warnings.simplefilter("ignore", FutureWarning)
            spec = GitIgnoreSpec.from_lines(patterns)
    except (ValueError, TypeError, re.error) as error:
        hint = "write patterns as in a .gitignore file, e.g. node_modules/ or *.log"
        shown = ", ".join(map(str, patterns))
        reason = f"is no pattern: {error}"
        raise UsageError(what="exclude", value=shown, reason=reason, hint=hint) from error

    def excluded(path: bytes, is_directory: bool) -> bool:  # noqa: FBT001
        # In its regular expressions a newline ends the text or matches nothing; a NUL, which no
        # path has, is a character like any other.
        text = os.fsdecode(path).replace("\n", "\0")
        shown, left_out = f"{text}/" if is_directory else text, False
        for pattern in spec.patterns:
            found = pattern.match_file(shown) if pattern.include is not None else None
            # What lies in a directory that a pattern names is no match of its own: if that is left
            # out nobody gets here, and if it is not, that says nothing of what is in it.
            if found is not None and not _is_of_parent(found.match, shown):
                left_out = bool(pattern.include)
        return left_out

    return excluded


def _is_of_parent(match: re.Match[str], path: str) -> bool:
    """Tell whether a pattern matched a directory above a path, and not what it names itself."""
    below = match.groupdict().get(_BELOW)
    return below is not None and (below != "/" or match.end() < len(path))
