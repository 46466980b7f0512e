"""An entered box that a holder keeps, and a command that runs in it: the caller's ends."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sandboxsdk import clock, holder
from sandboxsdk.errors import BoxLost, CapabilityError, HostRefused, UsageError
from sandboxsdk.host import Tree, remove_tree
from sandboxsdk.model import Description, Limits, LimitState, Usage

from .arguments import HOME, WORKSPACE
from .cgroup import BoxCgroup
from .listening import listens
from .runtime import BoxPlan, Command, Ended, Pressure

_DEAD_SECONDS_MAX = 30.0
_START_SECONDS_MAX = 10.0


class Dialect(Protocol):
    """What tells one kind of held box from another: how a command is put, and what is claimed."""

    @property
    def seccomp(self) -> bytes:
        """The system-call filter."""

    @property
    def ids(self) -> tuple[int, int] | None:
        """Uid and gid that files are made with, where they are not the caller's."""

    def arguments(self, command: Command) -> bytes:
        """Give what the holder hands to the program that runs the command."""

    def rlimits(self, limits: Limits) -> list[tuple[int, int]]: ...

    def states(self, limits: Limits) -> tuple[LimitState, ...]: ...

    def describe(self, states: tuple[LimitState, ...]) -> Description: ...


class HeldInstance:
    """A box: the caller's end of a holder. Safe to use from several threads."""

    def __init__(
        self,
        plan: BoxPlan,
        dialect: Dialect,
        *,
        channel: holder.Channel,
        gone: int,
        descriptors: list[int],
        cgroup: BoxCgroup | None,
        scratch: str = "",
    ) -> None:
        self._plan = plan
        self._dialect = dialect
        self._limits = plan.spec.limits
        self._channel = channel
        self._gone = gone
        self._pidfd, *roots = descriptors
        self._roots = roots
        self._cgroup = cgroup
        self._scratch = scratch
        self._pressure = Pressure()
        self._paused = False
        self._guard = threading.Lock()
        self._open = True
        self.pid: int = os.getpid()
        names = (WORKSPACE, "/tmp", HOME)  # noqa: S108 - the guest's own
        self.trees: Mapping[str, Tree] = {
            name: Tree(root, ids=dialect.ids) for name, root in zip(names, roots, strict=True)
        }
        for tree, root in zip(self.trees.values(), roots, strict=True):
            # The number goes with its last user: see `close`.
            weakref.finalize(tree, os.close, root).atexit = False

    def start(self, command: Command) -> HeldRunning:
        """Start a command.

        Raises:
            BoxLost: the holder is gone.
            HostRefused: the kernel refused (descriptors, memory).
            UsageError: the box is paused, or there are more arguments than bubblewrap takes.
        """
        if self._paused:
            # A process that joins a frozen cgroup cannot even be killed.
            hint = "call box.unpause() first"
            raise UsageError(what="box", value=self._plan.id, reason="is paused", hint=hint)
        options = self._dialect.arguments(command)
        message = {
            "op": "exec",
            "command": list(command.argv),
            "terminal": command.terminal,
            "linger": self._plan.linger,
            "rlimits": self._dialect.rlimits(self._limits),
        }
        opened: list[int] = []
        streams = () if command.terminal else command.streams
        try:
            mine, theirs = holder.pair()
            try:
                # One by one: if the second cannot be made, the first is closed.
                opened.append(_memory(options))
                opened.append(_memory(self._dialect.seccomp))
                self._channel.send(message, [theirs.fileno(), *opened, *streams])
            except OSError as error:
                mine.close()
                if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.EBADF, errno.ENOTCONN):
                    raise BoxLost(box=self._plan.id, reason="its holder is gone") from error
                raise
            finally:
                theirs.drop()
                for descriptor in opened:
                    os.close(descriptor)
        except OSError as error:
            raise HostRefused(what="start", path=command.argv[0], reason=str(error)) from error
        running = HeldRunning(mine, self._pidfd, command.argv[0], self._let_die)
        if command.terminal and running.await_terminal() is not None:
            running.close()
            raise HostRefused(what="open", path="a terminal", reason="the box gave none")
        return running

    def usage(self) -> Usage:
        return self._cgroup.usage() if self._cgroup is not None else Usage(source="watch")

    def pressure(self) -> Pressure:
        if self._cgroup is None:
            return self._pressure
        # The counters go with the box; what it was that ended a command, the command itself says.
        with contextlib.suppress(HostRefused):
            counters = self._cgroup.counters()
            self._pressure = Pressure(counters.oom_kills, counters.pids_refused)
        return self._pressure

    def update(self, limits: Limits) -> None:
        """Change limits while the box runs; rlimits hold for commands started from now on."""
        if self._cgroup is not None:
            self._cgroup.update(limits)
        self._limits = limits

    def pause(self) -> None:
        """Stop every process where it is.

        Raises:
            CapabilityError: there is no freezer that we may use.
        """
        if self._cgroup is None:
            raise CapabilityError(
                wanted="pause",
                reason="no cgroup freezer may be used here",
                hint="run as root, or in a delegated cgroup",
            )
        self._paused = True
        self._cgroup.freeze()

    def unpause(self) -> None:
        if self._cgroup is not None and self._paused:
            self._cgroup.thaw()
            self._paused = False

    def _let_die(self) -> None:
        """Thaw a paused box in which something is killed: what is frozen cannot die."""
        with contextlib.suppress(HostRefused):
            self.unpause()

    def limit_states(self) -> tuple[LimitState, ...]:
        return self._dialect.states(self._limits)

    def describe(self) -> Description:
        return self._dialect.describe(self.limit_states())

    def listening(self, port: int) -> bool:
        return listens(_pid_of(self._pidfd), port)

    def alive(self) -> bool:
        return self._open and not _readable(self._pidfd, 0.0)

    def close(self) -> None:
        """End the box; returns when every process of it is dead and nothing of it is left on the
        host.
        """
        with self._guard:
            if not self._open:
                return
            self._open = False
        try:
            if self.pid != os.getpid():
                # A forked child: the box is the parent's.
                self._channel.drop()
            else:
                self._end()
        finally:
            self._let_go()

    def _end(self) -> None:
        if self._cgroup is not None:
            # What is frozen cannot die.
            with contextlib.suppress(HostRefused):
                self._cgroup.thaw()
        self._channel.close()
        dead = _readable(self._pidfd, _DEAD_SECONDS_MAX)
        dead = dead and _readable(self._gone, _DEAD_SECONDS_MAX)
        if self._cgroup is not None:
            self._cgroup.remove()
        if self._scratch:
            _remove(self._scratch)
        if not dead:
            reason = f"its processes did not die within {_DEAD_SECONDS_MAX:g} s"
            raise BoxLost(box=self._plan.id, reason=reason)

    def _let_go(self) -> None:
        """Close our descriptors, also when the box could not be ended as it should."""
        for root in self._roots:
            # The box's files are let go of, but not the number: a thread in the midst of an upload
            # would go on in whatever directory of the host got it next.
            os.dup2(self._pidfd, root, inheritable=False)
        self.trees = {}
        self._roots = []
        for descriptor in (self._pidfd, self._gone):
            os.close(descriptor)


class HeldRunning:
    """One command of a box, watched through its channel."""

    def __init__(
        self,
        channel: holder.Channel,
        holder_pidfd: int,
        program: str,
        let_die: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._let_die = let_die
        self._holder_pidfd = holder_pidfd
        self._program = os.path.basename(program)
        self._started_by = os.getpid()
        self._pid = 0
        self._terminal = -1
        self._ended: Ended | None = None

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def terminal(self) -> int:
        return self._terminal

    def fileno(self) -> int:
        return self._channel.fileno()

    def await_terminal(self) -> Ended | None:
        """Wait for the holder's answer: a terminal, or the end."""
        while self._terminal < 0 and self._ended is None:
            if not _readable(self.fileno(), _START_SECONDS_MAX):
                self._ended = Ended(started=False, trouble="no terminal came in time")
            else:
                self.news()
        return self._ended

    def news(self) -> Ended | None:
        if self._ended is not None:
            return self._ended
        received = self._channel.receive()
        if received is None:
            # Only a dead holder leaves without a word; wait until its box is dead too.
            _readable(self._holder_pidfd, _DEAD_SECONDS_MAX)
            self._ended = Ended(started=True, lost=True, trouble="the holder of the box ended")
            return self._ended
        message, descriptors = received
        for descriptor in descriptors:
            if "terminal" in message:
                self._terminal = descriptor
            else:
                self._pid = _pid_of(descriptor)
                os.close(descriptor)
        if "ended" in message or "errno" in message:
            self._ended = _ended(message)
        return self._ended

    def ask_pid(self) -> None:
        with contextlib.suppress(OSError):
            self._channel.send({"op": "init"})

    def await_start(self) -> Ended | None:
        self.ask_pid()
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        # Bounded: a program that calls itself "bwrap" looks as if it had not started yet.
        deadline = clock.monotonic() + 2.0
        while self._ended is None and clock.monotonic() < deadline:
            if self._pid and (self._program == "bwrap" or _runs_another_program(self._pid)):
                return None
            if poll.poll(1):
                self.news()
        return self._ended

    def await_end(self, seconds: float) -> Ended | None:
        """Wait for the end, without reading anything the command prints."""
        deadline = clock.monotonic() + seconds
        while self._ended is None and _readable(self.fileno(), deadline - clock.monotonic()):
            self.news()
        return self._ended

    def kill(self) -> None:
        # In a forked child the command is the parent's.
        if self._started_by == os.getpid():
            with contextlib.suppress(OSError):
                self._channel.send({"op": "kill"})
            self._let_die()

    def close(self) -> None:
        if self._started_by == os.getpid():
            self._channel.close()
        else:
            self._channel.drop()


def _ended(message: dict[str, Any]) -> Ended:
    exit_code = message.get("exit_code")
    trouble = message.get("text", "")
    started = exit_code is not None or bool(message.get("killed")) or bool(message.get("signal"))
    return Ended(
        started=started and not trouble,
        exit_code=exit_code,
        trouble=trouble,
        cpu_seconds=message.get("cpu_seconds"),
        memory_bytes_max=message.get("rss_bytes_max"),
    )


def _remove(directory: str) -> None:
    """Remove a directory of ours with whatever commands put into it."""
    parent = os.open(os.path.dirname(directory), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(parent, os.path.basename(directory))
    finally:
        os.close(parent)


def _memory(data: bytes) -> int:
    descriptor = os.memfd_create("sandboxsdk", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _readable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _pid_of(pidfd: int) -> int:
    """Give the process's id as this process sees it; 0 if it is gone or cannot be told."""
    # Too many open files, or a box that another thread has closed: the id is only for watching.
    with (
        contextlib.suppress(OSError),
        open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file,
    ):
        for line in file:
            name, _colon, value = line.partition(":")
            if name == "Pid":
                return max(int(value), 0)
    return 0


def _runs_another_program(init: int) -> bool:
    """Tell whether the init's child has left bubblewrap behind by exec."""
    try:
        with open(f"/proc/{init}/task/{init}/children", encoding="ascii") as file:
            children = file.read().split()
        for child in children:
            with open(f"/proc/{child}/comm", encoding="ascii", errors="replace") as file:
                if file.read().strip() != "bwrap":
                    return True
    except OSError:
        pass
    return False
