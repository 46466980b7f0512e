"""Moving bytes between a caller and a command until the command is over. One thread runs a pump."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable

from sandboxsdk import clock
from sandboxsdk.errors import BoxLost
from sandboxsdk.runtime import Ended, Running

_CHUNK_BYTES = 256 * 1024
# How long a killed command may take to be reported dead; the kernel needs milliseconds.
_DEATH_SECONDS_MAX = 60.0
# What a start that failed says is a line; the rest of an output is of no use there.
_HEAD_BYTES = 4096
# What a program that is not the command's any more may still push into its pipes before we hang up.
_DRAIN_BYTES_MAX = 4 * 1024 * 1024


class Pump:
    """Reads a command's streams without ever letting it wait for us, and feeds its input.

    Args:
        readers: descriptor -> name of the stream ("stdout", "stderr"); closed by `close`.
        writer: descriptor of its standard input, or -1; closed when `feed` has nothing more to
            give.
        on_data: called with every chunk, in the pump's thread.
    """

    def __init__(
        self,
        running: Running,
        readers: dict[int, str],
        writer: int,
        on_data: Callable[[str, bytes], None],
    ) -> None:
        self._running = running
        self._readers = readers
        self._writer = writer
        self._on_data = on_data
        self._poll = select.poll()
        self._pending = memoryview(b"")
        self._end_of_input = False
        self._waiting_to_write = False
        self.ended: Ended | None = None
        for descriptor in (running.fileno(), *readers):
            self._poll.register(descriptor, select.POLLIN)
        for descriptor in (*readers, *([writer] if writer >= 0 else [])):
            os.set_blocking(descriptor, False)

    def feed(self, data: bytes, *, last: bool) -> None:
        """Queue input; with `last`, end of file follows it."""
        if self._writer < 0:
            # Nobody reads it any more.
            return
        self._pending = memoryview(bytes(self._pending) + data)
        self._end_of_input = self._end_of_input or last
        self._write()

    @property
    def unwritten(self) -> int:
        """Bytes of input that the command has not taken yet."""
        return len(self._pending)

    def step(self, seconds: float) -> bool:
        """Wait up to `seconds` for something and handle it; True once the command is over and
        drained.
        """
        for descriptor, _events in self._poll.poll(max(seconds, 0) * 1000):
            if descriptor == self._writer:
                self._write()
            elif descriptor in self._readers:
                self._read(descriptor)
            elif descriptor == self._running.fileno():
                self.ended = self._running.news()
        if self.ended is None:
            return False
        self._drain()
        return True

    def watch(self, descriptor: int) -> None:
        """Let `step` also return when this descriptor turns readable."""
        self._poll.register(descriptor, select.POLLIN)

    def finish_killed(self) -> None:
        """After a kill: wait until everything is dead.

        Raises:
            BoxLost: the kernel does not let it die (a process stuck in a device or network file
                system).
        """
        deadline = clock.monotonic() + _DEATH_SECONDS_MAX
        while not self.step(deadline - clock.monotonic()):
            if clock.monotonic() > deadline:
                raise BoxLost(
                    box="",
                    reason=f"a command was still alive {_DEATH_SECONDS_MAX:g} s after its kill",
                )

    def close(self) -> None:
        for descriptor in list(self._readers):
            os.close(descriptor)
        self._readers.clear()
        self._close_writer()
        self._running.close()

    def _read(self, descriptor: int) -> int:
        try:
            data = os.read(descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return 0
        except OSError:
            # A terminal whose other end is closed.
            data = b""
        if data:
            self._on_data(self._readers[descriptor], data)
        else:
            self._poll.unregister(descriptor)
            del self._readers[descriptor]
            os.close(descriptor)
        return len(data)

    def _drain(self) -> None:
        """Everything of the command is dead: what is in the pipes is all there will be.

        Unless a process of another command holds a pipe; that one is not waited for.
        """
        for descriptor in list(self._readers):
            budget = _DRAIN_BYTES_MAX
            while budget > 0:
                count = self._read(descriptor)
                if count == 0:
                    break
                budget -= count

    def _write(self) -> None:
        if self._writer < 0:
            return
        while self._pending:
            try:
                written = os.write(self._writer, self._pending[:_CHUNK_BYTES])
            except BlockingIOError:
                if not self._waiting_to_write:
                    self._poll.register(self._writer, select.POLLOUT)
                    self._waiting_to_write = True
                return
            except OSError:
                # It closed its input; that is its right.
                self._pending = memoryview(b"")
                self._close_writer()
                return
            self._pending = self._pending[written:]
        if self._waiting_to_write:
            self._poll.unregister(self._writer)
            self._waiting_to_write = False
        if self._end_of_input:
            self._close_writer()

    def _close_writer(self) -> None:
        if self._writer >= 0:
            if self._waiting_to_write:
                with contextlib.suppress(KeyError):
                    self._poll.unregister(self._writer)
            os.close(self._writer)
            self._writer = -1


class Gathered:
    """Output kept up to a limit for each stream; the rest is counted and thrown away.

    Attributes:
        head: how the output of all streams begins, whatever the limit is.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # One buffer each: a list of parts would cost a hundred times a program's single bytes.
        self._kept = {"stdout": bytearray(), "stderr": bytearray()}
        self.truncated: bool = False
        self.head: bytes = b""

    def add(self, stream: str, data: bytes) -> None:
        if len(self.head) < _HEAD_BYTES:
            self.head += data[: _HEAD_BYTES - len(self.head)]
        kept = self._kept[stream]
        room = self._limit - len(kept)
        if len(data) > room:
            self.truncated = True
            data = data[:room]
        kept += data

    def of(self, stream: str) -> bytes:
        return bytes(self._kept[stream])
