"""The holder's life after its box is built: start commands, know when each is dead, die with the
owner.

One loop over poll(2), no timers of its own: the caller decides when a command has run long enough.
A command is a bubblewrap process that we start; it starts an init (PID 1 of the command's own pid
namespace), which starts the program. The command is over when both are reaped: bubblewrap returns
BEFORE its init has killed what the program left behind, and an init whose bubblewrap died comes to
us, because we are the reaper here.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
from collections.abc import Sequence
from typing import Any, NoReturn

from sandboxsdk import syscalls as sc

from . import descendants, enclosure, terminal, wire
from .guests import Guest, Guests, let_go
from .starting import Starter
from .workspace import Overlay

_STATUS_BYTES_MAX = 16 * 1024


def wake_on_child() -> int:
    """Give a descriptor that turns readable whenever a child ends."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def hold(
    control: wire.Channel,
    owner: int,
    *,
    bwrap: int,
    spec: dict[str, Any],
    cgroups: list[int],
    overlay: Overlay | None,
) -> NoReturn:
    """Keep a box until its owner is gone or hangs up; then end with everything in it."""
    _Holder(control, owner, bwrap, spec, cgroups, overlay).run()
    if spec["plain"]:
        descendants.end_all()
    os._exit(0)


class _Command:
    """One running command, seen from outside its namespaces."""

    def __init__(self, pid: int, channel: wire.Channel, status: int, *, linger: bool) -> None:
        self.pid = pid
        self.channel = channel
        self.status = status
        self.linger = linger
        self.text = b""
        self.init = 0
        self.asked = False
        self.monitor_reaped = False
        self.init_reaped = False
        self.wait_status = 0
        self.killed = False
        self.cpu_seconds = 0.0
        self.rss_bytes_max = 0

    def add_usage(self, usage: resource.struct_rusage, *, of_init: bool) -> None:
        self.cpu_seconds += usage.ru_utime + usage.ru_stime
        if of_init:
            # Bubblewrap's own is no news: what we were before it counts as its memory.
            self.rss_bytes_max = usage.ru_maxrss * 1024

    def kill(self) -> None:
        self.killed = True
        if not self.monitor_reaped:
            # It leads a process group: bubblewrap, and on a terminal the leader of ours before it.
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError):
                    kill(self.pid, signal.SIGKILL)
        if self.init and not self.init_reaped:
            # Bubblewrap may have reaped it already; then nobody has this pid, for we are its
            # namespace.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.init, signal.SIGKILL)


class _Holder:
    def __init__(
        self,
        control: wire.Channel,
        owner: int,
        bwrap: int,
        spec: dict[str, Any],
        cgroups: list[int],
        overlay: Overlay | None,
    ) -> None:
        self._control = control
        self._overlay = overlay
        self._owner = owner
        self._spec = spec
        self._starter = Starter(bwrap, spec, cgroups)
        self._wake = wake_on_child()
        self._poll = select.poll()
        self._commands: dict[int, _Command] = {}
        self._by_status: dict[int, _Command] = {}
        self._by_channel: dict[int, _Command] = {}
        self._guests = Guests(plain=spec["plain"])
        # What is stopped, by the channel that keeps it so; and who waits for all to be dead.
        self._holds: dict[int, tuple[wire.Channel, list[Guest]]] = {}
        self._clearing: list[wire.Channel] = []

    def run(self) -> None:
        """Return when the owner is dead or hangs up; the caller exits, which kills everything in
        the box.
        """
        for descriptor in (self._control.fileno(), self._owner, self._wake):
            self._poll.register(descriptor, select.POLLIN)
        self._starter.prepare()
        while True:
            ended = False
            asked: list[tuple[dict[str, Any], list[int]]] = []
            for descriptor, _events in self._poll.poll():
                if descriptor == self._wake:
                    os.read(self._wake, 4096)
                    ended = True
                elif descriptor in self._by_status:
                    self._read_status(self._by_status[descriptor])
                elif descriptor in self._by_channel:
                    self._serve(self._by_channel[descriptor])
                elif descriptor in self._holds:
                    self._go_on(descriptor)
                elif descriptor == self._owner:
                    return
                elif descriptor == self._control.fileno():
                    received = self._control.receive()
                    if received is None:
                        return
                    if received[0]["op"] == "exec":
                        self._start(*received)
                    else:
                        asked.append(received)
            if ended or asked:
                self._reap()
            # Only now: an answer may close descriptors, and poll's news of their numbers is old
            # then.
            for message, (descriptor,) in asked:
                self._answer(message, wire.adopt(descriptor))

    def _start(self, message: dict[str, Any], descriptors: list[int]) -> None:
        """Start a command: descriptors are its channel, the arguments, the filter, then its three
        streams.

        A command on a terminal brings no streams: it gets a terminal of the box, the caller the
        other end.
        """
        channel = wire.adopt(descriptors[0])
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            if message["terminal"]:
                master, slave = terminal.open_terminal(self._spec)
                channel.send({"terminal": True}, [master])
                os.close(master)
                descriptors += [slave, os.dup(slave), os.dup(slave)]
            pid = self._starter.start(message, [writer, *descriptors[1:]])
        except OSError as error:
            os.close(reader)
            with contextlib.suppress(OSError):
                channel.send({"errno": error.errno, "text": str(error)})
            channel.drop()
        else:
            command = _Command(pid, channel, reader, linger=message["linger"])
            self._commands[pid] = command
            self._by_status[reader] = command
            self._by_channel[channel.fileno()] = command
            self._poll.register(reader, select.POLLIN)
            self._poll.register(channel.fileno(), select.POLLIN)
        finally:
            for descriptor in (writer, *descriptors[1:]):
                os.close(descriptor)
        self._starter.prepare()

    def _answer(self, message: dict[str, Any], channel: wire.Channel) -> None:
        """Answer what the caller asks about all that runs in the box, and about its files."""
        asked = message["op"]
        try:
            if asked == "busy":
                busy = bool(self._commands) or self._guests.alive(self._spared())
                _say_last(channel, {"busy": busy})
            elif asked == "stop":
                self._stop(channel)
            elif asked == "unmount":
                _say_last(channel, *self._unmount())
            elif asked == "mount":
                _say_last(channel, *self._mount(message))
            else:
                self._clearing.append(channel)
                self._clear()
        except OSError as error:
            # No descriptors or no memory left; the box must not die of a question.
            _say_last(channel, {"errno": error.errno, "text": str(error)})

    def _unmount(self) -> tuple[dict[str, Any], list[int]]:
        """Take the workspace off, unless something uses it; then give it anew."""
        used = self._overlay is None or bool(self._commands) or bool(self._holds)
        if not used and not self._guests.alive(self._spared()):
            with contextlib.suppress(OSError):
                sc.umount(enclosure.WORKSPACE)
                return {"busy": False}, []
        return {"busy": True}, [_open_workspace()]

    def _mount(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        """Mount the workspace with other layers."""
        assert self._overlay is not None
        self._overlay.mount(message, enclosure.WORKSPACE)
        return {"mounted": True}, [_open_workspace()]

    def _spared(self) -> tuple[int, ...]:
        return (self._starter.spare,)

    def _stop(self, channel: wire.Channel) -> None:
        """Stop all that runs, for as long as this channel lasts.

        Nothing else is served meanwhile. The caller says when it has waited long enough.
        """
        news = select.poll()
        for descriptor in (self._owner, channel.fileno()):
            news.register(descriptor, select.POLLIN)
        reapers = {command.init for command in self._commands.values()}
        stopped = self._guests.stop(self._spared(), reapers, lambda: bool(news.poll(0)))
        if stopped.moving:
            let_go(stopped.held)
            _say_last(channel, {"moving": stopped.moving})
            return
        self._holds[channel.fileno()] = channel, stopped.held
        self._poll.register(channel.fileno(), select.POLLIN)
        with contextlib.suppress(OSError):
            channel.send({"busy": bool(self._commands) or stopped.busy})

    def _go_on(self, descriptor: int) -> None:
        """Let those go on that this channel kept: it was asked to, or whoever had it is gone."""
        channel, held = self._holds.pop(descriptor)
        self._poll.unregister(descriptor)
        channel.receive()
        let_go(held)
        _say_last(channel, {"moving": ""})

    def _clear(self) -> None:
        """Kill all that runs; to be called until nothing does, and then whoever asked is told."""
        for command in self._commands.values():
            # Before the others: bubblewrap would tell of a program that ended by a signal.
            command.kill()
        if not self._guests.kill(self._spared()) and not self._commands:
            for channel in self._clearing:
                _say_last(channel, {"cleared": True})
            self._clearing = []

    def _read_status(self, command: _Command) -> None:
        """Read what bubblewrap says of the command: the pid of its init, later the exit code."""
        data = os.read(command.status, 4096)
        if not data or len(command.text) > _STATUS_BYTES_MAX:
            self._poll.unregister(command.status)
            del self._by_status[command.status]
            return
        command.text += data
        if not command.init and b"child-pid" in command.text:
            first, _newline, _rest = command.text.partition(b"\n")
            with contextlib.suppress(ValueError):
                command.init = int(json.loads(first)["child-pid"])
                if command.asked:
                    self._tell_init(command)

    def _tell_init(self, command: _Command) -> None:
        """Give the caller a pidfd of the init; most commands are over before anyone asks."""
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(command.init)
            try:
                command.channel.send({"init": True}, [pidfd])
            finally:
                os.close(pidfd)

    def _serve(self, command: _Command) -> None:
        """Obey the caller: it asks for the init, or wants a kill, and wants one when it is gone."""
        received = command.channel.receive()
        if received is not None and received[0]["op"] == "init":
            command.asked = True
            if command.init:
                self._tell_init(command)
            return
        if received is None:
            self._poll.unregister(command.channel.fileno())
            del self._by_channel[command.channel.fileno()]
        command.kill()

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._reaped(pid, status, usage)
        for command in list(self._commands.values()):
            if command.monitor_reaped:
                self._finish(command)
        if self._clearing:
            self._clear()

    def _reaped(self, pid: int, status: int, usage: resource.struct_rusage) -> None:
        command = self._commands.get(pid)
        if command is not None:
            command.monitor_reaped = True
            command.wait_status = status
            command.add_usage(usage, of_init=False)
            return
        for command in self._commands.values():
            if command.init == pid:
                command.init_reaped = True
                command.add_usage(usage, of_init=True)

    def _finish(self, command: _Command) -> None:
        while command.status in self._by_status:
            self._read_status(command)
        if command.init and not command.init_reaped and not self._settled(command):
            return
        if self._spec["plain"] and not command.linger:
            # No pid namespace died with the command: what it left is ours now, and comes as our
            # children one by one.
            known = {*self._commands, self._starter.spare}
            if descendants.kill_children(known):
                return
        self._tell_ended(command)
        del self._commands[command.pid]
        os.close(command.status)
        if self._by_channel.pop(command.channel.fileno(), None):
            self._poll.unregister(command.channel.fileno())
        command.channel.close()

    def _settled(self, command: _Command) -> bool:
        """Bubblewrap is reaped, its init may live: decide whether that is the end, and bring it
        about.
        """
        if command.linger and not command.killed:
            return True
        try:
            os.kill(command.init, signal.SIGKILL)
        except ProcessLookupError:
            return True
        return False

    def _tell_ended(self, command: _Command) -> None:
        ended: dict[str, Any] = {
            "ended": True,
            "killed": command.killed,
            # The kernel does not count what was killed with its pid namespace.
            "cpu_seconds": None if command.killed else command.cpu_seconds,
            "rss_bytes_max": None if command.killed else command.rss_bytes_max or None,
        }
        if os.WIFSIGNALED(command.wait_status):
            ended["signal"] = os.WTERMSIG(command.wait_status)
        for line in command.text.splitlines():
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if "exit-code" in said:
                    ended["exit_code"] = said["exit-code"]
                if "errno" in said:
                    ended["errno"], ended["text"] = said["errno"], said["text"]
        with contextlib.suppress(OSError):
            command.channel.send(ended)


def _open_workspace() -> int:
    return os.open(enclosure.WORKSPACE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _say_last(
    channel: wire.Channel, message: dict[str, Any], descriptors: Sequence[int] = ()
) -> None:
    """Send a last word, to somebody who may be gone, and hang up; the descriptors go with it."""
    try:
        with contextlib.suppress(OSError):
            channel.send(message, list(descriptors))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    channel.close()
