"""Which limit is kept by what: the rlimits of a command, and the truth about all six limits.

Knows `Limits`, what cgroups can do here, and the kernel's version; it sets nothing itself.

Invariant: "enforced" is said only of what the kernel, or the caller's own clock, keeps against a
hostile program.
"""

from __future__ import annotations

import os
import re
import resource

from sandboxsdk.model import Enforcement, Limits, LimitState

from .hierarchy import Support
from .watch import DISK_INTERVAL_SECONDS, INTERVAL_SECONDS, can_watch

_OPEN_FILES = 64 * 1024
_NPROC_PER_NAMESPACE = (5, 14)


def rlimits(limits: Limits, cgroup: Support) -> list[tuple[int, int]]:
    """Give the resource limits of a command: an RLIMIT_* number and a value, soft and hard alike.

    What a cgroup keeps gets no rlimit. They are inherited by whatever the command starts.
    """
    found = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, _open_files(limits))]
    if limits.disk_bytes is not None:
        found.append((resource.RLIMIT_FSIZE, limits.disk_bytes))
    if limits.memory_bytes is not None and "memory" not in cgroup.controllers:
        # Not RLIMIT_AS: programs reserve far more addresses than they ever use.
        found.append((resource.RLIMIT_DATA, limits.memory_bytes))
    if limits.pids is not None and "pids" not in cgroup.controllers and _counts_per_namespace():
        found.append((resource.RLIMIT_NPROC, limits.pids))
    return found


def states(limits: Limits, cgroup: Support, *, disk_watched: bool = True) -> tuple[LimitState, ...]:
    """Say of each limit how it is kept and by what.

    `disk_watched` means that somebody lets a `Watch` know the bytes on disk.
    """
    by_cgroup = {state.name: state for state in cgroup.states(limits)}
    own = {"memory": _memory(limits), "cpus": _cpus(limits), "pids": _pids(limits)}
    kept = [
        by_cgroup[name] if by_cgroup[name].how != "unsupported" else state
        for name, state in own.items()
    ]
    return (
        *kept,
        _disk(limits, watched=disk_watched),
        _wall_time(limits),
        _open_files_state(limits),
    )


def _state(name: str, value: float | None, how: Enforcement, by: str) -> LimitState:
    if value is None:
        return LimitState(name=name, value=None, how="unlimited", by="nobody")
    return LimitState(name=name, value=value, how=how, by=by)


def _memory(limits: Limits) -> LimitState:
    if can_watch():
        by = f"a sample of all processes every {INTERVAL_SECONDS:g} s, RLIMIT_DATA for each"
        return _state("memory", limits.memory_bytes, "watched", by)
    by = "RLIMIT_DATA for each process, nothing for all together"
    return _state("memory", limits.memory_bytes, "unsupported", by)


def _cpus(limits: Limits) -> LimitState:
    # Not sched_getaffinity: a program may widen the mask that it inherited.
    processors = os.cpu_count()
    if limits.cpus is not None and processors is not None and processors <= limits.cpus:
        by = f"the host has no more than {processors} processors"
        return _state("cpus", limits.cpus, "enforced", by)
    return _state("cpus", limits.cpus, "unsupported", "no cpu cgroup")


def _pids(limits: Limits) -> LimitState:
    if not _counts_per_namespace():
        by = "Linux before 5.14 counts all processes of the user, not those of a box"
        return _state("pids", limits.pids, "unsupported", by)
    # Rootless, the holder has a user namespace of its own, and the kernel counts there. As root it
    # has none.
    whose = "all boxes of one uid" if os.geteuid() == 0 else "the box's user namespace"
    return _state("pids", limits.pids, "enforced", f"RLIMIT_NPROC, counted over {whose}")


def _disk(limits: Limits, *, watched: bool) -> LimitState:
    if watched:
        by = f"a look every {DISK_INTERVAL_SECONDS:g} s or later, RLIMIT_FSIZE for each file"
        return _state("disk", limits.disk_bytes, "watched", by)
    by = "RLIMIT_FSIZE for each file, nothing for all together"
    return _state("disk", limits.disk_bytes, "unsupported", by)


def _wall_time(limits: Limits) -> LimitState:
    return _state("wall_time", limits.wall_time, "enforced", "the caller's clock")


def _open_files_state(limits: Limits) -> LimitState:
    by = "RLIMIT_NOFILE" if limits.open_files is not None else "RLIMIT_NOFILE, by default"
    return _state("open_files", _open_files(limits), "enforced", by)


def _open_files(limits: Limits) -> int:
    """Give the limit that is really set: nobody may go beyond the caller's own."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = limits.open_files if limits.open_files is not None else _OPEN_FILES
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def _counts_per_namespace() -> bool:
    """Tell whether RLIMIT_NPROC is counted for each user namespace, not over the whole host."""
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return match is not None and (int(match[1]), int(match[2])) >= _NPROC_PER_NAMESPACE
