"""Which directory may be a workspace: the caller's word becomes a real path, or a reason why not.

Reads the host and changes nothing. Knows nothing of how a workspace is stored or mounted. Links are
followed here and nowhere later: the path is the caller's own word, and the result holds no link.
"""

from __future__ import annotations

import errno
import os
import stat

from sandboxsdk.errors import WorkspaceInvalid
from sandboxsdk.model import Workspace
from sandboxsdk.snapshot import excluding

# Kernel interfaces and the like: nobody works on them, and a box must not see the host's.
_SYSTEM = ("/proc", "/sys", "/dev", "/run")
# Below /run lie users' own runtime directories; below the others lies nothing of a user.
_SYSTEM_BELOW = ("/proc/", "/sys/", "/dev/")
_CHOOSE = "choose a directory of your own, such as a project's"
_HOME_HINT = "choose another directory, or set SANDBOXSDK_HOME to a directory outside of this one"


def resolve(workspace: Workspace, *, home: str) -> Workspace:
    """Give the workspace with a real, absolute path.

    Args:
        workspace: as the caller wrote it.
        home: the directory that tasks are stored in.

    Raises:
        WorkspaceInvalid: missing, no directory, not readable, a directory of the system, or one
            that contains the home or lies inside it.
        UsageError: a pattern of `exclude` that cannot be.
    """
    excluding(workspace.exclude)  # Refuses what is no pattern.
    private = workspace.mode == "private"
    if workspace.path is None and not private:
        raise WorkspaceInvalid(path="None", reason="direct needs a directory", hint=_CHOOSE)
    path = None if workspace.path is None else _checked(workspace.path, home)
    kind = workspace.kind if private else "auto"
    return Workspace(mode=workspace.mode, path=path, kind=kind, exclude=workspace.exclude)


def _checked(word: str, home: str) -> str:
    if not word:
        hint = 'write "." for the current directory'
        raise WorkspaceInvalid(path=repr(word), reason="is an empty path", hint=hint)
    try:
        path = os.path.realpath(os.path.expanduser(word))
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise _unusable(word, error) from error
    if not stat.S_ISDIR(found.st_mode):
        hint = "name the directory that it lies in"
        raise WorkspaceInvalid(path=path, reason="is not a directory", hint=hint)
    if path == "/":
        raise WorkspaceInvalid(path=path, reason="is the whole host", hint=_CHOOSE)
    if path in _SYSTEM or path.startswith(_SYSTEM_BELOW):
        raise WorkspaceInvalid(path=path, reason="is a directory of the system", hint=_CHOOSE)
    # By identity and not by text: a bind mount shows the same directory under another name.
    home = os.path.realpath(home)
    lineage = _lineage(home)
    if (found.st_dev, found.st_ino) in lineage.values():
        reason = f"contains the home {home}" if path != home else "is the home itself"
        raise WorkspaceInvalid(path=path, reason=reason, hint=_HOME_HINT)
    if home in lineage and lineage[home] in _lineage(path).values():
        reason = f"lies inside the home {home}"
        raise WorkspaceInvalid(path=path, reason=reason, hint=_HOME_HINT)
    _check_readable(path)
    return path


def _lineage(path: str) -> dict[str, tuple[int, int]]:
    """Give the identities of a path and its ancestors, as far as they exist."""
    found = {}
    while True:
        try:
            status = os.stat(path)
            found[path] = (status.st_dev, status.st_ino)
        except OSError:
            pass
        parent = os.path.dirname(path)
        if parent == path:
            return found
        path = parent


def _check_readable(path: str) -> None:
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # Looking a name up needs the right to search, which opening does not ask for.
            os.stat(".", dir_fd=directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: str, error: OSError | ValueError) -> WorkspaceInvalid:
    if isinstance(error, ValueError):
        return WorkspaceInvalid(path=path, reason="is not a path", hint="it holds a NUL byte")
    if error.errno == errno.ENOENT:
        hint = "create the directory first, or leave the workspace out to begin with an empty one"
        return WorkspaceInvalid(path=path, reason="does not exist", hint=hint)
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "it must be readable and searchable for the user who runs this"
        return WorkspaceInvalid(path=path, reason="is not readable", hint=hint)
    reason = "cannot be used: " + os.strerror(error.errno or errno.EIO)
    return WorkspaceInvalid(path=path, reason=reason, hint=_CHOOSE)
