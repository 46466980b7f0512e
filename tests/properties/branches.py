"""Boxes of both kinds with the same files, compared with what the files should be."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sandboxsdk import Checkpoint, Sandbox, Task

from . import taking
from .naive import Files, Seen, Told, differences, shown

ROOT = os.geteuid() == 0
KINDS = ("overlay", "copy")
COMMAND = ["python3", "-IS", "-c", Path(taking.__file__).read_text(encoding="utf-8")]


@contextmanager
def returning() -> Iterator[None]:
    """Come back to the present directory after the block, whoever acts in it."""
    back = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        yield
    finally:
        os.chdir(back)
        os.close(back)


def on_the_host(directory: Path, steps: list[list[Any]]) -> Seen:
    """Take steps in a directory outside of any box, and tell what is there."""
    with returning():
        os.chdir(directory)
        return taking.take(steps)


def in_the_box(box: Sandbox, steps: list[list[Any]], *, command: bool) -> Seen:
    """Take steps as the user of a box, and tell what is there.

    Args:
        command: by a program that runs in it; else on the same mount from outside, as `box.files`
            does, which costs a tenth.
    """
    if command:
        done = box.exec(COMMAND, input=json.dumps(steps), check=True)
        found: Seen = json.loads(done.stdout)
        return found
    tree = box.files._trees()["/workspace"]
    with returning(), tree.acting():
        os.chdir(tree._root)
        return taking.take(steps)


def unlike(got: Seen, wanted: Seen) -> dict[str, Any]:
    """Give what differs, by path: for whoever reads a failing run."""
    if got == wanted:
        return {}
    paths = got.keys() | wanted.keys()
    return {p: (got.get(p), wanted.get(p)) for p in paths if got.get(p) != wanted.get(p)}


def blurred(old: Files, new: Files) -> set[str]:
    """Give the files with holes that came or went: whether one was renamed is told by how it is
    stored, and a copy of it may have holes elsewhere.
    """
    was, now = old.holed().keys(), new.holed().keys()
    return (was - new.entries.keys()) | (now - old.entries.keys())


def apart(
    got: list[Told], wanted: list[Told], blurred: set[str]
) -> list[tuple[Told | None, Told | None]]:
    """Give the changes that only one side tells, or the first ones if only the order differs.

    Args:
        blurred: what is told of these files is passed over.
    """
    if blurred:
        got = [one for one in got if not {one[1], one[5]} & blurred]
        wanted = [one for one in wanted if not {one[1], one[5]} & blurred]
    found: list[tuple[Told | None, Told | None]] = [(one, None) for one in got if one not in wanted]
    found += [(None, one) for one in wanted if one not in got]
    return found or [(got[0], wanted[0])] if got != wanted else []


class Kept:
    """A checkpoint of both boxes, and the files at that time."""

    def __init__(self, made: dict[str, Checkpoint], files: Files) -> None:
        self.made, self.files = made, files.copy()


class Branch:
    """A box of each kind with the same files: the one that all began with, or a fork."""

    def __init__(self, tasks: dict[str, Task], files: Files) -> None:
        self.tasks, self.files = tasks, files
        self.boxes: dict[str, Sandbox] = {}
        self.forks: list[Branch] = []
        self._stack = ExitStack()

    def enter(self) -> None:
        for kind, task in self.tasks.items():
            self.boxes[kind] = self._stack.enter_context(Sandbox(task))

    def leave(self) -> None:
        self._stack.close()
        self.boxes = {}

    def check(self, *, command: bool = False) -> None:
        """Take the steps in both boxes, and compare what is there then."""
        steps, wanted = self.files.take_steps(), self.files.seen()
        for kind, box in self.boxes.items():
            found = unlike(in_the_box(box, steps, command=command), wanted)
            assert not found, (kind, found)

    def check_changes(self, since: Kept | Files) -> None:
        """Compare what both boxes say has changed since a checkpoint, or since the beginning."""
        old = since if isinstance(since, Files) else since.files
        told, unclear = differences(old, self.files), blurred(old, self.files)
        for kind, box in self.boxes.items():
            wanted = told
            got = shown(box.diff() if isinstance(since, Files) else box.diff(since.made[kind]))
            if old is since and kind == "overlay" and not ROOT and apart(got, wanted, unclear):
                # Before there are layers it is told from the upper itself, which a user reads as
                # far as its modes let him.
                wanted = differences(old, self.files, closed=True)
            found = apart(got, wanted, unclear)
            assert not found, (kind, found)
