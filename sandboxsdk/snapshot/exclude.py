"""Which paths are left out: patterns as in a .gitignore file, whose meaning pathspec knows."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence

from sandboxsdk.errors import UsageError

from .rules import Exclude


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
        return spec.match_file(f"{text}/" if is_directory else text)

    return excluded
