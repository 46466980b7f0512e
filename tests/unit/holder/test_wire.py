"""Messages and descriptors between the caller, the fork server and the holders."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxsdk.holder import Channel, adopt, pair

WORDS = st.text() | st.text(st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | WORDS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=20,
)


@pytest.fixture
def ends():
    one, other = pair()
    yield one, other
    for end in (one, other):
        end.close()


def descriptors_open() -> int:
    return len(os.listdir("/proc/self/fd"))


@settings(max_examples=50)
@given(message=st.dictionaries(st.text(), VALUES, max_size=5))
def test_gives_back_what_was_sent(message):
    """Any JSON object arrives as it was sent, with names that are not UTF-8 among it."""
    one, other = pair()
    try:
        one.send(message)
        assert other.receive() == (message, [])
    finally:
        one.close()
        other.close()


@pytest.mark.parametrize("size", [0, 32 * 1024 - 11, 32 * 1024 - 9, 32 * 1024, 5_000_000])
def test_carries_messages_of_any_size(ends, size):
    """A message that does not fit one packet arrives whole, and no descriptor of it stays."""
    one, other = ends
    before = descriptors_open()
    one.send({"x": "y" * size})
    assert other.receive() == ({"x": "y" * size}, [])
    assert descriptors_open() == before


@pytest.mark.parametrize("size", [1, 100_000])
def test_passes_descriptors_in_order(ends, size):
    """Descriptors arrive in the order they were sent, close-on-exec, beside a message of any
    size, and stay open with the sender.
    """
    one, other = ends
    pipes = [os.pipe() for _ in range(5)]
    writers = [writer for _reader, writer in pipes]
    one.send({"x": "y" * size}, writers)
    received = other.receive()
    assert received is not None
    _message, found = received
    assert len(found) == 5
    for number, descriptor in enumerate(found):
        assert not os.get_inheritable(descriptor)
        os.write(descriptor, str(number).encode())
        os.close(descriptor)
    for number, (reader, writer) in enumerate(pipes):
        os.write(writer, b"!")
        assert os.read(reader, 10) == f"{number}!".encode()
        os.close(reader)
        os.close(writer)


def test_keeps_messages_apart(ends):
    """Each receive gives one message, however many are waiting."""
    one, other = ends
    for number in range(20):
        one.send({"number": number})
    assert [other.receive() for _ in range(20)] == [({"number": n}, []) for n in range(20)]


def test_tells_the_end(ends):
    """A closed other end is no message, however often one asks."""
    one, other = ends
    one.send({"last": True})
    one.close()
    assert other.receive() == ({"last": True}, [])
    assert [other.receive() for _ in range(3)] == [None, None, None]


def test_last_words_survive_what_was_never_read(ends):
    """When an end closes without having read everything, what it said last can still be received:
    at the latest by asking once more.
    """
    one, other = ends
    other.send({"unread": True})
    one.send({"last": True})
    one.close()
    received = other.receive() or other.receive()
    assert received == ({"last": True}, [])
    assert other.receive() is None


def test_close_ends_the_conversation_for_copies_too(ends):
    """`close` tells the other end at once, although a copy of the descriptor is open elsewhere."""
    one, other = ends
    copy = os.dup(one.fileno())
    one.close()
    assert other.receive() is None
    os.close(copy)


def test_drop_leaves_the_conversation_to_copies(ends):
    """`drop` only lets go: whoever has the end now goes on with it."""
    one, other = ends
    heir = adopt(os.dup(one.fileno()))
    one.drop()
    heir.send({"from": "heir"})
    assert other.receive() == ({"from": "heir"}, [])
    other.send({"to": "heir"})
    assert heir.receive() == ({"to": "heir"}, [])
    heir.close()
    assert other.receive() is None


def test_sending_to_nobody_is_an_error(ends):
    """A message to an end that is gone raises, and leaks nothing."""
    one, other = ends
    other.close()
    before = descriptors_open()
    for size in (1, 100_000):
        with pytest.raises(OSError):
            one.send({"x": "y" * size})
    assert descriptors_open() == before


def test_adopts_what_arrived_in_a_message(ends):
    """A channel may be sent over a channel, and works at the other side."""
    one, other = ends
    mine, theirs = pair()
    one.send({"here": "it is"}, [theirs.fileno()])
    theirs.drop()
    received = other.receive()
    assert received is not None
    adopted = adopt(received[1][0])
    assert isinstance(adopted, Channel)
    mine.send({"hello": 1})
    assert adopted.receive() == ({"hello": 1}, [])
    mine.close()
    adopted.close()


def test_is_a_packet_socket(ends):
    """The descriptor of a channel is a local packet socket, which no child inherits."""
    one, _other = ends
    with socket.socket(fileno=os.dup(one.fileno())) as seen:
        assert (seen.family, seen.type) == (socket.AF_UNIX, socket.SOCK_SEQPACKET)
    assert not os.get_inheritable(one.fileno())
