"""Messages between the caller, the fork server and the holders: JSON and descriptors over
SOCK_SEQPACKET.

A message that is too large for one packet travels in a memfd, so the size of a command line is
bounded by the kernel's limit on arguments and by nothing here.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

# A packet must fit the smallest default socket buffer; what is larger goes through a memfd.
_PACKET_BYTES_MAX = 32 * 1024
_DESCRIPTORS_MAX = 32


class Channel:
    """One end of a packet socket that carries JSON objects and descriptors."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one message; the descriptors stay open on this side."""
        data = json.dumps(message).encode()
        spill = -1
        if len(data) > _PACKET_BYTES_MAX:
            spill = os.memfd_create("message", os.MFD_CLOEXEC)
            with os.fdopen(os.dup(spill), "wb") as file:
                file.write(data)
            data = b"memfd"
            descriptors = [spill, *descriptors]
        try:
            rights = array.array("i", descriptors)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
            self._socket.sendmsg([data], ancillary)
        finally:
            if spill >= 0:
                os.close(spill)

    def receive(self, *, retried: bool = False) -> tuple[dict[str, Any], list[int]] | None:
        """Wait for one message; None when the other end is gone."""
        room = socket.CMSG_SPACE(_DESCRIPTORS_MAX * 4)
        try:
            data, ancillary, _flags, _address = self._socket.recvmsg(
                _PACKET_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            # The other end went without having read ours; its own last words may wait here still.
            if retried:
                return None
            return self.receive(retried=True)
        descriptors = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(payload[: len(payload) - len(payload) % 4])
        if not data:
            return None
        found = list(descriptors)
        if data == b"memfd":
            spill = found.pop(0)
            with os.fdopen(spill, "rb") as file:
                file.seek(0)
                data = file.read()
        return json.loads(data), found

    def close(self) -> None:
        """End the conversation, also for a forked child that has a copy of this end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def drop(self) -> None:
        """Let go of this end without ending the conversation: somebody else has it now."""
        self._socket.close()


def pair() -> tuple[Channel, Channel]:
    """Make the two ends of a conversation."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    return Channel(one), Channel(other)


def adopt(descriptor: int) -> Channel:
    """Make a channel of a descriptor that arrived in a message."""
    return Channel(socket.socket(fileno=descriptor))
