"""What a fork and giving changes back cost on a tree, beside copying it and beside git."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sandboxsdk.home import Home
from sandboxsdk.model import ApplyReport
from sandboxsdk.sandbox import Sandbox
from sandboxsdk.task import Task

from .measuring import Figure, in_turns

_CHANGED = 20


def forks(base: str, home: Home, *, rounds: int) -> list[Figure]:
    """Time making a fork, and a fork with its first command, against a copy of the tree."""
    with Sandbox(base, home=home) as box, tempfile.TemporaryDirectory(dir=home.path) as scratch:
        box.exec("echo x > new.txt", check=True)
        box.checkpoint()
        numbers = itertools.count()

        def used() -> None:
            with box.fork()[0] as fork:
                fork.exec(["true"], check=True)

        def copied() -> None:
            target = f"{scratch}/{next(numbers)}"
            subprocess.run(["cp", "-a", base, target], check=True)
            shutil.rmtree(target)

        doers = {"box.fork()": box.fork, "box.fork(), first command, end": used}
        return in_turns({**doers, "cp -a, and removing it": copied}, rounds=rounds, warm=1)


def applying(base: str, home: Home, *, rounds: int) -> list[Figure]:
    """Time apply and undo of 20 changed files, against git bringing the same from one clone to
    another and taking it back.
    """
    with _copies(base, home) as (ours, source, target):
        names = [
            p
            for p in sorted(ours.rglob("*.py")) + sorted(ours.rglob("*.c"))
            if not p.is_symlink() and p.is_file()
        ]
        paths = [str(path.relative_to(ours)) for path in names[:_CHANGED]]
        task = Task.create("bench", workspace=str(ours), home=home)
        with Sandbox(task) as box:
            for path in paths:
                box.exec(["sh", "-c", 'echo x >> "$0"', path], check=True)
        for path in paths:
            with open(source / path, "a") as file:
                file.write("x\n")
        reports: list[ApplyReport] = []
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}

        def git(*words: str) -> None:
            command = f"git -C {source} diff | git -C {target} apply {' '.join(words)} -"
            subprocess.run(["sh", "-c", command], check=True, env=environment)

        figures: list[Figure] = []
        figures += in_turns(
            {
                "task.apply() and undo()": lambda: reports.append(task.apply().undo()),
                "git diff | git apply, and -R": lambda: (git(), git("-R")),
            },
            rounds=rounds,
            warm=1,
        )
        assert len(reports[0].changes) == len(paths)
        task.delete()
    return figures


@contextmanager
def _copies(base: str, home: Home) -> Iterator[tuple[Path, Path, Path]]:
    """Give three copies of the tree; two of them are committed to git."""
    with tempfile.TemporaryDirectory(dir=Path(home.path).parent) as scratch:
        made = [Path(scratch) / name for name in ("ours", "source", "target")]
        for copy in made:
            subprocess.run(["cp", "-a", base, str(copy)], check=True)
        named = ["-c", "user.name=n", "-c", "user.email=a@b", "-c", "gc.auto=0"]
        for copy in made[1:]:
            for words in (["init", "-q"], ["add", "-Af"], [*named, "commit", "-qm", "base"]):
                subprocess.run(["git", "-C", str(copy), *words], check=True)
        yield made[0], made[1], made[2]
