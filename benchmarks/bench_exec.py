"""What a command costs: exec against bare bubblewrap, spawn from a large process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator

from sandboxsdk.home import Home
from sandboxsdk.sandbox import Sandbox
from sandboxsdk.task import Task

from .measuring import Figure, in_turns

_LARGE_BYTES = 1024**3


def exec_true(
    base: str, home: Home, *, bwrap: str, rounds: int, pause: float = 0.0
) -> list[Figure]:
    """Time exec of `true` in an open box, against bubblewrap doing the same for itself."""
    with _box(base, home) as box, tempfile.TemporaryDirectory(dir=home.path) as scratch:
        return in_turns(
            {
                "box.exec(['true'])": lambda: box.exec(["true"], check=True),
                "bwrap --overlay ... true": bare(bwrap, base, scratch),
            },
            rounds=rounds,
            pause=pause,
        )


def spawn_large(base: str, home: Home, *, rounds: int) -> list[Figure]:
    """Time spawn from a process of 1 GiB, against what fork with a preexec_fn costs there."""
    ballast = bytearray(_LARGE_BYTES)
    for page in range(0, len(ballast), 4096):
        ballast[page] = 1

    def forked() -> None:
        # Any preexec_fn makes subprocess fork, which copies the page tables of 1 GiB.
        subprocess.run(["true"], check=True, preexec_fn=os.getpid)

    with _box(base, home) as box:

        def spawned() -> None:
            with box.spawn(["sleep", "60"]):
                pass

        figures = in_turns(
            {
                "box.spawn, and its end, from 1 GiB": spawned,
                "subprocess with preexec_fn, from 1 GiB": forked,
            },
            rounds=rounds,
        )
    del ballast
    return figures


@contextlib.contextmanager
def _box(base: str, home: Home) -> Iterator[Sandbox]:
    task = Task.create("benchmark", workspace=base, home=home)
    try:
        with Sandbox(task) as box:
            box.exec(["true"], check=True)
            yield box
    finally:
        task.delete()


def bare(bwrap: str, base: str, scratch: str) -> Callable[[], object]:
    """Give what runs `true` in bubblewrap alone, on an overlay of `base`."""
    upper, work = f"{scratch}/upper", f"{scratch}/work"
    os.mkdir(upper)
    os.mkdir(work)
    command = [bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--uid", "1000"]
    command += ["--gid", "1000", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    command += ["--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "lib", "lib64"):
        command += ["--symlink", f"usr/{name}", f"/{name}"]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--dir", "/home/sandbox"]
    command += ["--overlay-src", base, "--overlay", upper, work, "/workspace"]
    command += ["--chdir", "/workspace", "--", "true"]
    return lambda: subprocess.run(command, check=True, capture_output=True)
