"""What several processes do in one home at the same time. Each is a program of its own."""

from __future__ import annotations

import hashlib
import os
import random
import time
from pathlib import Path

from sandboxsdk import Home, Task
from sandboxsdk.model import VerifyReport

from .stage import STATES, close, opened, write_state


def tell(*facts: str) -> None:
    """Say something in one write, which a kill does not part."""
    os.write(1, (" ".join(facts) + "\n").encode())


def work(home_path: str, task_id: str, directory: str, seed: str) -> None:
    """Make checkpoints of changing files, and delete some, until killed."""
    chance = random.Random(seed)
    with opened(home_path) as home:
        task = Task.open(task_id, home=home)
        with task.attach():
            history = task.checkpoint_history()
            while True:
                state = chance.choice(list(STATES))
                unique = chance.randbytes(20_000)
                write_state(Path(directory), state)
                _add(Path(directory), unique)
                made = history.take(state)
                tell("made", made.id, made.tree, state, hashlib.sha256(unique).hexdigest())
                known = history.list()
                if len(known) > 4:
                    gone = chance.choice(known)
                    tell("going", gone.id)
                    gone.delete()
                    tell("gone", gone.id)
                if chance.random() < 0.2:
                    # The pack is free for whoever comes first, a new one of this kind or another.
                    close(home)
                    time.sleep(0.02)


def _add(directory: Path, unique: bytes) -> None:
    """Add a file that no other checkpoint has; the directory looks as before."""
    about = directory.stat()
    (directory / "unique").write_bytes(unique)
    os.utime(directory, ns=(about.st_mtime_ns, about.st_mtime_ns))


def collect(home_path: str) -> None:
    """Collect garbage and verify, again and again, until killed."""
    while True:
        with opened(home_path) as home:
            for _ in range(3):
                report = home.gc()
                tell("collected", str(len(report.deleted)), str(len(report.rewritten)))
            _verified(home)


def _verified(home: Home) -> None:
    report: VerifyReport = home.verify("content")
    tell("verified", "ok" if report.ok else f"NOT {report}".replace("\n", "|"))
