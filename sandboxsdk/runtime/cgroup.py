"""Limits by cgroup: version 1 and version 2 behind one port, `BoxCgroup`.

Knows the files of a cgroup and `Limits`; it must not know how a box is built or what runs in it.
Whoever starts a command makes it join by writing b"0" to each descriptor of `open_procs`.

Invariants: what could not be made whole is not made at all; an update sets all limits or none; a
box's directories stay locked until they are removed (see `hierarchy`).

Only version 1 has been run by the authors; what is used of version 2 says so (`Support.tested`).
"""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import re
import signal
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from sandboxsdk import clock
from sandboxsdk.errors import CapabilityError, HostRefused, UsageError, WaitTimeout
from sandboxsdk.model import Limits, LimitState, Usage

from .hierarchy import PREFIX, Support, claim, probe, read_text, sweep, thaw, write_text

__all__ = ["BoxCgroup", "Counters", "Support", "create_box", "probe", "sweep"]

_BOX_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CPU_PERIOD_US = 100_000
_CPU_PERIOD_US_MAX = 1_000_000
_CPU_QUOTA_US_MIN = 1_000
_FREEZE_SECONDS_MAX = 2.0
_REMOVE_SECONDS_MAX = 1.0


class Counters(msgspec.Struct, frozen=True):
    """What the kernel refused since the box was made; only differences mean something."""

    oom_kills: int = 0
    pids_refused: int = 0


def create_box(support: Support, box_id: str, limits: Limits) -> BoxCgroup:
    """Make the cgroup of one box, with its limits set; nothing is left when it fails.

    Raises:
        CapabilityError: no cgroup can be made here at all.
        HostRefused: the kernel refused a directory or a limit, or a box with this id lives.
    """
    if not _BOX_ID.fullmatch(box_id):
        raise UsageError(what="box id", value=box_id, reason="cannot name a directory")
    if support.version == 0:
        raise CapabilityError(wanted="limits by cgroup", reason=support.reason)
    places = {name: f"{parent}/{PREFIX}{box_id}" for name, parent in support.parents}
    box: BoxCgroup = (_BoxV1 if support.version == 1 else _BoxV2)(support, places)
    try:
        box.claim()
        box.update(limits)
    except OSError as error:
        box.remove()
        raise _refused("making cgroup", error, error.filename or box.paths[0]) from error
    except HostRefused:
        box.remove()
        raise
    return box


class _Write(NamedTuple):
    path: str
    text: str
    # Written when the kernel calls the value itself invalid.
    instead: str | None = None


class BoxCgroup(abc.ABC):
    """The cgroup of one box: a directory, on version 1 one per hierarchy. Made by `create_box`.

    Attributes:
        paths: directories to remove when the box is dead, in this order.
    """

    def __init__(self, support: Support, places: Mapping[str, str]) -> None:
        self.support = support
        self._places = dict(places)
        # cpu and cpuacct are often mounted together.
        self.paths: tuple[str, ...] = tuple(dict.fromkeys(places.values()))
        self._locks: dict[str, int] = {}

    @property
    def can_freeze(self) -> bool:
        """Whether there is a freezer."""
        return "freezer" in self._places

    def claim(self) -> None:
        """Make the directories; what was made before one fails is there for `remove`."""
        for path in self.paths:
            self._locks[path] = claim(path)

    def open_procs(self) -> list[int]:
        """Give descriptors that a process joins by writing b"0" to each; the caller closes them.

        They share the lock that keeps `sweep` away: the holder keeps them for as long as it lives.
        """
        return [os.dup(lock) for lock in self._locks.values()]

    @abc.abstractmethod
    def counters(self) -> Counters:
        """Read what was refused so far.

        Raises:
            HostRefused: the cgroup is gone.
        """

    @abc.abstractmethod
    def usage(self) -> Usage:
        """Read what is used now; None for what has no controller.

        Raises:
            HostRefused: the cgroup is gone.
        """

    @abc.abstractmethod
    def _plan(self, limits: Limits) -> list[_Write]:
        """Give the writes that set all limits, in an order that the kernel accepts."""

    @abc.abstractmethod
    def _freeze(self, path: str) -> bool:
        """Ask for it; gives whether all have stopped."""

    def states(self, limits: Limits) -> tuple[LimitState, ...]:
        return self.support.states(limits)

    def update(self, limits: Limits) -> None:
        """Set all limits of the live box, or none of them.

        Raises:
            HostRefused: the kernel refused one, e.g. less memory than is in use.
        """
        done: list[tuple[str, str]] = []
        for path, text, instead in self._plan(limits):
            try:
                old = read_text(path).strip()
                try:
                    write_text(path, text)
                except OSError as error:
                    if error.errno != errno.EINVAL or instead is None:
                        raise
                    write_text(path, instead)
            except OSError as error:
                for written, before in reversed(done):
                    with contextlib.suppress(OSError):
                        write_text(written, before)
                raise _refused("setting limit", error, path) from error
            done.append((path, old))

    def freeze(self, *, timeout: float = _FREEZE_SECONDS_MAX) -> None:
        """Stop every process of the box where it is; returns when all have stopped.

        Raises:
            CapabilityError: there is no freezer here.
            WaitTimeout: a process could not be stopped in time; all go on.
        """
        path = self._freezer()
        deadline = clock.monotonic() + timeout
        try:
            while not self._freeze(path):
                if clock.monotonic() > deadline:
                    thaw(path)
                    raise WaitTimeout(what=f"freezing {path}", timeout=timeout)
                clock.pause(0.0005)
        except OSError as error:
            raise _refused("freezing", error, path) from error

    def thaw(self) -> None:
        """Let the processes go on; where nothing can be frozen there is nothing to do."""
        for path in self.paths:
            thaw(path)

    def kill(self) -> None:
        """Send SIGKILL to every process of the box; returns without waiting for their end."""
        with contextlib.suppress(CapabilityError, WaitTimeout, HostRefused):
            # Frozen processes cannot fork, and their pids stay theirs until the signal is sent.
            self.freeze()
        try:
            for pid in read_text(f"{self.paths[0]}/cgroup.procs").split():
                # 0 is a process that our pid namespace does not show: killing it would hit us.
                if int(pid) > 0:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
        except OSError as error:
            raise _refused("killing", error, self.paths[0]) from error
        finally:
            for path in self.paths:
                thaw(path)

    def remove(self) -> None:
        """Remove the directories; what is already gone is fine.

        Raises:
            HostRefused: processes live in one; the others are removed. Call it again later.
        """
        # A claim that failed half-way owns only the first directories.
        owned = dict(self._locks)
        failed: OSError | None = None
        deadline = clock.monotonic() + _REMOVE_SECONDS_MAX
        for path in owned:
            thaw(path)
        for path, lock in owned.items():
            try:
                _remove_directory(path, deadline)
            except OSError as error:
                failed = error
                continue
            os.close(lock)
            del self._locks[path]
        if failed is not None:
            raise _refused("removing cgroup", failed, failed.filename) from failed

    def _freezer(self) -> str:
        if "freezer" not in self._places:
            raise CapabilityError(
                wanted="freezing a box", reason="no freezer cgroup can be made here"
            )
        return self._places["freezer"]

    def _text(self, controller: str, name: str) -> str | None:
        """Read one file; None where there is no such controller."""
        if controller not in self._places:
            return None
        path = f"{self._places[controller]}/{name}"
        try:
            return read_text(path)
        except OSError as error:
            raise _refused("reading", error, path) from error

    def _number(self, controller: str, name: str) -> int | None:
        text = self._text(controller, name)
        return None if text is None else int(text)

    def _keyed(self, controller: str, name: str, key: str) -> int | None:
        """Read one number of a file of "key number" lines."""
        lines = (self._text(controller, name) or "").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{key} ")), None)

    def _pids_plan(self, limits: Limits) -> Iterable[_Write]:
        if "pids" in self._places:
            yield _Write(f"{self._places['pids']}/pids.max", _or_max(limits.pids))


class _BoxV1(BoxCgroup):
    def counters(self) -> Counters:
        return Counters(
            oom_kills=self._keyed("memory", "memory.oom_control", "oom_kill") or 0,
            pids_refused=self._keyed("pids", "pids.events", "max") or 0,
        )

    def usage(self) -> Usage:
        nanoseconds = self._number("cpuacct", "cpuacct.usage")
        return Usage(
            cpu_seconds=None if nanoseconds is None else nanoseconds / 1e9,
            memory_bytes=self._number("memory", "memory.usage_in_bytes"),
            memory_bytes_max=self._number("memory", "memory.max_usage_in_bytes"),
            pids=self._number("pids", "pids.current"),
            oom_kills=self._keyed("memory", "memory.oom_control", "oom_kill"),
            source="cgroup",
        )

    def _plan(self, limits: Limits) -> list[_Write]:
        return [*self._memory_plan(limits), *self._pids_plan(limits), *self._cpu_plan(limits)]

    def _memory_plan(self, limits: Limits) -> list[_Write]:
        if "memory" not in self._places:
            return []
        wanted = limits.memory_bytes
        text = "-1" if wanted is None else str(wanted)
        plain = _Write(f"{self._places['memory']}/memory.limit_in_bytes", text)
        if not self.support.swap_counted:
            return [plain]
        both = _Write(f"{self._places['memory']}/memory.memsw.limit_in_bytes", text)
        # The sum must never lie below memory alone: it grows first and shrinks last.
        before = self._number("memory", "memory.memsw.limit_in_bytes") or 0
        return [both, plain] if wanted is None or wanted >= before else [plain, both]

    def _cpu_plan(self, limits: Limits) -> Iterable[_Write]:
        if "cpu" not in self._places:
            return
        quota, period = (f"{self._places['cpu']}/cpu.cfs_{name}_us" for name in ("quota", "period"))
        wanted = _quota_and_period(limits.cpus)
        if wanted is None:
            yield _Write(quota, "-1")
            return
        if self._number("cpu", "cpu.cfs_period_us") != wanted[1]:
            yield _Write(quota, "-1")
            yield _Write(period, str(wanted[1]))
        # EINVAL here means more than a cgroup above allows: then that smaller share holds anyway.
        yield _Write(quota, str(wanted[0]), instead="-1")

    def _freeze(self, path: str) -> bool:
        # Written again on each call: that reaches processes which were not ready before.
        write_text(f"{path}/freezer.state", "FROZEN")
        return read_text(f"{path}/freezer.state").strip() == "FROZEN"


class _BoxV2(BoxCgroup):
    """Written after the kernel's documentation; only freezing and removing have been run."""

    def counters(self) -> Counters:
        return Counters(
            oom_kills=self._keyed("memory", "memory.events", "oom_kill") or 0,
            pids_refused=self._keyed("pids", "pids.events", "max") or 0,
        )

    def usage(self) -> Usage:
        # Processor time is counted in every cgroup, with or without the controller.
        any_controller = next(iter(self._places))
        microseconds = self._keyed(any_controller, "cpu.stat", "usage_usec")
        has_peak = os.path.exists(f"{self.paths[0]}/memory.peak")
        return Usage(
            cpu_seconds=None if microseconds is None else microseconds / 1e6,
            memory_bytes=self._number("memory", "memory.current"),
            memory_bytes_max=self._number("memory", "memory.peak") if has_peak else None,
            pids=self._number("pids", "pids.current"),
            oom_kills=self._keyed("memory", "memory.events", "oom_kill"),
            source="cgroup",
        )

    def update(self, limits: Limits) -> None:
        wanted, used = limits.memory_bytes, self._number("memory", "memory.current")
        if wanted is not None and used is not None and wanted < used:
            # Version 2 would obey by killing; like version 1 we refuse, after trying to make room.
            with contextlib.suppress(OSError):
                write_text(f"{self._places['memory']}/memory.reclaim", str(used - wanted))
            if wanted < (self._number("memory", "memory.current") or 0):
                busy = OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                raise _refused("setting limit", busy, f"{self._places['memory']}/memory.max")
        super().update(limits)

    def kill(self) -> None:
        try:
            write_text(f"{self.paths[0]}/cgroup.kill", "1")
        except OSError:
            # Linux before 5.14.
            super().kill()

    def _plan(self, limits: Limits) -> list[_Write]:
        plan = []
        if "memory" in self._places:
            directory = self._places["memory"]
            if self.support.swap_counted:
                swap = "max" if limits.memory_bytes is None else "0"
                plan.append(_Write(f"{directory}/memory.swap.max", swap))
            plan.append(_Write(f"{directory}/memory.max", _or_max(limits.memory_bytes)))
        plan += self._pids_plan(limits)
        if "cpu" in self._places:
            wanted = _quota_and_period(limits.cpus)
            text = f"max {_CPU_PERIOD_US}" if wanted is None else f"{wanted[0]} {wanted[1]}"
            plan.append(_Write(f"{self._places['cpu']}/cpu.max", text))
        return plan

    def _freeze(self, path: str) -> bool:
        write_text(f"{path}/cgroup.freeze", "1")
        return "frozen 1\n" in read_text(f"{path}/cgroup.events")


def _or_max(value: int | None) -> str:
    return "max" if value is None else str(value)


def _quota_and_period(cpus: float | None) -> tuple[int, int] | None:
    """Give microseconds of quota and period; the kernel's least quota makes the period longer."""
    if cpus is None:
        return None
    period = _CPU_PERIOD_US
    if cpus * period < _CPU_QUOTA_US_MIN:
        period = min(_CPU_PERIOD_US_MAX, int(_CPU_QUOTA_US_MIN / cpus))
    return max(_CPU_QUOTA_US_MIN, round(cpus * period)), period


def _remove_directory(path: str, deadline: float) -> None:
    while True:
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return
        except OSError as error:
            # A process that was killed may leave its cgroup after its parent has heard of it.
            if error.errno != errno.EBUSY or clock.monotonic() > deadline:
                raise
            clock.pause(0.002)
        else:
            return


def _refused(what: str, error: OSError, path: str) -> HostRefused:
    hint = "see `home.doctor()` for what this host allows"
    if error.errno == errno.EBUSY:
        hint = "the box uses more, or its processes live: end something in it and try again"
    if error.errno == errno.EEXIST:
        hint = "another process has this box open; each box needs an id of its own"
    if error.errno in (errno.ENOENT, errno.ENODEV):
        hint = "the box's cgroup is gone: the box has ended, or somebody removed it"
    reason = error.strerror or str(error)
    return HostRefused(what=what, path=path, reason=reason, hint=hint)
