"""A command that runs in a box, watched through its channel: the caller's end."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from typing import Any

from sandboxsdk import clock, holder

from .runtime import Ended

DEAD_SECONDS_MAX = 30.0
_START_SECONDS_MAX = 10.0


class HeldRunning:
    """One command of a box, watched through its channel."""

    def __init__(
        self,
        channel: holder.Channel,
        holder_pidfd: int,
        program: str,
        *,
        let_die: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._let_die = let_die
        self._on_end = on_end
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
            if not readable(self.fileno(), _START_SECONDS_MAX):
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
            readable(self._holder_pidfd, DEAD_SECONDS_MAX)
            self._ended = Ended(started=True, lost=True, trouble="the holder of the box ended")
            self._on_end()
            return self._ended
        message, descriptors = received
        for descriptor in descriptors:
            if "terminal" in message:
                self._terminal = descriptor
            else:
                self._pid = pid_of(descriptor)
                os.close(descriptor)
        if "ended" in message or "errno" in message:
            self._ended = _ended(message)
            self._on_end()
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
        while self._ended is None and readable(self.fileno(), deadline - clock.monotonic()):
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


def readable(descriptor: int, seconds: float) -> bool:
    """Wait up to so many seconds for something to read, or for the other end to be gone."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def pid_of(pidfd: int) -> int:
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
