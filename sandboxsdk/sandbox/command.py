"""What people type as a command, turned into what a runtime starts. (pure)"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Literal

from sandboxsdk.errors import UsageError
from sandboxsdk.model import check_env
from sandboxsdk.runtime import WORKSPACE, Command

Typed = str | Sequence[str | bytes | os.PathLike[str]]
_SINGLE_ARGUMENT_BYTES_MAX = 128 * 1024 - 1


def resolve_command(
    typed: Typed,
    *,
    cwd: str | os.PathLike[str] | None,
    env: Mapping[str, str],
    call_env: Mapping[str, str] | None,
    user: str | int | None,
    terminal: bool = False,
) -> Command:
    """Check a command as typed: a str goes to /bin/sh -c, a list is run as it is.

    Raises:
        UsageError: nothing to run, a NUL, an argument beyond the kernel's 128 KiB, an unknown user.
    """
    if isinstance(typed, str):
        argv: tuple[str, ...] = ("/bin/sh", "-c", typed)
    elif isinstance(typed, bytes) or not isinstance(typed, Sequence):
        raise UsageError(what="command", value=typed, reason="must be a str or a list of str")
    else:
        argv = tuple(_argument(part) for part in typed)
    if not argv or not argv[0]:
        raise UsageError(what="command", value=typed, reason="names no program")
    for part in argv:
        if "\0" in part:
            raise UsageError(what="command", value=part, reason="must not hold a NUL character")
        if len(part) > _SINGLE_ARGUMENT_BYTES_MAX // 4 and (
            len(os.fsencode(part)) > _SINGLE_ARGUMENT_BYTES_MAX
        ):
            raise UsageError(
                what="command",
                value=f"{part[:40]}...",
                reason="has an argument above 128 KiB, which the kernel refuses",
                hint="write it to a file with box.files.write, or pass it as input=",
            )
    return Command(
        argv=argv,
        cwd=_cwd(cwd),
        env={**env, **check_env(call_env)},
        user=_user(user),
        terminal=terminal,
    )


def shown(typed: Typed) -> str:
    """Give a command for error messages, shortened."""
    text = typed if isinstance(typed, str) else " ".join(map(_argument, typed))
    return text if len(text) <= 200 else f"{text[:200]}..."


def input_bytes(given: str | bytes, *, what: str = "input") -> bytes:
    """Give what a command shall read, text as UTF-8.

    Raises:
        UsageError: it is neither text nor bytes.
    """
    if isinstance(given, str):
        return given.encode("utf-8", "surrogateescape")
    if not isinstance(given, bytes | bytearray | memoryview):
        raise UsageError(what=what, value=given, reason="must be str or bytes")
    return bytes(given)


def check_max_output(limit: int) -> None:
    """Refuse what cannot be a number of bytes to keep.

    Raises:
        UsageError: it is none.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise UsageError(what="max_output", value=limit, reason="must be bytes, 0 or more")


def time_limit(timeout: float | None, wall_time: float | None) -> float | None:
    """Give the seconds that a command may take: what the call says or the box, whichever is less.

    Raises:
        UsageError: the call's is no number above 0.
    """
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0
    ):
        raise UsageError(what="timeout", value=timeout, reason="must be seconds above 0, or None")
    given = [seconds for seconds in (timeout, wall_time) if seconds is not None]
    return min(given) if given else None


def _argument(part: object) -> str:
    try:
        text = os.fsdecode(part)  # type: ignore[arg-type]
        # A lone surrogate that stands for no byte cannot be an argument.
        os.fsencode(text)
    except UnicodeEncodeError:
        reason = "holds a surrogate that stands for no byte"
        raise UsageError(what="command", value=part, reason=reason) from None
    except TypeError:
        reason = "must be str, bytes or a path in every part"
        raise UsageError(what="command", value=part, reason=reason) from None
    return text


def _cwd(cwd: str | os.PathLike[str] | None) -> str:
    if cwd is None:
        return WORKSPACE
    text = os.fsdecode(cwd)
    path = posixpath.normpath(posixpath.join(WORKSPACE, text))
    if not text or "\0" in text or path == "/proc" or path.startswith("/proc/"):
        # A path through /proc/self/fd may name a directory that was never meant to be reached.
        raise UsageError(what="cwd", value=text, reason="is not a directory of the box")
    return path


def _user(user: str | int | None) -> Literal["sandbox", "root"]:
    if user in (None, "sandbox", 1000, "1000"):
        return "sandbox"
    if user in ("root", 0, "0") and user is not False:
        return "root"
    raise UsageError(
        what="user", value=user, reason="is not known in the box", hint='use "sandbox" or "root"'
    )
