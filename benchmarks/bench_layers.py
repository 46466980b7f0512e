"""What checkpoints, going back and forks cost where they cost what changed: beside git, restic and
a copy, each on a copy of the same tree, in the same run.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sandboxsdk.home import Home
from sandboxsdk.sandbox import Sandbox
from sandboxsdk.task import Task

from .bench_checkpoint import Git, Private, Restic, Side, copied
from .bench_docker import commits
from .bench_exec import bare
from .measuring import Figure, Taken, disk_used, in_turns

_PEERS = ("git", "restic")
_EXECS = 30
_PAGE = 4096


def layers(
    base: str, home: Home, *, bwrap: str, rounds: int, checkpoints: int, file_mib: int
) -> list[Figure]:
    """Measure all of it; ratios are to the peer that is named.

    Args:
        checkpoints: made before exec is timed for the second time.
        file_mib: size of the file of which one page changes.
    """
    with scratch_beside(home) as scratch:
        figures = _first(base, home, scratch, rounds)
        figures += _later(base, home, scratch, rounds)
        figures += _forks(base, home, scratch, rounds)
        figures += _execs(base, home, scratch, bwrap, checkpoints)
        return figures + _one_page(home, scratch, file_mib) + commits(base, home, rounds=rounds)


def changes(base: str, home: Home, *, rounds: int) -> list[Figure]:
    """Measure checkpoints of what changed, and going back, alone."""
    with scratch_beside(home) as scratch:
        return _later(base, home, scratch, rounds)


@contextmanager
def scratch_beside(home: Home) -> Iterator[Path]:
    """Give a directory on the home's own file system, for the time of the block."""
    with tempfile.TemporaryDirectory(dir=Path(home.path).parent) as scratch:
        yield Path(scratch)


def has_restic() -> bool:
    return shutil.which("restic") is not None


def _first(base: str, home: Home, scratch: Path, rounds: int) -> list[Figure]:
    """Time beginnings: of a home that has never seen the directory, and of one that has."""
    taken = Taken()
    new_bytes: dict[str, list[int]] = {}
    empty = scratch / "empty"
    empty.mkdir()

    def begin(who: str, place: Home) -> None:
        create = lambda: Task.create("bench", workspace=base, home=place)  # noqa: E731
        task = taken.timed("Task.create", who, create)
        with Sandbox(task) as box:
            box.exec(["true"], check=True)
            made = taken.timed("first checkpoint", who, box.checkpoint)
        new_bytes.setdefault(who, []).append(made.stats.new_bytes)
        task.delete()

    for turn in range(min(rounds, 3)):
        # Only the directory is new: what a home makes at its first task is there.
        place = Home(scratch / f"home-{turn}")
        Task.create("warm", workspace=empty, home=place).delete()
        begin("directory never seen", place)
        shutil.rmtree(place.path)
        git = Git(copied(base, scratch / f"first-{turn}"), home)
        taken.timed("first checkpoint", "git", git.keep)
        shutil.rmtree(git.repository)
        if has_restic():
            restic = Restic(git.root, home)
            taken.timed("first checkpoint", "restic", restic.keep)
            shutil.rmtree(restic.repository)
        shutil.rmtree(git.root)
    keeper = Task.create("bench", workspace=base, home=home)
    with Sandbox(keeper) as box:
        box.checkpoint()
    for _turn in range(rounds):
        begin("directory seen before", home)
    keeper.delete()
    return taken.figures(*_PEERS) + [
        Figure.of(f"first checkpoint, added to the store: {who}", sizes, unit="B")
        for who, sizes in new_bytes.items()
    ]


def _later(base: str, home: Home, scratch: Path, rounds: int) -> list[Figure]:
    """Time checkpoints of what changed, and going back, of each side in turn."""
    taken = Taken()
    ours = Private(base, home)
    git = Git(copied(base, scratch / "git"), home)
    sides: list[Side] = [ours, git]
    if has_restic():
        sides.append(Restic(copied(base, scratch / "restic"), home))
    for side in sides:
        side.keep()
    first = ours.last
    percent = ours.spread(max(len(ours.names) // 100, 1))
    for turn in range(rounds):
        for side in sides:
            taken.timed("checkpoint, nothing changed", side.name, side.keep)
        for side in sides:
            side.change(turn)
            taken.timed("checkpoint, 20 files changed", side.name, side.keep)
        for side in sides:
            side.change(turn, percent)
            step = f"checkpoint, 1 % changed ({len(percent)} files)"
            taken.timed(step, side.name, side.keep)
        for kept in (first, ours.last):
            step = f"restore, from one kept point to another ({len(percent)} files)"
            taken.timed(step, ours.name, lambda to=kept: ours.box.restore(to))
        for side in (ours, git):
            side.change(turn + rounds)
            taken.timed("restore, 20 files changed since", side.name, side.go_back)
        ours.change(turn + rounds)
        taken.timed(
            "restore, 20 files changed since, kept",
            ours.name,
            lambda: ours.box.restore(ours.last, save_current=True),
        )
    for side in sides:
        side.end()
    for side in sides[1:]:
        shutil.rmtree(side.root)
    return taken.figures(*_PEERS)


def _forks(base: str, home: Home, scratch: Path, rounds: int) -> list[Figure]:
    """Time a fork, its first command and its end, and look at what it takes on disk."""
    taken = Taken()
    git = Git(copied(base, scratch / "git"), home)
    git.keep()
    commit = git.commit()
    ours = Private(base, home)
    ours.change(0)
    ours.keep()
    used: dict[str, list[int]] = {"fresh": [], "after its first command": []}
    for turn in range(rounds):
        fork = taken.timed("fork", "box.fork()", lambda: ours.box.fork()[0])
        where = os.path.join(home.path, "throwaway", fork.task.id)
        used["fresh"].append(disk_used(where))
        taken.timed("first command in it", "exec", lambda f=fork: f.exec(["true"], check=True))
        used["after its first command"].append(disk_used(where))
        taken.timed("its end", "leaving its block", lambda f=fork: f.__exit__(None, None, None))
        if turn < 3:
            target = str(scratch / f"fork-{turn}")
            taken.timed("fork", "cp -a", lambda t=target: copied(base, Path(t)))
            taken.timed("its end", "cp -a", lambda t=target: shutil.rmtree(t))
            taken.timed("fork", "git worktree add", lambda t=target: git.worktree(t, commit))
            taken.timed("its end", "git worktree add", lambda t=target: git.no_worktree(t))
    ours.end()
    shutil.rmtree(git.root)
    return taken.figures("cp -a", "git worktree add") + [
        Figure.of(f"disk used by a fork, {when}", sizes, unit="B") for when, sizes in used.items()
    ]


def _execs(base: str, home: Home, scratch: Path, bwrap: str, checkpoints: int) -> list[Figure]:
    """Time exec over one layer and over what many checkpoints leave, beside bare bubblewrap."""
    ours = Private(base, home)
    there = scratch / "bare"
    there.mkdir()
    alone = bare(bwrap, base, str(there))
    figures: list[Figure] = []
    for count in (1, checkpoints):
        grow(ours, count)
        name = f"exec after {count:,} checkpoint{'s' if count > 1 else ''}"
        doers = {
            name: lambda: ours.box.exec(["true"], check=True),
            "bwrap --overlay ... true": alone,
        }
        figures += in_turns(doers, rounds=_EXECS)
    ours.end()
    return figures


def grow(ours: Private, count: int) -> None:
    """Make checkpoints until the task has so many, with one more changed file in each."""
    names = ours.spread(100)
    made = len(ours.task.checkpoints())
    for number in range(made, count):
        ours.change(number, [names[number % len(names)]])
        ours.keep()


def _one_page(home: Home, scratch: Path, mib: int, *, checkpoints: int = 20) -> list[Figure]:
    """Change one page of a large file between checkpoints: what they take, in time and on disk."""
    base = scratch / "large"
    base.mkdir()
    with open(base / "file", "wb") as file:
        file.writelines(os.urandom(1 << 20) for _number in range(mib))
    place = Home(scratch / "large-home")
    restic = Restic(copied(str(base), scratch / "large-restic"), home) if has_restic() else None
    step = f"checkpoint, one page of {mib:,} MiB changed"
    taken = Taken()
    task = Task.create("bench", workspace=str(base), home=place)
    with Sandbox(task) as box:
        box.checkpoint()
        if restic is not None:
            restic.keep()
        for turn in range(checkpoints):
            page = (turn * 7919) % (mib * 256)
            box.exec(
                f"dd of=file bs={_PAGE} seek={page} count=1 conv=notrunc status=none",
                input=os.urandom(_PAGE),
                check=True,
            )
            taken.timed(step, "private", box.checkpoint)
            if restic is not None:
                with open(f"{restic.root}/file", "r+b") as file:
                    file.seek(page * _PAGE)
                    file.write(os.urandom(_PAGE))
                taken.timed(step, "restic", restic.keep)
    size = mib << 20
    kinds = {name: f"{place.path}/{name}" for name in ("store", "layers", "tasks")}
    figures = taken.figures(*_PEERS)
    parts = ", ".join(f"{name} {disk_used(path) / size:.2f}" for name, path in kinds.items())
    name = f"disk after {checkpoints} of these, in sizes of the file"
    all_bytes = disk_used(*kinds.values()) / size
    figures.append(Figure(f"{name}: private", all_bytes, unit="x", note=f"({parts})"))
    if restic is not None:
        kept = disk_used(restic.repository) / size
        figures.append(Figure(f"{name}: restic", kept, unit="x", note="(its repository)"))
    task.delete()
    return figures
