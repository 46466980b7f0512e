"""Mounts as typed, turned into mounts as made: found, checked against what must never be shown,
pinned.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence

import msgspec

from sandboxsdk import syscalls
from sandboxsdk.errors import Denied, HostRefused, UsageError
from sandboxsdk.model import Mount, Place

# Directories that stand for the host itself. Below the first group single files may be shown, below
# the second nothing: sockets of daemons, processes and devices are ways out.
_NEVER_WHOLE = ("/", "/etc", "/usr", "/var", "/boot", "/home", "/root")
_NEVER_BELOW = ("/proc", "/sys", "/dev", "/run", "/var/run")
# Places that belong to the box: these themselves, and below the second group everything.
_TARGETS_TAKEN = ("/", "/etc", "/sys", "/tmp", "/run", "/home", "/home/sandbox")  # noqa: S108
_TARGETS_TAKEN_BELOW = ("/workspace", "/proc", "/dev", "/usr", "/bin", "/sbin", "/lib", "/lib64")


class ReadyMount(msgspec.Struct, frozen=True, kw_only=True):
    """A mount whose source exists, may be shown, and is pinned by its identity."""

    source: Place
    target: str
    write: bool
    directory: bool


def resolve_mounts(
    mounts: Iterable[Mount], *, forbidden: Sequence[str], caches: str
) -> list[ReadyMount]:
    """Find and check each mount; a cache directory is made when it is new.

    Raises:
        UsageError: the source does not exist, or the target is taken by the box itself.
        Denied: the source is, holds or lies in something that no box may see.
    """
    ready: list[ReadyMount] = []
    for mount in mounts:
        if mount.kind == "cache":
            source = os.path.join(caches, os.path.basename(mount.source))
            _make_cache(source)
            target = mount.target or source
            _check_target(target)
            ready.append(_pin(source, target, write=True))
        elif mount.kind == "toolchain":
            ready += _toolchain(mount, forbidden)
        else:
            real = os.path.realpath(os.path.expanduser(mount.source))
            _check_source(mount, real, forbidden)
            target = mount.target or real
            _check_target(target)
            ready.append(_pin(real, target, write=mount.write))
    return ready


def toolchain_paths(mounts: Iterable[Mount]) -> list[str]:
    """Give the directories that toolchains put first on PATH."""
    return [f"{mount.source}/bin" for mount in mounts if mount.kind == "toolchain"]


def _toolchain(mount: Mount, forbidden: Sequence[str]) -> list[ReadyMount]:
    """Give an environment and the interpreter it was made from; /usr is in the box already."""
    ready: list[ReadyMount] = []
    for path in dict.fromkeys((mount.source, *mount.also)):
        real = os.path.realpath(path)
        inside = any(real == m.source.path or real.startswith(f"{m.source.path}/") for m in ready)
        if real != "/usr" and not real.startswith("/usr/") and not inside:
            _check_source(mount, real, forbidden)
            ready.append(_pin(real, path, write=False))
    return ready


def _make_cache(path: str) -> None:
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise HostRefused(what="make", path=path, reason=error.strerror) from error


def _check_target(target: str) -> None:
    path = os.path.normpath(target)
    below = any(path == top or path.startswith(f"{top}/") for top in _TARGETS_TAKEN_BELOW)
    if below or path in _TARGETS_TAKEN:
        hint = "choose another target, such as /mnt/data"
        raise UsageError(what="Mount.target", value=target, reason="belongs to the box", hint=hint)


def place_of(path: str) -> Place:
    """Pin an existing directory of our own by its identity."""
    return _place(path, os.stat(path))


def check_image(directory: str, forbidden: Sequence[str]) -> str:
    """Give the real path of an image's root directory.

    Raises:
        UsageError: there is no such directory.
        Denied: it is, holds or lies in something that no box may see.
    """
    real = os.path.realpath(os.path.expanduser(directory))
    if not os.path.isdir(real):
        hint = "name a directory that holds a root file system"
        raise UsageError(
            what="Image.from_rootfs", value=directory, reason="is no directory", hint=hint
        )
    _check_source(Mount(directory), real, forbidden)
    return real


def _stat_without_links(path: str) -> os.stat_result:
    """Look at what a resolved path names; a link that was put into it since is refused."""
    try:
        resolve = syscalls.RESOLVE_NO_SYMLINKS
        descriptor = syscalls.openat2(
            syscalls.AT_FDCWD, os.fsencode(path), os.O_PATH, resolve=resolve
        )
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return os.stat(path)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _place(path: str, found: os.stat_result) -> Place:
    return Place(path, found.st_dev, found.st_ino, (found.st_uid, found.st_gid))


def _pin(path: str, target: str, *, write: bool) -> ReadyMount:
    try:
        found = _stat_without_links(path)
    except OSError as error:
        hint = "a mount's source must exist before the box starts"
        raise UsageError(
            what="Mount.source", value=path, reason=error.strerror, hint=hint
        ) from error
    if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
        raise Denied(path=path, reason="only files and directories can be mounted")
    return ReadyMount(
        source=_place(path, found),
        target=target,
        write=write,
        directory=stat.S_ISDIR(found.st_mode),
    )


def _check_source(mount: Mount, real: str, forbidden: Sequence[str]) -> None:
    hint = "mount a narrower directory"
    home = os.path.realpath(os.path.expanduser("~"))
    if real in (*_NEVER_WHOLE, home):
        raise Denied(path=mount.source, reason=f"{real} would show the host itself", hint=hint)
    for top in _NEVER_BELOW:
        if real == top or real.startswith(f"{top}/"):
            raise Denied(path=mount.source, reason=f"nothing below {top} may be shown", hint=hint)
    for kept in forbidden:
        if real == kept or real.startswith(f"{kept}/") or f"{kept}/".startswith(f"{real}/"):
            reason = "it holds or lies in the home of sandboxsdk"
            raise Denied(path=mount.source, reason=reason, hint=hint)
