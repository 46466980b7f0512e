"""Trying many candidates, each in a fork of one prepared workspace, beside a copy for each."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from sandboxsdk.home import Home
from sandboxsdk.sandbox import Sandbox
from sandboxsdk.task import Task

from .bench_checkpoint import copied
from .bench_layers import scratch_beside
from .measuring import Figure, Taken, disk_used

_COPIES = 5
_PREPARE = "mkdir -p built && for n in 1 2 3 4 5 6 7 8 9; do echo $n > built/$n; done"
# The score is a number on stdout; the work itself is next to nothing, so what shows is the rest.
_TRY = ["sh", "-c", "cat built/5 candidate.txt | cksum | cut -d ' ' -f 1"]


def candidates(base: str, home: Home, *, bwrap: str, count: int) -> list[Figure]:
    """Try `count` candidates and apply the best; the peer does so five times, scaled up."""
    with scratch_beside(home) as scratch:
        directory = copied(base, scratch / "directory")  # It is applied to.
        taken = Taken()
        before = disk_used(home.path)
        began = time.perf_counter()
        task = Task.create("bench", workspace=directory, home=home)
        with Sandbox(task) as box:
            box.exec(_PREPARE, check=True)
            box.checkpoint("prepared")
            taken.note("prepare: create, exec, checkpoint", "private", _since(began))
            trying = time.perf_counter()
            best = None
            for number in range(count):
                one = time.perf_counter()
                with box.fork()[0] as fork:
                    fork.files.write("candidate.txt", f"candidate {number}\n")
                    score = int(fork.exec(_TRY, check=True).stdout)
                    if best is None or score > best[0]:
                        best = (score, fork.checkpoint())
                taken.note("one candidate", "fork", _since(one))
            tried = _since(trying)
            assert best is not None
            kept = best[1]
            taken.timed("restore the best", "private", lambda: box.restore(kept))
        taken.timed("apply it", "private", task.apply)
        total = _since(began)
        used = disk_used(home.path) - before
        assert (Path(directory) / "candidate.txt").is_file()
        task.delete()
        copies = _by_copies(base, scratch, _alone(bwrap), taken)
    title = f"{count:,} candidates"
    figures = taken.figures("cp -a")
    scaled = copies / _COPIES * count
    note = f"  (scaled from {_COPIES})"
    return [
        *figures,
        Figure(f"{title}: forks", tried, tried / scaled, "cp -a"),
        Figure(f"{title}: cp -a and bare bwrap", scaled, note=note),
        Figure(f"{title}: from create to applied", total),
        Figure(f"{title}: disk taken in the home", used / 1024, unit="KiB"),
    ]


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def _by_copies(base: str, scratch: Path, alone: Callable[[str], int], taken: Taken) -> float:
    """Give the milliseconds of all copies together."""
    prepared = copied(base, scratch / "prepared")
    subprocess.run(["sh", "-c", _PREPARE], check=True, cwd=prepared)
    began = time.perf_counter()
    for number in range(_COPIES):
        one = time.perf_counter()
        copy = Path(copied(prepared, scratch / f"candidate-{number}"))
        (copy / "candidate.txt").write_text(f"candidate {number}\n")
        alone(str(copy))
        shutil.rmtree(copy)
        taken.note("one candidate", "cp -a", _since(one))
    return _since(began)


def _alone(bwrap: str) -> Callable[[str], int]:
    """Give what tries the candidate in a directory, in bubblewrap alone."""
    command = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--setenv", "PATH", "/usr/bin:/bin", "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "lib", "lib64"):
        command += ["--symlink", f"usr/{name}", f"/{name}"]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]

    def tried(directory: str) -> int:
        words = [*command, "--bind", directory, "/workspace", "--chdir", "/workspace", "--", *_TRY]
        return int(subprocess.run(words, check=True, capture_output=True).stdout)

    return tried
