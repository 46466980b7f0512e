"""A command that stays: read it, write to it, wait for it, kill it."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import msgspec

from sandboxsdk import clock
from sandboxsdk.errors import CommandFailed, HostRefused, SandboxError, UsageError, WaitTimeout
from sandboxsdk.model import ExecResult
from sandboxsdk.runtime import Instance, Pressure, Running, Watch

from .command import input_bytes
from .execution import Killer, conclude, resize
from .pump import Gathered, Pump

_SEARCHED_BYTES_MAX = 1024 * 1024
_INPUT_BYTES_MAX = 64 * 1024 * 1024
_LISTEN_POLL_SECONDS = 0.02
_JOINED_BYTES_MAX = 4096


class Process:
    """A running command of a box; a context manager that kills it at the end of its block.

    Output is taken in by a thread, so the command never waits for a reader; what nobody reads is
    kept up to the limit and then thrown away (`truncated` says so). A process has one reader: what
    was iterated is not in the result any more.
    """

    def __init__(
        self,
        instance: Instance,
        running: Running,
        pump_of: Callable[[Callable[[str, bytes], None]], Pump],
        *,
        text: str,
        max_output: int,
        wall_time: float | None,
        watch: Watch,
        before: Pressure,
        terminal: int,
        on_end: Callable[[Process], None],
    ) -> None:
        self._instance = instance
        self._running = running
        self._pump = pump_of(self._take)
        self._text = text
        self._max_output = max_output
        self._watch = watch
        self._before = before
        self._on_end = on_end
        self._killer = Killer(running)
        self._started_by = os.getpid()
        self._began = clock.monotonic()
        self._deadline = None if wall_time is None else self._began + wall_time
        self._changed = threading.Condition()
        self._unread: deque[tuple[str, bytes]] = deque()
        self._unread_bytes = {"stdout": 0, "stderr": 0}
        self._searched = b""
        self._truncated = False
        self._result: ExecResult | None = None
        self._told = False
        self._failure: SandboxError | None = None
        self._input: list[bytes] = []
        self._input_bytes = 0
        self._input_ends = False
        self._thread = threading.Thread(target=self._run, name="sandboxsdk-process", daemon=True)
        self._terminal = -1
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if terminal >= 0:
                # One of our own: the pump closes the ones it has when the terminal hangs up.
                self._terminal = os.dup(terminal)
            self._thread.start()
        except BaseException:
            self._close_own()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._started_by == os.getpid():
            self.kill()
            self._await_end(None)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Give (stream, bytes) as they come, until the command is over."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unread or self.over)
                if not self._unread:
                    return
                stream, data = self._unread.popleft()
                self._unread_bytes[stream] -= len(data)
            yield stream, data

    def lines(self) -> Iterator[str]:
        """Give the lines of both streams as text, without their ends, each stream's lines whole.

        A line longer than max_output comes in parts: a program may never end its line.
        """
        parts = {"stdout": bytearray(), "stderr": bytearray()}
        for stream, data in self:
            first, *others = data.split(b"\n")
            parts[stream] += first
            for other in others:
                line = bytes(parts[stream]).removesuffix(b"\r")
                parts[stream] = bytearray(other)
                yield line.decode("utf-8", "surrogateescape")
            if len(parts[stream]) > self._max_output:
                line, parts[stream] = bytes(parts[stream]), bytearray()
                yield line.decode("utf-8", "surrogateescape")
        for rest in parts.values():
            if rest:
                yield rest.decode("utf-8", "surrogateescape")

    @property
    def pid(self) -> int:
        """The host's process id of the command's init; everything of the command lies below it."""
        return self._running.pid

    def write(self, data: str | bytes) -> None:
        """Queue input; it is written as fast as the command reads.

        Raises:
            UsageError: the input was closed, or 64 MiB wait unread.
        """
        raw = input_bytes(data, what="write")
        with self._changed:
            if self._input_ends:
                raise UsageError(what="write", value="...", reason="the input was closed")
            if self._input_bytes + self._pump.unwritten + len(raw) > _INPUT_BYTES_MAX:
                raise UsageError(
                    what="write", value=len(raw), reason="64 MiB wait already; nobody reads them"
                )
            self._input.append(raw)
            self._input_bytes += len(raw)
        self._wake()

    def close_stdin(self) -> None:
        """Give the command end of file after what was written; on a terminal that is Ctrl-D."""
        with self._changed:
            if self._terminal >= 0 and not self._input_ends:
                self._input.append(b"\x04")
            self._input_ends = True
        self._wake()

    def wait(self, timeout: float | None = None) -> ExecResult:
        """Wait until the command and all that it started are dead; unread output is in the result.

        Raises:
            WaitTimeout: it is not over after `timeout` seconds; it goes on.
            ExecStartError, BoxLost, HostRefused: as for exec.
        """
        if self._started_by != os.getpid():
            reason = "was started by another process"
            raise UsageError(what="wait", value=self._text, reason=reason)
        self._await_end(timeout)
        if self._failure is not None:
            raise self._failure
        with self._changed:
            assert self._result is not None
            if not self._told:
                # Not before somebody asks: what a reader takes until then is not in the result.
                gathered = Gathered(self._max_output)
                for stream, data in self._unread:
                    gathered.add(stream, data)
                self._result = msgspec.structs.replace(
                    self._result,
                    stdout_bytes=gathered.of("stdout"),
                    stderr_bytes=gathered.of("stderr"),
                )
                self._told = True
            return self._result

    def poll(self) -> ExecResult | None:
        """Give the result if it is over, else None; never waits."""
        return self.wait() if self.over else None

    def wait_for(
        self, port: int | None = None, pattern: str | None = None, timeout: float = 30.0
    ) -> None:
        """Wait until the box listens on a TCP port, or the output matched a regular expression.

        The output is only looked at; it can still be read. The last 1 MiB of it is searched.

        Raises:
            WaitTimeout: it did not happen in time.
            CommandFailed: the command ended before.
            UsageError: not exactly one of the two was given, or the pattern is none.
        """
        if (port is None) == (pattern is None):
            raise UsageError(what="wait_for", value=port, reason="needs a port or a pattern")
        deadline = clock.monotonic() + timeout
        if pattern is not None:
            try:
                compiled = re.compile(pattern.encode())
            except re.error as error:
                raise UsageError(what="pattern", value=pattern, reason=str(error)) from error
            self._wait_until(
                lambda: compiled.search(self._searched) is not None, f"output {pattern!r}", timeout
            )
            return
        assert port is not None
        while not self._instance.listening(port):
            if self.over:
                raise self._ended_before()
            if clock.monotonic() > deadline:
                raise WaitTimeout(what=f"a server on port {port}", timeout=timeout)
            clock.pause(_LISTEN_POLL_SECONDS)

    def join(self) -> None:
        """Wait until the thread behind the process has let go of everything."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def kill(self) -> None:
        """Kill the command and everything it started; `wait` tells when they are dead.

        A paused box goes on: what is stopped cannot die.
        """
        if not self.over:
            self._killer.kill("killed")

    def resize(self, rows: int, columns: int) -> None:
        """Tell the command's terminal its size.

        Raises:
            UsageError: it has no terminal.
        """
        if self._terminal < 0:
            raise UsageError(what="resize", value=(rows, columns), reason="there is no terminal")
        with self._changed:
            if not self.over:
                resize(self._terminal, rows, columns)

    @property
    def over(self) -> bool:
        """Whether the command and all that it started are dead."""
        return self._result is not None or self._failure is not None

    def _await_end(self, timeout: float | None) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self.over, timeout):
                raise WaitTimeout(what=f"the end of {self._text}", timeout=timeout)
        self._thread.join()

    def _wait_until(self, happened: Callable[[], bool], what: str, timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: happened() or self.over, timeout):
                raise WaitTimeout(what=what, timeout=timeout)
            if happened():
                return
        raise self._ended_before()

    def _ended_before(self) -> CommandFailed:
        hint = "it ended before what was waited for happened; look at .result"
        return CommandFailed(command=self._text, result=self.wait(), hint=hint)

    def _wake(self) -> None:
        # Under the lock: once it is closed, its number may be a file of somebody else.
        with self._changed:
            if self._wake_writer >= 0:
                # Full means that it will wake.
                with contextlib.suppress(BlockingIOError):
                    os.write(self._wake_writer, b"1")

    def _run(self) -> None:
        """The thread: pump until the command is over, then say how it ended."""
        try:
            self._pump.watch(self._wake_reader)
            watched = False
            while not self._pump.step(self._patience(watched=watched)):
                self._feed()
                if not watched and self._running.pid:
                    self._watch.add(self._running.pid, self._killer.kill)
                    watched = True
                if self._deadline is not None and clock.monotonic() >= self._deadline:
                    self._deadline = None
                    self._killer.kill("timeout")
            self._settle(None)
        except SandboxError as error:
            self._settle(error)
        except OSError as error:
            # Whoever waits must hear of it, whatever it is.
            self._settle(HostRefused(what="follow", path=self._text, reason=str(error)))
        finally:
            self._watch.remove(self._running.pid)
            with self._changed:
                self._pump.close()
                self._close_own()
            self._on_end(self)

    def _close_own(self) -> None:
        for descriptor in (self._wake_reader, self._wake_writer):
            os.close(descriptor)
        self._wake_writer = -1
        if self._terminal >= 0:
            os.close(self._terminal)

    def _patience(self, *, watched: bool) -> float:
        until = [60.0]
        if self._deadline is not None:
            until.append(max(self._deadline - clock.monotonic(), 0))
        if not watched:
            until.append(0.1)
        return min(until)

    def _feed(self) -> None:
        with self._changed:
            try:
                os.read(self._wake_reader, 4096)
            except BlockingIOError:
                return
            data, self._input = b"".join(self._input), []
            self._input_bytes = 0
            ends = self._input_ends and self._terminal < 0
            # Under the lock, so that what waits is always counted; it never blocks.
            self._pump.feed(data, last=ends)

    def _take(self, stream: str, data: bytes) -> None:
        with self._changed:
            self._searched = (self._searched + data)[-_SEARCHED_BYTES_MAX:]
            room = self._max_output - self._unread_bytes[stream]
            if len(data) > room:
                self._truncated = True
                data = data[: max(room, 0)]
            if data:
                self._unread_bytes[stream] += len(data)
                if self._unread and self._unread[-1][0] == stream:
                    # A program's single bytes would cost a hundred times their size each.
                    last = self._unread[-1][1]
                    if len(last) + len(data) <= _JOINED_BYTES_MAX:
                        data = self._unread.pop()[1] + data
                self._unread.append((stream, data))
            self._changed.notify_all()

    def _settle(self, failure: SandboxError | None) -> None:
        with self._changed:
            gathered = Gathered(0)
            gathered.truncated = self._truncated
            if failure is None and self._pump.ended is not None:
                self._result = conclude(
                    self._pump.ended,
                    self._killer.cause,
                    gathered,
                    self._before,
                    self._instance.pressure(),
                    clock.monotonic() - self._began,
                )
            self._failure = failure
            self._changed.notify_all()
