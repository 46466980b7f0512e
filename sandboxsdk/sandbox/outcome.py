"""From what a runtime saw to what a caller is told: one decision, as a function. (pure)"""

from __future__ import annotations

from typing import NamedTuple

from sandboxsdk.model import ExecResult, Reason
from sandboxsdk.runtime import Ended, Pressure

_SIGNALS_MAX = 64


class Outcome(NamedTuple):
    """Why a command ended."""

    reason: Reason
    exit_code: int | None
    signal: int | None


def judge(ended: Ended, cause: Reason | None, before: Pressure, after: Pressure) -> Outcome:
    """Decide why a command ended.

    Args:
        cause: why we killed it, if we did.
        before, after: the box's counters around the command; with several commands at once, what
        struck
            one of them is told to all, because nobody counts per command.
    """
    if cause is not None:
        # Also when the box went with it: that is how what still runs ends with its box.
        return Outcome(cause, ended.exit_code, None)
    if ended.lost:
        return Outcome("lost", None, None)
    if after.oom_kills > before.oom_kills:
        # A shell may hide that its child was killed and exit with 0; the counter does not lie.
        return Outcome("oom", ended.exit_code, None)
    if ended.exit_code is None:
        return Outcome("killed", None, None)
    if ended.exit_code != 0 and after.pids_refused > before.pids_refused:
        return Outcome("pids", ended.exit_code, None)
    if 128 < ended.exit_code <= 128 + _SIGNALS_MAX:
        return Outcome("signal", ended.exit_code, ended.exit_code - 128)
    return Outcome("exit", ended.exit_code, None)


def failure_hint(result: ExecResult) -> str | None:
    """Tell what to do about a command that a limit ended; None if none did."""
    limits = {"oom": "memory", "disk": "disk", "pids": "pids", "timeout": "wall_time"}
    name = limits.get(result.reason)
    return None if name is None else f"raise Limits({name}=...), or have it use less"


def start_trouble(ended: Ended, said: str) -> tuple[bool, str]:
    """Tell whether a command did not start by the caller's fault, and what happened.

    Args:
        said: what it printed, to whichever stream.
    """
    text = (ended.trouble or said).strip().removeprefix("bwrap: ")
    theirs = bool(ended.trouble) or text.startswith(("execvp ", "Can't chdir to "))
    return theirs, text.removeprefix("execvp ") or "it ended before it began"
