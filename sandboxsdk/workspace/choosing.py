"""Which kind a private workspace gets where nobody says it: the fastest that works in its place.

Whether an overlay works is found out by using one, in a process of its own: what a kernel, a
container's rules and two file systems do together is written nowhere. That takes some tens of
milliseconds, once for each pair of file systems until the host starts anew.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
from typing import Any, Literal, NamedTuple

import msgspec

from sandboxsdk import clock, disk
from sandboxsdk.codec import digest, encode_json
from sandboxsdk.errors import SandboxError
from sandboxsdk.host import boot_id, owned, remove_tree, start_python
from sandboxsdk.ids import new_id
from sandboxsdk.model import Workspace

from .place import carries_no_upper, file_system
from .validity import resolve

_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from sandboxsdk.holder.probing import main; main(int(sys.argv[2]), sys.argv[3])"
)
# Whom root's trial writes as: not root, like the commands of a box.
_OTHER_ID = 60700
_SECONDS_MAX = 12
_SCRATCH = ".trial"
_LITTER_NS = 60_000_000_000
_KNOWN = "overlays"
_KNOWN_MAX = 256
_KNOWN_BYTES_MAX = 1 << 16
_INCAPABLE_STAGES = ("mount", "write", "look")
_OF_THE_MOMENT = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.EAGAIN,
)

# What this process has found out: why an overlay does not work, or nothing.
_found: dict[str, str] = {}
# Homes that were told so.
_noted: set[tuple[str, str]] = set()


class Choice(NamedTuple):
    """A kind, and why it is that one."""

    kind: Literal["overlay", "reflink", "copy"]
    why: str


def settle(workspace: Workspace, *, home: str) -> tuple[Workspace, str]:
    """Give the workspace with a real path and the kind that it will always have, and why it has
    that one if nobody has asked for it.

    Raises:
        WorkspaceInvalid, UsageError: as `resolve`.
    """
    resolved = resolve(workspace, home=home)
    if resolved.mode != "private" or resolved.kind != "auto":
        return resolved, ""
    choice = choose(home, resolved.path)
    return msgspec.structs.replace(resolved, kind=choice.kind), choice.why


def choose(home: str, base: str | None) -> Choice:
    """Choose the kind of a private workspace.

    Args:
        home: the directory that tasks are stored in.
        base: the user's directory, if there is one.
    """
    upper = file_system(os.stat(home).st_dev) or "an unknown file system"
    if carries_no_upper(upper):
        why = f"its home lies on {upper}, which carries no overlay"
        return _without_overlay(home, base, why)
    key = _key(home, base)
    if key not in _found and key in _known(home):
        _found[key] = ""
    if key not in _found:
        tried = _tried(home, base)
        if tried is None:
            return Choice("overlay", f"{upper} carries one; it could not be tried")
        _found[key] = tried
    if _found[key]:
        return _without_overlay(home, base, f"an overlay does not work here: {_found[key]}")
    _note(home, key)
    return Choice("overlay", f"one was tried here, on {upper}, and works")


def _without_overlay(home: str, base: str | None, why: str) -> Choice:
    if base is not None and _shares_blocks(home, base):
        return Choice("reflink", why)
    return Choice("copy", why)


# --- What is known --------------------------------------------------------------------------------


def _key(home: str, base: str | None) -> str:
    """Name what an answer holds for."""
    facts: list[object] = [boot_id(), os.geteuid()]
    for path in (home, base or home):
        device = os.stat(path).st_dev
        facts += [device, file_system(device), os.statvfs(path).f_fsid]
    return digest(encode_json(facts))[:32]


def _known(home: str) -> list[str]:
    """Give the answers of other processes that were good; others may have a remedy by now."""
    with contextlib.suppress(OSError, ValueError):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with owned(os.open(f"{home}/{_KNOWN}", flags)) as file:
            return os.pread(file, _KNOWN_BYTES_MAX, 0).decode("ascii").split()
    return []


def _note(home: str, key: str) -> None:
    """Write a good answer down for other processes."""
    if (home, key) in _noted:
        return
    _noted.add((home, key))
    known = _known(home)
    if key in known:
        return
    lines = [*known, key][-_KNOWN_MAX:]
    with contextlib.suppress(OSError), owned(disk.open_directory(home)) as place:
        text = "".join(f"{line}\n" for line in lines)
        disk.replace(_KNOWN, text.encode(), dir_fd=place, durable=False)


# --- Trials ---------------------------------------------------------------------------------------


def _tried(home: str, base: str | None) -> str | None:
    """Use an overlay; gives why it does not work, nothing if it does, None if nobody can tell."""
    found = os.stat(base or home)
    rootless = os.geteuid() != 0
    told = {
        "base": base,
        "owner": [found.st_uid, found.st_gid],
        "uid": os.geteuid() if rootless else _OTHER_ID,
        "gid": os.getegid() if rootless else _OTHER_ID,
        "rootless": rootless,
    }
    try:
        with owned(disk.open_directory(home)) as place:
            _remove_litter(place)
            scratch = f"{new_id()}{_SCRATCH}"
            disk.make_directory(scratch, dir_fd=place)
            try:
                said = _said({**told, "scratch": f"{home}/{scratch}"})
            finally:
                remove_tree(place, scratch)
    except (OSError, SandboxError):
        return None
    if said == {}:
        return ""
    if (
        said is None
        or said["stage"] not in _INCAPABLE_STAGES
        or said.get("errno") in _OF_THE_MOMENT
    ):
        # Without namespaces no box works, whatever its workspace is, and the box says why.
        return None
    return str(said["text"])


def _said(told: dict[str, object]) -> dict[str, Any] | None:
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    reader, writer = os.pipe()
    with owned(reader):
        try:
            program = start_python(_START, [package, str(writer), json.dumps(told)], (writer,))
        finally:
            os.close(writer)
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        data = os.read(reader, 1 << 16) if poll.poll(_SECONDS_MAX * 1_000) else b""
        program.wait(1)
    with contextlib.suppress(ValueError):
        said: dict[str, Any] = json.loads(data)
        return said
    return None


def _remove_litter(home: int) -> None:
    """Remove what a trial has left that was killed."""
    for name in os.listdir(home):
        if name.endswith(_SCRATCH):
            with contextlib.suppress(OSError, SandboxError):
                made = os.stat(name, dir_fd=home, follow_symlinks=False).st_mtime_ns
                if clock.now_ns() - made > _LITTER_NS:
                    remove_tree(home, name)


def _shares_blocks(home: str, base: str) -> bool:
    """Tell whether a file in the home can share blocks with one of the directory."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    scratch = f"{new_id()}{_SCRATCH}"
    with contextlib.suppress(OSError), owned(disk.open_directory(home)) as place:
        with os.scandir(base) as entries:
            source = next((e.path for e in entries if e.is_file(follow_symlinks=False)), None)
        with owned(disk.create(scratch, dir_fd=place)) as fresh:
            try:
                # Where it has no file of its own at hand, any on the same file system does.
                if source is None:
                    if os.stat(base).st_dev != os.fstat(fresh).st_dev:
                        return False
                    with owned(disk.create(f"2{scratch}", dir_fd=place)) as other:
                        disk.remove(f"2{scratch}", dir_fd=place)
                        disk.clone(fresh, other)
                else:
                    with owned(os.open(source, flags)) as other:
                        disk.clone(fresh, other)
            finally:
                disk.remove(scratch, dir_fd=place)
        return True
    return False
