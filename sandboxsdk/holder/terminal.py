"""A terminal for a command: made in the box's own devpts, led by a process that Ctrl-C does not
kill.

A terminal's signals go to every process of the foreground group, bubblewrap among them, and a
session whose leader dies gets SIGHUP. So the leader here is a process of ours: it ignores those
signals, is the reaper of what bubblewrap leaves, and ends when the command's init is dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import struct
import termios
from typing import Any, NoReturn

from sandboxsdk import syscalls as sc

from .enclosure import BOX

_TIOCSPTLCK = 0x40045431
_TIOCGPTN = 0x80045430
FROM_TERMINAL = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGHUP,
)


def open_terminal(spec: dict[str, Any]) -> tuple[int, int]:
    """Give the two ends (master, slave) of a new terminal that the box sees as /dev/pts/N."""
    if spec["plain"]:
        return os.openpty()
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    master = os.open(f"{BOX}/dev/pts/ptmx", flags)
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        (number,) = struct.unpack("I", fcntl.ioctl(master, _TIOCGPTN, bytes(4)))
        slave = os.open(f"{BOX}/dev/pts/{number}", flags)
        os.fchown(slave, spec["uid"], spec["gid"])
        # What it has until the caller says another.
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("=HHHH", 24, 80, 0, 0))
    except BaseException:
        os.close(master)
        raise
    return master, slave


def lead(status: int) -> None:
    """Become the session's leader on standard input; returns only in a child, which is to be the
    command.
    """
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    sc.prctl(sc.PR_SET_CHILD_SUBREAPER)
    command = os.fork()
    if command == 0:
        return
    for number in FROM_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    for descriptor in (0, 1, 2):
        # The terminal hangs up when its last user is gone, and that is not us.
        os.close(descriptor)
    _wait(command, status)


def _wait(command: int, status: int) -> NoReturn:
    interrupted = False
    while True:
        try:
            pid, ended = os.wait()
        except ChildProcessError:
            os._exit(0)
        if pid == command:
            interrupted = os.WIFSIGNALED(ended)
            if not interrupted:
                _kill_children()
        elif interrupted and os.WIFEXITED(ended):
            # The init, which ends with the program's own code; bubblewrap cannot say it any more.
            said = {"exit-code": os.WEXITSTATUS(ended)}
            os.write(status, b"\n" + json.dumps(said).encode() + b"\n")


def _kill_children() -> None:
    with contextlib.suppress(OSError):
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            for child in file.read().split():
                os.kill(int(child), signal.SIGKILL)
