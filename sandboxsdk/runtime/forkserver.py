"""The caller's end of the fork server: one per process, started at the first box, gone with the
process.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Sequence
from typing import Any

from sandboxsdk import holder
from sandboxsdk.errors import HostRefused
from sandboxsdk.host import Program, start_python

_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from sandboxsdk.holder.program import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)
_guard = threading.Lock()
_server: ForkServer | None = None


class ForkServer:
    """A small process that forks holders, so that the caller, however large, never forks."""

    def __init__(self) -> None:
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        self.pid: int = os.getpid()
        self._channel, theirs = holder.pair()
        owner = os.pidfd_open(self.pid)
        try:
            keep = (theirs.fileno(), owner)
            self._program: Program = start_python(_START, [package, *map(str, keep)], keep)
        finally:
            theirs.drop()
            os.close(owner)

    def enter(self, message: dict[str, Any], descriptors: Sequence[int]) -> None:
        self._channel.send(message, descriptors)

    def alive(self) -> bool:
        return self._program.alive()

    def stop(self) -> None:
        """Hang up; it goes when its last holder is gone."""
        self._channel.close()
        # With a box open it stays until we are gone; then there is nothing to wait for.
        self._program.wait(0.1)

    def forget(self) -> None:
        """In a forked child: leave the parent's server alone."""
        self._channel.drop()
        self._program.disown()


def fork_server() -> ForkServer:
    """Give this process's fork server, starting it if there is none that works.

    Raises:
        HostRefused: it could not be started.
    """
    global _server  # noqa: PLW0603 - a process has one fork server
    with _guard:
        if _server is not None and _server.pid != os.getpid():
            _server.forget()
            _server = None
        if _server is not None and not _server.alive():
            _server.stop()
            _server = None
        if _server is None:
            try:
                _server = ForkServer()
            except OSError as error:
                raise HostRefused(
                    what="start", path="the fork server", reason=str(error)
                ) from error
            atexit.register(_stop, _server)
        return _server


def _stop(server: ForkServer) -> None:
    if server.pid == os.getpid():
        server.stop()
