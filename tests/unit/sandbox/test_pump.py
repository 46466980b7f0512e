"""Moving bytes between a caller and a command, here over plain pipes with this test as command."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxsdk.runtime import Ended
from sandboxsdk.sandbox.pump import Gathered, Pump


class Command:
    """The command's side: what it prints, what it reads, and that it is over."""

    def __init__(self) -> None:
        self._news, self._says_news = os.pipe()
        out, self.stdout = os.pipe()
        err, self.stderr = os.pipe()
        self.stdin, self.writer = os.pipe()
        self.readers = {out: "stdout", err: "stderr"}
        self.open = {self.stdout, self.stderr, self.stdin}
        self.closed = False
        self.pid = 0
        self.terminal = -1

    def fileno(self) -> int:
        return self._news

    def news(self) -> Ended | None:
        return Ended(started=True, exit_code=0) if os.read(self._news, 1) == b"e" else None

    def await_start(self) -> Ended | None:
        return None

    def kill(self) -> None:
        self.end()

    def close(self) -> None:
        self.closed = True

    def say(self, news: bytes) -> None:
        os.write(self._says_news, news)

    def end(self) -> None:
        self.close_streams(*self.open)
        self.say(b"e")

    def close_streams(self, *descriptors: int) -> None:
        for descriptor in descriptors:
            self.open.discard(descriptor)
            os.close(descriptor)


@pytest.fixture
def command():
    made = Command()
    yield made
    made.close_streams(*made.open)
    os.close(made._news)
    os.close(made._says_news)


@pytest.fixture
def pumped(command):
    got: list[tuple[str, bytes]] = []
    pump = Pump(command, command.readers, command.writer, lambda *chunk: got.append(chunk))
    yield command, pump, got
    pump.close()


def text(got: list[tuple[str, bytes]], stream: str) -> bytes:
    return b"".join(data for name, data in got if name == stream)


def test_hands_over_each_stream(pumped):
    """What is printed arrives under the name of its stream, and news alone end nothing."""
    command, pump, got = pumped
    os.write(command.stdout, b"out")
    os.write(command.stderr, b"err")
    command.say(b"x")
    assert pump.step(10) is False
    assert (text(got, "stdout"), text(got, "stderr")) == (b"out", b"err")
    assert pump.ended is None


def test_drains_what_is_left_at_the_end(pumped):
    """Output that lies in the pipes when the command is over is not lost."""
    command, pump, got = pumped
    os.write(command.stdout, b"last words")
    command.end()
    while not pump.step(10):
        pass
    assert text(got, "stdout") == b"last words"
    assert pump.ended == Ended(started=True, exit_code=0)


def test_does_not_wait_for_strangers(pumped):
    """A pipe that somebody else still holds open, and even fills, does not keep the end away."""
    command, pump, _got = pumped
    stop = threading.Event()
    os.set_blocking(command.stdout, False)

    def fill() -> None:
        while not stop.is_set():
            try:
                os.write(command.stdout, b"x" * 65536)
            except BlockingIOError:
                pass
            except OSError:
                return

    stranger = threading.Thread(target=fill)
    stranger.start()
    try:
        command.say(b"e")
        while not pump.step(10):
            pass
    finally:
        stop.set()
        stranger.join()
    assert pump.ended is not None


def test_closed_streams_are_no_end(pumped):
    """A command that closes its output goes on; the pump waits without turning in circles."""
    command, pump, _got = pumped
    command.close_streams(command.stdout, command.stderr)
    assert pump.step(10) is False
    assert pump.step(0.01) is False
    command.end()
    assert pump.step(10) is True


def test_feeds_more_than_a_pipe_holds(pumped):
    """Input of any size is written as it is read, and end of file follows."""
    command, pump, _got = pumped
    data = os.urandom(1024 * 1024)
    taken = bytearray()

    def read() -> None:
        while chunk := os.read(command.stdin, 65536):
            taken.extend(chunk)
        command.end()

    reader = threading.Thread(target=read)
    reader.start()
    pump.feed(data[:1000], last=False)
    pump.feed(data[1000:], last=True)
    while not pump.step(10):
        pass
    reader.join()
    assert bytes(taken) == data
    assert pump.unwritten == 0


def test_input_that_nobody_reads(pumped):
    """A command that closes its input, or never reads it, ends like any other; what is written
    later is dropped.
    """
    command, pump, _got = pumped
    pump.feed(b"x" * 1024 * 1024, last=False)
    assert pump.unwritten > 0
    command.close_streams(command.stdin)
    assert pump.step(10) is False
    assert pump.unwritten == 0
    pump.feed(b"more", last=True)
    assert pump.unwritten == 0
    command.end()
    assert pump.step(10) is True


def test_wakes_for_a_watched_descriptor(pumped):
    """A step returns when a descriptor that was added turns readable."""
    _command, pump, _got = pumped
    reader, writer = os.pipe()
    pump.watch(reader)
    os.write(writer, b"!")
    assert pump.step(60) is False
    os.close(reader)
    os.close(writer)


def test_an_exception_of_the_callback_passes_through(command):
    """What the callback raises reaches the caller, who can still end the command."""

    def angry(_stream: str, _data: bytes) -> None:
        raise ZeroDivisionError

    pump = Pump(command, command.readers, command.writer, angry)
    os.write(command.stdout, b"x")
    with pytest.raises(ZeroDivisionError):
        pump.step(10)
    command.kill()
    pump.finish_killed()
    assert pump.ended is not None
    pump.close()


def open_descriptors() -> set[str]:
    """Give those of this process; that of the listing itself is closed by the second look."""
    return {
        name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")
    }


def test_close_leaves_no_descriptor(command):
    """After close every descriptor that the pump was given is closed, and the command is told."""
    given = {str(descriptor) for descriptor in (*command.readers, command.writer)}
    before = open_descriptors()
    pump = Pump(command, command.readers, command.writer, lambda *_: None)
    pump.feed(b"x" * 1024 * 1024, last=True)
    pump.close()
    assert command.closed
    # Those that other tests have left may go at any time.
    assert open_descriptors() <= before - given


@given(
    chunks=st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=20))),
    limit=st.integers(0, 60),
)
def test_gathers_up_to_a_limit(chunks, limit):
    """Each stream keeps its first bytes up to the limit, and says whether something is missing."""
    gathered = Gathered(limit)
    for chunk in chunks:
        gathered.add(*chunk)
    whole = {name: text(chunks, name) for name in ("stdout", "stderr")}
    for name, data in whole.items():
        assert gathered.of(name) == data[:limit]
    assert gathered.truncated == any(len(data) > limit for data in whole.values())
    assert gathered.head == b"".join(data for _name, data in chunks)
