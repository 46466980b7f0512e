"""Where cgroups can be made: find hierarchies, try them, claim directories, sweep dead ones.

Knows cgroup file systems; it must not know limits beyond which controller keeps which, nor boxes
beyond their ids.

Invariants:
- A directory of ours is named `sandboxsdk-<box id>` and is locked (flock on its `cgroup.procs`) for
  as long as its maker or somebody who was handed that descriptor lives. The kernel lets go of the
  lock with the last of them, so a free lock means a dead box, and a box that has no process at the
  moment is not taken for one.
- A probe leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import msgspec

from sandboxsdk import clock
from sandboxsdk.ids import new_id
from sandboxsdk.model import Limits, LimitState

PREFIX = "sandboxsdk-"
_LIMITING = frozenset(("memory", "pids", "cpu"))
# What a directory must offer before its controller counts as usable; cpuacct only counts, so it may
# be absent.
_V1_FILES = {
    "memory": "memory.limit_in_bytes",
    "pids": "pids.max",
    "cpu": "cpu.cfs_quota_us",
    "freezer": "freezer.state",
    "cpuacct": "cpuacct.usage",
}
_V2_FILES = {"memory": "memory.max", "pids": "pids.max", "cpu": "cpu.max"}
_CLAIM_TRIES_MAX = 50
_DELEGATION = (
    "start the program with `systemd-run --user --scope -p Delegate=yes`, "
    "which gives it a cgroup of its own"
)


class Support(msgspec.Struct, frozen=True):
    """What this process may do with cgroups.

    Attributes:
        version: 0 when no limit can be set.
        controllers: usable ones, of "memory", "pids", "cpu" and "freezer".
        reason: what is missing and why, with a remedy; empty when nothing is.
        tested: whether the authors have run this version.
        parents: where boxes are made: pairs of a controller and a directory.
        swap_counted: whether the memory limit holds for swap too.
    """

    version: Literal[0, 1, 2]
    controllers: frozenset[str]
    reason: str
    tested: bool
    parents: tuple[tuple[str, str], ...] = ()
    swap_counted: bool = False

    def states(self, limits: Limits) -> tuple[LimitState, ...]:
        """Say how memory, pids and cpus of a box in a cgroup are kept."""
        found = []
        for name, controller, value in (
            ("memory", "memory", limits.memory_bytes),
            ("pids", "pids", limits.pids),
            ("cpus", "cpu", limits.cpus),
        ):
            by = f"cgroup v{self.version}"
            if controller == "memory" and not self.swap_counted:
                by += ", swap not counted"
            if not self.tested:
                by += " (untested on this kernel setup)"
            if value is None:
                found.append(LimitState(name=name, value=None, how="unlimited", by="nobody"))
            elif controller in self.controllers:
                found.append(LimitState(name=name, value=value, how="enforced", by=by))
            else:
                by = f"no {controller} cgroup"
                found.append(LimitState(name=name, value=value, how="unsupported", by=by))
        return tuple(found)


class Places(NamedTuple):
    """The directories of the cgroups that a process is in, as far as they are mounted here.

    Attributes:
        v1: by controller.
        v2: the one directory of version 2, and where that hierarchy is mounted.
    """

    v1: dict[str, str]
    v2: tuple[str, str] | None


def find_places(mountinfo: str, own: str, *, root: str) -> Places:
    """Read /proc/self/mountinfo and /proc/self/cgroup; only mounts at or below `root` count."""
    paths: dict[str, str] = {}
    for line in own.splitlines():
        _number, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    v1: dict[str, str] = {}
    v2 = None
    for line in mountinfo.splitlines():
        before, _dash, after = line.partition(" - ")
        mount_root, mount_point = (_unescaped(field) for field in before.split(" ")[3:5])
        kind, _source, options = after.split(" ", 2)
        if f"{mount_point}/".startswith(f"{root.rstrip('/')}/") and kind.startswith("cgroup"):
            found = [""] if kind == "cgroup2" else [n for n in options.split(",") if n in _V1_FILES]
            for controller in found:
                directory = _mounted(paths.get(controller), mount_root, mount_point)
                if directory and controller:
                    v1.setdefault(controller, directory)
                elif directory and v2 is None:
                    v2 = (directory, mount_point)
    return Places(v1, v2)


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _mounted(path: str | None, mount_root: str, mount_point: str) -> str | None:
    """Give where `path` of a hierarchy is seen through a mount of `mount_root`, if it is."""
    # A path with ".." lies outside of our cgroup namespace: its name is not known here.
    if path is None or path.startswith("/..") or mount_root.startswith("/.."):
        return None
    rest = path if mount_root == "/" else path.removeprefix(mount_root)
    if mount_root != "/" and (rest == path or rest[:1] not in ("", "/")):
        return None
    return f"{mount_point}{rest}".rstrip("/")


def probe(root: str = "/sys/fs/cgroup", *, proc: str = "/proc/self") -> Support:
    """Find out which limits this process can set: make a directory in each hierarchy, remove it.

    Never raises: what does not work is told in `reason`.
    """
    try:
        texts = [read_text(f"{proc}/{name}") for name in ("mountinfo", "cgroup")]
        places = find_places(*texts, root=root)
    except (OSError, ValueError) as error:
        return Support(0, frozenset(), f"cgroups cannot be found: {error}", True)
    first = _probe_v1(places.v1)
    if first.version or places.v2 is None or not _has_controllers(places.v2[1]):
        # A version 2 without controllers beside version 1, as on hybrid hosts, can limit nothing.
        return first
    second = _probe_v2(*places.v2)
    if second.version:
        return second
    reasons = [reason for reason in (first.reason if places.v1 else "", second.reason) if reason]
    return Support(0, frozenset(), "; ".join(reasons), True)


def _has_controllers(mount_point: str) -> bool:
    try:
        return bool(_LIMITING.intersection(read_text(f"{mount_point}/cgroup.controllers").split()))
    except OSError:
        return False


def _probe_v1(places: Mapping[str, str]) -> Support:
    reasons: dict[str, list[str]] = {}
    for name in sorted(_V1_FILES.keys() - {*places, "cpuacct"}):
        reasons.setdefault("not mounted here", []).append(name)
    parents = []
    swap_counted = False
    for controller, directory in places.items():
        try:
            with _probe_directory(directory) as path:
                os.stat(f"{path}/{_V1_FILES[controller]}")
                if controller == "memory":
                    swap_counted = os.path.exists(f"{path}/memory.memsw.limit_in_bytes")
            parents.append((controller, directory))
        except OSError as error:
            reasons.setdefault(error.strerror or str(error), []).append(controller)
    controllers = frozenset(name for name, _directory in parents if name != "cpuacct")
    reason = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
    if not controllers & _LIMITING:
        reason = f"no cgroup v1 can be made ({reason}); run as root for limits by cgroup"
        return Support(0, frozenset(), reason, True)
    return Support(1, controllers, reason, True, tuple(parents), swap_counted)


def _probe_v2(own: str, mount_point: str) -> Support:
    """Try our own cgroup, then the one above it.

    A cgroup that holds processes cannot have children with controllers, and ours holds at least us.
    So in practice boxes lie beside our own cgroup; an ordinary user may do that below the user's
    own systemd.
    """
    reasons = []
    for parent in dict.fromkeys((own, os.path.dirname(own) if own != mount_point else own)):
        try:
            enabled = _enabled_v2(parent)
            with _probe_directory(parent) as path:
                usable = {name for name in enabled if os.path.exists(f"{path}/{_V2_FILES[name]}")}
                if os.path.exists(f"{path}/cgroup.freeze"):
                    usable.add("freezer")
                swap_counted = os.path.exists(f"{path}/memory.swap.max")
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
            continue
        # Joining needs write permission at the nearest cgroup above both the old and the new one.
        if usable & _LIMITING and os.access(f"{parent}/cgroup.procs", os.W_OK):
            parents = tuple((name, parent) for name in sorted(usable))
            missing = sorted(_LIMITING - usable)
            reason = f"{', '.join(missing)}: not delegated to {parent}" if missing else ""
            return Support(2, frozenset(usable), reason, False, parents, swap_counted)
        reasons.append(f"{parent}: no controllers are delegated to it")
    return Support(0, frozenset(), f"cgroup v2: {'; '.join(reasons)}; {_DELEGATION}", True)


def _enabled_v2(parent: str) -> set[str]:
    """Give the controllers of children of `parent`, after an attempt to turn on what we want."""
    control = f"{parent}/cgroup.subtree_control"
    available = _LIMITING.intersection(read_text(f"{parent}/cgroup.controllers").split())
    for name in sorted(available.difference(read_text(control).split())):
        with contextlib.suppress(OSError):
            write_text(control, f"+{name}")
    return set(_LIMITING.intersection(read_text(control).split()))


@contextlib.contextmanager
def _probe_directory(parent: str) -> Iterator[str]:
    path = f"{parent}/{PREFIX}probe-{new_id()}"
    lock = claim(path)
    try:
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(path)
        os.close(lock)


def claim(path: str) -> int:
    """Make a directory and lock it; gives its `cgroup.procs`, open for writing.

    A sweeper of another process may take the directory between the two steps: then it is made
    again.
    """
    for _attempt in range(_CLAIM_TRIES_MAX):
        try:
            # Nobody else may open what lies in it: a stranger's lock would keep it from being
            # swept.
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not _sweep_directory(path):
                clock.pause(0.01)
            continue
        lock = -1
        try:
            lock = os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(f"{path}/cgroup.procs").st_ino == os.fstat(lock).st_ino:
                return lock
            os.close(lock)
        except OSError as error:
            if lock >= 0:
                os.close(lock)
            if not isinstance(error, BlockingIOError | FileNotFoundError):
                with contextlib.suppress(OSError):
                    os.rmdir(path)
                raise
    raise FileExistsError(errno.EEXIST, "a box with this id lives in it", path)


def sweep(support: Support) -> int:
    """Remove the cgroups of boxes whose maker and holder are both dead; gives the number of boxes.

    A frozen one is thawed first, else the signal that killed its processes never reaches them. What
    still has processes is left for the next sweep.
    """
    removed = set()
    for directory in dict.fromkeys(directory for _controller, directory in support.parents):
        with contextlib.suppress(OSError):
            for name in os.listdir(directory):
                if name.startswith(PREFIX) and _sweep_directory(f"{directory}/{name}"):
                    removed.add(name)
    return len(removed)


def _sweep_directory(path: str) -> bool:
    try:
        lock = os.open(f"{path}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        thaw(path)
        os.rmdir(path)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(lock)


def thaw(path: str) -> None:
    """Let the processes of a frozen directory go on; what is gone or has no freezer is fine."""
    for name, thawed in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        with contextlib.suppress(OSError):
            write_text(f"{path}/{name}", thawed)


def read_text(path: str) -> str:
    """Read one file of a cgroup; raises OSError."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def write_text(path: str, text: str) -> None:
    """Write one file of a cgroup in one write(2); raises OSError with the kernel's answer."""
    # One write(2) without a flush at close, so that an error belongs to this call.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
