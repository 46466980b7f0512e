"""Starting programs of the host, environment variables and facts about this process.

Owner of subprocess.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from sandboxsdk.errors import HostRefused


def environment(name: str) -> str | None:
    """Read one variable of the caller's environment."""
    return os.environ.get(name)


def start_python(code: str, arguments: Sequence[str], keep: Sequence[int]) -> Program:
    """Start this interpreter, isolated and without site-packages, in a session of its own.

    `keep` are the descriptors it inherits. It is started by vfork and exec, so the size of this
    process does not matter, and it gets no signal from our terminal.

    Raises:
        HostRefused: it could not be started.
    """
    if not sys.executable:
        reason = "this process does not know its own interpreter"
        raise HostRefused(what="start", path="python", reason=reason)
    try:
        process = subprocess.Popen(
            # -B as the caller has it: an environment variable would not get through.
            [sys.executable, "-IBS" if sys.dont_write_bytecode else "-IS", "-c", code, *arguments],
            pass_fds=keep,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
            env={},
        )
    except OSError as error:
        raise HostRefused(what="start", path=sys.executable, reason=error.strerror) from error
    return Program(process)


class Program:
    """A helper program of ours that runs beside the caller."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def alive(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout: float) -> None:
        """Wait for its end, at most `timeout` seconds, then let it be."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.returncode = 0  # Not ours to complain about at interpreter exit.

    def disown(self) -> None:
        """In a forked child: this is the parent's program, not ours."""
        self._process.returncode = 0


def output_of(arguments: Sequence[str], *, timeout: float = 10.0) -> str | None:
    """Run a trusted program of the host and give what it prints; None when it fails or is not
    there.
    """
    try:
        done = subprocess.run(
            list(arguments),
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def boot_id() -> str:
    """Identify this boot of the kernel; empty where it cannot be told."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def host_name() -> str:
    """Give this machine's name, for people to read."""
    return socket.gethostname()


def command_line() -> str:
    """Give the program's name, without its arguments: those may hold secrets."""
    return os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python"
