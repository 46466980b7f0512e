"""Killing a program before its n-th system call of a kind, many times, at little cost.

One strace watches one server, which forks a child for each run: starting Python and importing the
library again for each would take most of the time. strace kills a process at the limit-th call of
one kind of one of its threads. So that this is the n-th call of the operation, the thread first
makes limit - n calls of that kind that do nothing.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .boxes import BOX_OPERATIONS
from .stage import OPERATIONS, Stage
from .tracing import MARKS_BEGIN, environment, strace, until

# Calls at which there is something to lose, with their numbers on x86_64 and elsewhere.
_NUMBERS = {
    "openat": (257, 56),
    "openat2": (437, 437),
    "pwrite64": (18, 68),
    "write": (1, 64),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "syncfs": (306, 267),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "linkat": (265, 37),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rmdir": (84, None),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "ftruncate": (77, 46),
    "flock": (73, 32),
    "fcntl": (72, 25),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chmod": (90, None),
    "fchownat": (260, 54),
    "utimensat": (280, 88),
    "symlinkat": (266, 36),
}
_MACHINE = int(os.uname().machine != "x86_64")
CALLS = [name for name, numbers in _NUMBERS.items() if numbers[_MACHINE] is not None]


_PR_SET_PTRACER = 0x59616D61


class Point(NamedTuple):
    """Where to kill: before this call (from 1) of this kind, in this thread (0 is the main one)."""

    thread: int
    call: str
    number: int


class Server:
    """A traced program that runs operations in children of its own."""

    def __init__(self, channel: socket.socket, limits: dict[str, int]) -> None:
        self._channel, self._limits = channel, limits

    def run(
        self, operation: str, stage: Stage, point: Point | None = None
    ) -> tuple[int, list[list[Any]]]:
        """Run an operation; gives its status as waitpid does, and what it told."""
        limit = 0 if point is None else self._limits[point.call]
        request = {"operation": operation, "stage": stage.facts(), "point": point, "limit": limit}
        self._channel.send(json.dumps(request).encode())
        told: list[list[Any]] = []
        while True:
            data = self._channel.recv(1 << 16)
            assert data, "the server is gone"
            message = json.loads(data)
            if isinstance(message, int):
                return message, told
            told.append(message)


@contextlib.contextmanager
def serving(limits: dict[str, int], *, log: Path | None = None) -> Iterator[Server]:
    """Start a server and watch it by strace.

    Args:
        limits: of which number each kind of call kills. No process may reach it by itself.
        log: nobody is killed, and all calls are written there.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(100)
    place = str(Path(__file__).resolve().parents[1])
    around = environment()
    around["PYTHONPATH"] = os.pathsep.join((place, around["PYTHONPATH"]))
    code = f"from crash.killing import serve; serve({theirs.fileno()})"
    with ours, contextlib.ExitStack() as stack:
        program = stack.enter_context(
            _ended(
                subprocess.Popen(
                    [sys.executable, "-c", code], pass_fds=[theirs.fileno()], env=around
                )
            )
        )
        theirs.close()
        assert ours.recv(100), "the server did not start"
        command = [strace(), "-f", "-qq", "-e", f"trace={','.join(CALLS)}", "-p", str(program.pid)]
        if log is None:
            # Not with --seccomp-bpf: some versions of strace inject nothing then.
            command += ["-o", "/dev/null"]
            for call, limit in limits.items():
                command += ["-e", f"inject={call}:signal=SIGKILL:when={limit}"]
        else:
            command += ["-o", str(log)]
        watcher = stack.enter_context(_ended(subprocess.Popen(command)))
        until(lambda: _is_traced(program.pid) or watcher.poll() is not None)
        yield Server(ours, limits)
        ours.close()


@contextlib.contextmanager
def _ended(program: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    with program:
        try:
            yield program
            program.wait(20)
        finally:
            program.kill()


def _is_traced(process: int) -> bool:
    with open(f"/proc/{process}/status", encoding="ascii") as file:
        return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in file)


def count(log: Path) -> tuple[dict[tuple[int, str], int], dict[str, int]]:
    """Tell from a trace how many calls of each kind each thread of an operation made, and limits
    that no thread of any process reached.
    """
    threads: dict[str, int] = {}
    counted: Counter[tuple[int, str]] = Counter()
    of_all: Counter[tuple[str, str]] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        found = re.match(r"(\d+) +(\w+)\((\d*)", line)
        if found is None:
            continue
        who, name, first = found.groups()
        of_all[who, name] += 1
        if name == "fdatasync" and first.isdigit() and int(first) >= MARKS_BEGIN:
            threads[who] = int(first) - MARKS_BEGIN
        elif who in threads:
            counted[threads[who], name] += 1
    limits = dict.fromkeys(CALLS, 20)
    for (_, name), number in of_all.items():
        if name not in limits:
            continue  # It lost step with a thread, as it says itself.
        limits[name] = max(limits[name], number + 20)
    return dict(counted), limits


# --- The program ----------------------------------------------------------------------------------


def serve(channel: int) -> None:
    """Run what is asked for, in a child each, until the other end is closed.

    Nothing here makes a call of those that are counted.
    """
    connection = socket.socket(fileno=channel)
    # Nothing is imported for the first time in a child.

    # So that a strace that did not start this may watch it (Yama); elsewhere it means nothing.
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
    connection.send(b"ready")
    while data := connection.recv(1 << 16):
        request = json.loads(data)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _act(connection, request)
                status = 0
            except BaseException as error:
                connection.send(json.dumps(["error", f"{type(error).__name__}: {error}"]).encode())
            finally:
                os._exit(status)
        connection.send(json.dumps(os.waitpid(child, 0)[1]).encode())


def _act(connection: socket.socket, request: dict[str, Any]) -> None:
    stage = Stage.from_facts(request["stage"])
    point = None if request["point"] is None else Point(*request["point"])
    begin = _beginning(point, request["limit"])
    started = threading.Thread.run
    numbers = iter(range(1, 1_000))
    guard = threading.Lock()

    def run(thread: threading.Thread) -> None:
        with guard:
            number = next(numbers)
        begin(number)
        started(thread)

    def start(function: Callable[..., object], arguments: tuple[Any, ...]) -> int:
        def counted() -> None:
            with guard:
                number = next(numbers)
            begin(number)
            function(*arguments)

        return start_new_thread(counted, ())

    threading.Thread.run = run  # type: ignore[method-assign]
    # What `threading` itself starts threads with is not looked up here.
    start_new_thread = _thread.start_new_thread
    _thread.start_new_thread = start  # type: ignore[assignment]
    begin(0)
    {**OPERATIONS, **BOX_OPERATIONS}[request["operation"]].run(
        stage, lambda *facts: connection.send(json.dumps(facts).encode())
    )


def _beginning(point: Point | None, limit: int) -> Callable[[int], None]:
    """Give what each thread does first, by its number."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    minus = ctypes.c_long(-1)

    def begin(thread: int) -> None:
        if point is None:
            with contextlib.suppress(OSError):
                os.fdatasync(MARKS_BEGIN + thread)
        elif point.thread == thread:
            number = _NUMBERS[point.call][_MACHINE]
            for _ in range(limit - point.number):
                call(ctypes.c_long(number), minus, minus, minus, minus, minus, minus)

    return begin
