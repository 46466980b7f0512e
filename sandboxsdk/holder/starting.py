"""Becoming a command: from a fork of the holder to bubblewrap, with the rights the box has.

One process is always forked ahead and waits: forking and waking take about as long as bubblewrap's
own start, and nobody needs to wait for them.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Sequence
from typing import Any, NoReturn

from . import plain, terminal, wire


class Starter:
    """Starts commands of one box.

    Args:
        bwrap: descriptor of the program.
        cgroups: descriptors of files that a process joins a cgroup by.
    """

    def __init__(self, bwrap: int, spec: dict[str, Any], cgroups: Sequence[int]) -> None:
        self._bwrap = bwrap
        self._spec = spec
        self._cgroups = cgroups
        self._spare: tuple[int, wire.Channel] | None = None

    @property
    def spare(self) -> int:
        """Process id of the one that waits; 0 if there is none."""
        return self._spare[0] if self._spare is not None else 0

    def prepare(self) -> None:
        """Fork the process that becomes the next command.

        To be called when no descriptor of the last command is open any more: the fork would keep
        it open.
        """
        if self._spare is not None:
            return
        mine, theirs = wire.pair()
        try:
            pid = os.fork()
        except OSError:
            # The next start tries again, and then the caller hears of it.
            mine.drop()
            theirs.drop()
            return
        if pid == 0:
            mine.drop()
            self._wait_and_become(theirs)
        theirs.drop()
        self._spare = pid, mine

    def start(self, message: dict[str, Any], descriptors: Sequence[int]) -> int:
        """Start a command, give its process id.

        `descriptors` are where bubblewrap writes its status, its arguments, the filter, then the
        three streams.
        """
        for _attempt in range(2):
            self.prepare()
            if self._spare is None:
                raise OSError(11, "no process could be forked")
            (pid, channel), self._spare = self._spare, None
            try:
                channel.send(message, descriptors)
            except OSError:
                # Somebody killed it while it waited.
                continue
            finally:
                channel.drop()
            return pid
        raise OSError(11, "the process that was to become the command died")

    def _wait_and_become(self, channel: wire.Channel) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            # Python ignores SIGPIPE, and what is ignored stays ignored across exec.
            for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            # Ahead, too: the kernel may take ten milliseconds to move a process between cgroups.
            for descriptor in self._cgroups:
                os.write(descriptor, b"0")
            received = channel.receive()
            if received is not None:
                channel.drop()
                message, (status, arguments, seccomp, *streams) = received
                self._become(message, status, arguments, seccomp, streams)
        finally:
            os._exit(127)

    def _become(
        self,
        message: dict[str, Any],
        status: int,
        arguments: int,
        seccomp: int,
        streams: Sequence[int],
    ) -> None:
        try:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            if message["terminal"]:
                terminal.lead(status)
            for name, value in message["rlimits"]:
                hard = resource.getrlimit(name)[1]
                wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
                resource.setrlimit(name, (wanted, wanted))
            if self._spec["plain"]:
                plain.monitor(status, arguments, linger=message["linger"])
            if not self._spec["rootless"]:
                os.setgroups([])
                os.setresgid(*[self._spec["gid"]] * 3)
                os.setresuid(*[self._spec["uid"]] * 3)
            for descriptor in (status, arguments, seccomp):
                os.set_inheritable(descriptor, True)
            options = ["--args", str(arguments), "--seccomp", str(seccomp)]
            options += ["--json-status-fd", str(status), "--"]
            environment = {}
            program: int | str = self._bwrap
            if self._spec["bwrap_libraries"]:
                program, environment = "/bwrap/bwrap", {"LD_LIBRARY_PATH": "/bwrap"}
            os.execve(program, ["bwrap", *options, *message["command"]], environment)
        except OSError as error:
            text = json.dumps({"errno": error.errno, "text": str(error)})
            os.write(status, text.encode() + b"\n")
