"""The processes of a box as its holder sees them: who lives, who stands still; stopping, killing.

In a box with a pid namespace they are all that /proc shows, without one all that descends from the
holder. Knows process ids and /proc; it must not know commands or channels, nor what time it is.

Invariants: a signal reaches only who was seen, never who has its number now; who was stopped before
stays so afterwards; a parent is stopped before its children and goes on after them, so that no
shell takes our stop for a job that somebody suspended.
"""

from __future__ import annotations

import contextlib
import os
import platform
import select
import signal
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from sandboxsdk import syscalls as sc

# Who stands in one of these can do nothing: stopped, traced and waiting for the tracer, dead.
_STILL = frozenset((b"T", b"t", b"Z", b"X"))
_DEAD = frozenset((b"Z", b"X"))
# Numbers of the calls that may wait for a child which borrows the parent's memory (vfork).
_FORKS = {"x86_64": (b"56", b"58", b"435"), "aarch64": (b"220", b"435")}.get(platform.machine(), ())
# Seconds that the children of those who are being stopped wait at most for that.
_NAPS = (0.0, 0.0002, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)
_ROUND_SECONDS = 0.0005
_STAT_BYTES_MAX = 4096


class Guest(NamedTuple):
    """A process at one moment.

    Attributes:
        began: its start time; with the number it means one process for ever.
        still: every thread of it is stopped or dead.
        waits: what is not waits in the kernel for a child that has its memory.
    """

    pid: int
    parent: int
    name: str
    began: bytes
    alive: bool
    still: bool
    waits: bool


class Stopped(NamedTuple):
    """What became of stopping a box.

    Attributes:
        held: those that were stopped, parents first: to be let go again.
        busy: whether anything that the guest started is alive.
        moving: the name of one that cannot be stopped; empty when all stand.
    """

    held: list[Guest]
    busy: bool
    moving: str


class _Enough(Exception):
    """Whoever asked does not wait any longer."""


class Guests:
    """All processes of one box but its holder.

    Args:
        plain: there is no pid namespace.
    """

    def __init__(self, *, plain: bool) -> None:
        self._plain = plain
        self._own = os.getpid()

    def alive(self, spared: Collection[int]) -> bool:
        """Tell whether anything lives that a guest started; without the spared processes."""
        before: set[tuple[int, bytes]] | None = None
        while True:
            found, whole = self._look_around(spared)
            if self._any_alive(found):
                return True
            # What forks and ends all the time is somewhere else at every look, but never the same.
            now = _identities(found)
            if whole and now == before:
                return False
            before = now

    def kill(self, spared: Collection[int]) -> bool:
        """Kill all but the spared; True if there was one that lived."""
        found, _whole = self._look_around(spared)
        living = [guest for guest in found if guest.alive]
        for guest in living:
            with contextlib.suppress(PermissionError):
                _signal(guest, signal.SIGKILL)
        return bool(living)

    def stop(
        self, spared: Collection[int], reapers: Collection[int], gave_up: Callable[[], bool]
    ) -> Stopped:
        """Stop all but the spared where they are; return when each thread of each stands.

        Args:
            reapers: processes of ours that take away the dead of a command. They go on if they have
                started it already: the dead count, until a program cannot fork any more.
            gave_up: asked again and again; once it is true, this returns with what was reached.
        """

        def stands(guest: Guest) -> bool:
            if (guest.pid, guest.began) in reaping:
                return True
            # Who waits for a child that has its memory stops before it runs again: it was told to.
            return guest.still or (guest.waits and (guest.pid, guest.began) in held)

        held: dict[tuple[int, bytes], Guest] = {}
        before: set[tuple[int, bytes]] | None = None
        last = "a process that forks all the time"
        first, _whole = self._look_around(spared)
        parents = {guest.parent for guest in first}
        reaping = _identities(
            guest
            for guest in first
            if guest.pid in parents and (guest.pid in reapers or self._is_bubblewrap(guest))
        )
        try:
            self._stop_from_the_top(first, stands, held, gave_up)
            while True:
                moving: list[Guest] = []

                def meet(guest: Guest, moving: list[Guest] = moving) -> None:
                    if not stands(guest):
                        moving.append(guest)
                        _halt(guest, held)
                    _unless(gave_up)

                found, whole = self._look_around(spared, meet)
                # Twice the same: nobody was between two places while we looked.
                now = _identities(found)
                if whole and not moving and now == before:
                    return Stopped(list(held.values()), self._any_alive(found), "")
                before = now
                if moving:
                    last = moving[0].name
                    _nap(_ROUND_SECONDS)
                _unless(gave_up)
        except _Enough:
            return Stopped(list(held.values()), busy=True, moving=last)
        except PermissionError as error:
            # Without isolation a program may have rights that we have not.
            return Stopped(list(held.values()), busy=True, moving=error.filename)

    def _any_alive(self, found: Collection[Guest]) -> bool:
        return any(guest.alive and not self._is_bubblewrap(guest) for guest in found)

    def _is_bubblewrap(self, guest: Guest) -> bool:
        # Who has lost its parent in a namespace becomes a child of bubblewrap's init, never ours.
        return not self._plain and guest.parent == self._own

    def _stop_from_the_top(
        self,
        first: Collection[Guest],
        stands: Callable[[Guest], bool],
        held: dict[tuple[int, bytes], Guest],
        gave_up: Callable[[], bool],
    ) -> None:
        """Stop those found first, parents first, each level once the one above it stands."""
        for level in _levels(first):
            moving = [guest for guest in level if not stands(guest)]
            for guest in moving:
                _halt(guest, held)
            for seconds in _NAPS:
                looked = [(guest, _look(guest.pid)) for guest in moving]
                moving = [
                    guest
                    for guest, now in looked
                    if now is not None and now.began == guest.began and not stands(now)
                ]
                if not moving or gave_up():
                    break
                _nap(seconds)

    def _look_around(
        self, spared: Collection[int], meet: Callable[[Guest], None] = lambda _guest: None
    ) -> tuple[list[Guest], bool]:
        """Give all but the spared, and whether none of them went away under our eyes.

        The youngest come first, and each is met at once: what forks and ends all the time leaves
        more and more dead behind, and would be gone before we came to it.
        """
        if self._plain:
            return self._descendants(spared, meet)
        found = []
        whole = True
        for pid in sorted((int(n) for n in os.listdir("/proc") if n.isdigit()), reverse=True):
            if pid == self._own or pid in spared:
                continue
            guest = _look(pid)
            if guest is None:
                whole = False
                continue
            found.append(guest)
            meet(guest)
        return found, whole

    def _descendants(
        self, spared: Collection[int], meet: Callable[[Guest], None]
    ) -> tuple[list[Guest], bool]:
        found: dict[int, Guest] = {}
        whole = True
        waiting = [self._own]
        while waiting:
            children = _children(waiting.pop())
            whole = whole and children is not None
            for pid in reversed(children or []):
                if pid in spared or pid in found:
                    continue
                guest = _look(pid)
                # The child of a stranger has the number of one of ours that is gone.
                if guest is None or not (guest.parent == self._own or guest.parent in found):
                    whole = False
                    continue
                found[pid] = guest
                waiting.append(pid)
                meet(guest)
        return list(found.values()), whole


def let_go(held: Collection[Guest]) -> None:
    """Let those go on that were stopped; children first, so that no parent sees one stopped."""
    for guest in reversed(list(held)):
        with contextlib.suppress(PermissionError):
            _signal(guest, signal.SIGCONT)


def _unless(gave_up: Callable[[], bool]) -> None:
    if gave_up():
        raise _Enough


def _halt(guest: Guest, held: dict[tuple[int, bytes], Guest]) -> None:
    """Stop one that moves, and remember it."""
    if _signal(guest, signal.SIGSTOP):
        held.setdefault((guest.pid, guest.began), guest)


def _signal(guest: Guest, number: int) -> bool:
    """Send a signal to this very process; False if it is gone, or stands already and is to stop.

    Raises:
        PermissionError: we may not; its file name is the name of the process.
    """
    try:
        descriptor = os.pidfd_open(guest.pid)
    except ProcessLookupError:
        return False
    try:
        # What the number means is certain from here on.
        now = _look(guest.pid)
        if now is None or now.began != guest.began:
            return False
        if number == signal.SIGSTOP and now.still:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    except PermissionError as error:
        raise PermissionError(error.errno, error.strerror, guest.name) from error
    finally:
        os.close(descriptor)
    return True


def _levels(found: Collection[Guest]) -> Iterator[list[Guest]]:
    """Give those without a parent among them, then their children, and so on. (pure)"""
    known = {guest.pid for guest in found}
    below: dict[int, list[Guest]] = {}
    for guest in found:
        below.setdefault(guest.parent if guest.parent in known else 0, []).append(guest)
    level = below.get(0, [])
    while level:
        yield level
        level = [child for guest in level for child in below.get(guest.pid, ())]


def _identities(found: Iterable[Guest]) -> set[tuple[int, bytes]]:
    return {(guest.pid, guest.began) for guest in found}


def _look(pid: int) -> Guest | None:
    """Give a process as it is now; None if it went away meanwhile."""
    try:
        data = _read(f"/proc/{pid}/stat")
        head, _parenthesis, tail = data.rpartition(b")")
        # In the order of proc(5), from the state on: its name may hold anything.
        fields = tail.split()
        states = {str(pid): fields[0]}
        if int(fields[17]) > 1:
            for task in os.listdir(f"/proc/{pid}/task"):
                one = _read(f"/proc/{pid}/task/{task}/stat")
                states[task] = one.rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return None
    moving = {task: state for task, state in states.items() if state not in _STILL}
    return Guest(
        pid=pid,
        parent=int(fields[1]),
        name=head.partition(b"(")[2].decode(errors="replace"),
        began=fields[19],
        alive=not _DEAD.issuperset(states.values()),
        still=not moving,
        waits=all(state == b"D" and _waits_for_child(pid, task) for task, state in moving.items()),
    )


def _waits_for_child(pid: int, task: str) -> bool:
    """Tell whether a thread waits, where no signal wakes it, for a child that has its memory.

    One that is about to fork may wait there as well, and then there will be a child that runs.
    """
    try:
        if _read(f"/proc/{pid}/task/{task}/syscall").partition(b" ")[0] not in _FORKS:
            return False
        with open(f"/proc/{pid}/task/{task}/children", "rb", buffering=0) as file:
            return any(sc.same_memory(pid, int(child)) for child in file.read().split())
    except OSError:
        return False


def _children(pid: int) -> list[int] | None:
    """Give the children of all threads of a process; None if it, or a thread, went away."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb", buffering=0) as file:
                found += map(int, file.read().split())
    except OSError:
        return None
    return found


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _STAT_BYTES_MAX)
    finally:
        os.close(descriptor)


def _nap(seconds: float) -> None:
    select.select([], [], [], seconds)
