"""Running one command to its end, and starting one that stays: the descriptors, the clock, the
limits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from sandboxsdk import clock
from sandboxsdk.errors import (
    ExecStartError,
    ExecTimeout,
    HostRefused,
    SandboxError,
    UsageError,
)
from sandboxsdk.model import ExecResult, Reason, Usage
from sandboxsdk.runtime import Command, Ended, Instance, Pressure, Running, Watch

from .outcome import judge, start_trouble
from .pump import Gathered, Pump

OnOutput = Callable[[str, bytes], object] | Literal["inherit"] | None
# A command is watched once it has run this long; most are over before, and a watch costs a thread.
_UNWATCHED_SECONDS = 0.1
MAX_OUTPUT = 16 * 1024 * 1024


class Killer:
    """Kills a command once, and remembers why."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self.cause: Reason | None = None

    def kill(self, cause: Reason) -> None:
        if self.cause is None:
            self.cause = cause
        self._running.kill()


def run(
    instance: Instance,
    command: Command,
    *,
    text: str,
    data: bytes,
    timeout: float | None,
    max_output: int,
    on_output: OnOutput,
    watch: Watch,
) -> ExecResult:
    """Run a command until it and all that it started are dead.

    Raises:
        ExecStartError, ExecTimeout, BoxLost, HostRefused, and whatever on_output raises.
    """
    began = clock.monotonic()
    tell = _teller(on_output)
    before = instance.pressure()
    running, readers, writer = start(instance, command, with_input=bool(data))
    gathered = Gathered(max_output)

    def take(stream: str, chunk: bytes) -> None:
        gathered.add(stream, chunk)
        if tell is not None:
            tell(stream, chunk)

    pump = Pump(running, readers, writer, take)
    killer = Killer(running)
    try:
        pump.feed(data, last=True)
        _until_over(pump, running, killer, watch, None if timeout is None else began + timeout)
    except BaseException:
        # Ctrl-C, or an exception of on_output: nothing of the command outlives it.
        tell = None
        killer.kill("killed")
        pump.finish_killed()
        raise
    finally:
        watch.remove(running.pid)
        pump.close()
    assert pump.ended is not None
    result = conclude(
        pump.ended, killer.cause, gathered, before, instance.pressure(), clock.monotonic() - began
    )
    if not pump.ended.started and not pump.ended.lost:
        raise not_started(pump.ended, gathered, text)
    if killer.cause == "timeout":
        raise ExecTimeout(command=text, timeout=timeout, result=result)
    return result


def start(
    instance: Instance, command: Command, *, with_input: bool
) -> tuple[Running, dict[int, str], int]:
    """Start a command on fresh pipes; gives what to read from and what to write to (or -1)."""
    mine: list[int] = []
    theirs: list[int] = []
    try:
        for _stream in ("stdout", "stderr"):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            mine.append(reader)
            theirs.append(writer)
        if with_input:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            mine.append(writer)
        else:
            reader = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        theirs.insert(0, reader)
        streams = (theirs[0], theirs[1], theirs[2])
        running = instance.start(msgspec.structs.replace(command, streams=streams))
    except OSError as error:
        for descriptor in mine:
            os.close(descriptor)
        raise HostRefused(what="start", path=command.argv[0], reason=str(error)) from error
    except BaseException:
        for descriptor in mine:
            os.close(descriptor)
        raise
    finally:
        for descriptor in theirs:
            os.close(descriptor)
    return running, {mine[0]: "stdout", mine[1]: "stderr"}, mine[2] if with_input else -1


def start_on_terminal(
    instance: Instance, command: Command, *, rows: int, columns: int
) -> tuple[Running, dict[int, str], int]:
    """Start a command on a terminal of its own; its one descriptor is read and written.

    Raises:
        UsageError: no terminal has this size.
    """
    size = _size(rows, columns)
    running = instance.start(command)
    with abandoned_on_error(running, {running.terminal: "stdout"}, -1):
        fcntl.ioctl(running.terminal, termios.TIOCSWINSZ, size)
        return running, {running.terminal: "stdout"}, os.dup(running.terminal)


@contextlib.contextmanager
def abandoned_on_error(running: Running, readers: dict[int, str], writer: int) -> Iterator[None]:
    """Let go of a command that nobody can follow; closing its channel kills it.

    Raises:
        HostRefused: the host refused what follows a command (descriptors, a thread).
    """
    try:
        yield
    except BaseException as error:
        Pump(running, readers, writer, lambda _stream, _data: None).close()
        if isinstance(error, (OSError, RuntimeError)) and not isinstance(error, SandboxError):
            raise HostRefused(what="follow", path="a command", reason=str(error)) from error
        raise


def resize(master: int, rows: int, columns: int) -> None:
    """Tell a terminal its size in characters."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, _size(rows, columns))


def _size(rows: int, columns: int) -> bytes:
    for number in (rows, columns):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 2**16:
            reason = "must be whole numbers from 1 to 65535"
            raise UsageError(what="terminal size", value=(rows, columns), reason=reason)
    return struct.pack("=HHHH", rows, columns, 0, 0)


def conclude(
    ended: Ended,
    cause: Reason | None,
    gathered: Gathered,
    before: Pressure,
    after: Pressure,
    duration: float,
) -> ExecResult:
    """Put together what a caller is told."""
    outcome = judge(ended, cause, before, after)
    return ExecResult(
        exit_code=outcome.exit_code,
        stdout_bytes=gathered.of("stdout"),
        stderr_bytes=gathered.of("stderr"),
        duration=duration,
        reason=outcome.reason,
        signal=outcome.signal,
        truncated=gathered.truncated,
        usage=Usage(
            cpu_seconds=ended.cpu_seconds,
            memory_bytes_max=ended.memory_bytes_max,
            oom_kills=after.oom_kills - before.oom_kills,
        ),
    )


def not_started(ended: Ended, gathered: Gathered, text: str) -> Exception:
    """Give the error for a command that never ran: the caller's mistake, or the host's refusal."""
    theirs, reason = start_trouble(ended, gathered.head.decode("utf-8", "surrogateescape"))
    if theirs:
        return ExecStartError(command=text, reason=reason)
    hint = "the box may be out of processes or memory: see box.describe() and box.stats()"
    return HostRefused(what="start", path=text, reason=reason, hint=hint)


def unstarted(
    running: Running, readers: dict[int, str], writer: int, ended: Ended, text: str
) -> Exception:
    """Give the error for a spawned command that never ran, and close everything of it."""
    gathered = Gathered(0)
    pump = Pump(running, readers, writer, gathered.add)
    try:
        pump.finish_killed()
    finally:
        pump.close()
    return not_started(ended, gathered, text)


def _until_over(
    pump: Pump, running: Running, killer: Killer, watch: Watch, deadline: float | None
) -> None:
    ask_from = clock.monotonic() + _UNWATCHED_SECONDS
    asked = watched = False
    while True:
        now = clock.monotonic()
        if deadline is not None and now >= deadline and killer.cause is None:
            killer.kill("timeout")
            pump.finish_killed()
            return
        if not asked and now >= ask_from:
            running.ask_pid()
            asked = True
        if not watched and running.pid:
            watch.add(running.pid, killer.kill)
            watched = True
        waits = [60.0]
        if deadline is not None:
            waits.append(deadline - now)
        if not asked:
            waits.append(ask_from - now)
        if pump.step(min(waits)):
            return


def _teller(on_output: OnOutput) -> Callable[[str, bytes], object] | None:
    if on_output is None or callable(on_output):
        return on_output
    if on_output == "inherit":
        return _copy_to_own_streams
    raise UsageError(what="on_output", value=on_output, reason='must be callable or "inherit"')


def _copy_to_own_streams(stream: str, data: bytes) -> None:
    target = sys.stdout if stream == "stdout" else sys.stderr
    binary = getattr(target, "buffer", None)
    if binary is None:
        target.write(data.decode("utf-8", "backslashreplace"))
    else:
        target.flush()
        binary.write(data)
    target.flush()
