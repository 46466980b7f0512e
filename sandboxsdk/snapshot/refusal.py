"""What a walk says when it cannot go on. (pure)"""

from __future__ import annotations

import errno
import os

from sandboxsdk.errors import Denied, HostRefused, LimitExceeded, SandboxError

_FORBIDDEN = (errno.EACCES, errno.EPERM)


def refused(shown: str, error: OSError) -> SandboxError:
    """Say that the system refused to read something."""
    if error.errno in _FORBIDDEN:
        hint = "make it readable, or exclude it: Workspace.private(..., exclude=[...])"
        return Denied(path=shown, reason="may not be read", hint=hint)
    return HostRefused(what="cannot read", path=shown, reason=os.strerror(error.errno or 5))


def mounted(shown: str) -> SandboxError:
    """Say that another mount covers a name."""
    hint = "exclude it from the workspace, or unmount it"
    reason = "something else is mounted there, and checkpoints do not cross mounts"
    return Denied(path=shown, reason=reason, hint=hint)


def unsteady(shown: str) -> SandboxError:
    """Say that a name is another thing each time."""
    return Denied(path=shown, reason="keeps changing its type while we look")


def too_much(shown: str, error: LimitExceeded) -> SandboxError:
    """Say where the limit was exceeded."""
    return LimitExceeded(path=shown, reason=f"{shown}: {error.fields.get('reason')}")
