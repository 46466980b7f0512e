"""Which kind of workspace is chosen where nobody says it: on real mounts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxsdk import Home, Sandbox, Task, Workspace, disk
from sandboxsdk.errors import CapabilityError
from sandboxsdk.workspace import choosing

Mount = Callable[..., Path]


@pytest.fixture(autouse=True)
def unknown_again() -> None:
    """Nothing is known from other tests, as in another process."""
    forget()


def forget() -> None:
    choosing._found.clear()
    choosing._noted.clear()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mount]:
    """Mount something of a kind; only root can."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    with contextlib.ExitStack() as stack:

        def mount(kind: str, name: str, options: str = "rw") -> Path:
            place = tmp_path / name
            place.mkdir()
            subprocess.run(["mount", "-t", kind, "-o", options, kind, str(place)], check=True)
            stack.callback(subprocess.run, ["umount", "-l", str(place)], check=True)
            return place

        yield mount


def layered_on(below: Path, mount: Mount, name: str) -> Path:
    """Mount an overlay over a directory; what it writes lies beside that."""
    upper, work = below.parent / f"{name}-upper", below.parent / f"{name}-work"
    upper.mkdir()
    work.mkdir()
    return mount("overlay", name, f"lowerdir={below},upperdir={upper},workdir={work}")


def furnished(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "a").write_text("a\n")
    (directory / "d").mkdir()
    (directory / "d" / "f").write_text("f\n")
    return directory


def chosen(base: Path, home: Home, kind: str, why: str) -> Task:
    """Make a task; it gets this kind and says why, and nothing is left."""
    task = Task.create("t", workspace=base, home=home)
    assert task.record.workspace.kind == kind, task.record.chosen
    assert why in task.record.chosen
    assert Task.open(task.id, home=home).record.chosen == task.record.chosen
    assert not [name for name in os.listdir(home.path) if "trial" in name]
    return task


def check(base: Path, home: Home, kind: str, why: str) -> None:
    """It is this kind, which works, and the directory stays as it is."""
    task = chosen(base, home, kind, why)
    with Sandbox(task) as box:
        described = str(box.describe())
        assert f"kind {kind} was chosen: {task.record.chosen}" in described
        first = box.checkpoint()
        box.exec("echo 1 > a; mv d/f d/g; echo new > n", check=True)
        assert {change.path for change in box.diff(first)} == {"a", "d/g", "n"}
        with box.fork()[0] as fork:
            assert fork.exec("cat a d/g n").stdout == "1\nf\nnew\n"
            assert f"kind {kind} was chosen" in str(fork.describe())
        box.restore(first)
        assert box.exec("cat a d/f; ls").stdout == "a\nf\na\nd\n"
    assert sorted(os.listdir(base)) == ["a", "d"]
    assert (base / "a").read_text() == "a\n"


def test_an_overlay_where_one_works(tmp_path: Path, home: Home) -> None:
    """As root and as anybody else, on what a developer's machine has."""
    check(furnished(tmp_path / "work"), home, "overlay", "works")


def test_a_home_in_memory(mounted: Mount, tmp_path: Path) -> None:
    """Tmpfs carries the upper of an overlay if it stores users' attributes; a trial tells."""
    check(furnished(tmp_path / "work"), Home(mounted("tmpfs", "memory") / "h"), "overlay", "tmpfs")


def test_a_home_that_stores_no_attributes(mounted: Mount, tmp_path: Path) -> None:
    """What type of file system it is does not tell: ramfs has none."""
    home = Home(mounted("ramfs", "memory") / "h")
    chosen(furnished(tmp_path / "work"), home, "copy", "an overlay does not work here")


def test_a_home_on_an_overlay(mounted: Mount, tmp_path: Path) -> None:
    """As in a container: nothing has to be tried."""
    memory = mounted("tmpfs", "memory")
    (memory / "below").mkdir()
    home = Home(layered_on(memory / "below", mounted, "o") / "h")
    task = chosen(furnished(tmp_path / "work"), home, "copy", "overlay, which carries no overlay")
    # Root's boxes map ids, which an overlay does not let be done.
    with Sandbox(task) as box, pytest.raises(CapabilityError, match="map ids") as caught:
        box.exec("true")
    assert "SANDBOXSDK_HOME" in caught.value.hint


def test_a_directory_on_an_overlay(mounted: Mount, home: Home, tmp_path: Path) -> None:
    """What root's boxes need of it, an overlay has not: ids cannot be mapped."""
    (tmp_path / "below").mkdir()
    base = furnished(layered_on(tmp_path / "below", mounted, "o") / "work")
    check(base, home, "copy", "an overlay does not work here")


def test_a_directory_that_cannot_lie_below(mounted: Mount, home: Home, tmp_path: Path) -> None:
    """The kernel stacks two overlays and no third one: the trial is refused, not the box."""
    (tmp_path / "below").mkdir()
    first = layered_on(tmp_path / "below", mounted, "one")
    upper, work = tmp_path / "two-upper", tmp_path / "two-work"
    upper.mkdir()
    work.mkdir()
    second = mounted("overlay", "two", f"lowerdir={first},upperdir={upper},workdir={work}")
    check(furnished(second / "work"), home, "copy", "an overlay does not work here")


def test_blocks_are_shared_where_no_overlay_works(sharing: Path, mounted: Mount) -> None:
    """A home that carries no overlay, on the same file system as the directory, which can share."""
    place = sharing / "kinds"
    for name in ("below", "upper", "work"):
        (place / name).mkdir(parents=True)
    options = f"lowerdir={place}/below,upperdir={place}/upper,workdir={place}/work"
    over = mounted("overlay", "shared", options)
    chosen(furnished(over / "base"), Home(over / "h"), "reflink", "carries no overlay")


def test_what_is_asked_for_is_not_chosen(tmp_path: Path, home: Home) -> None:
    """Nothing is tried, and there is nothing to explain."""
    base = furnished(tmp_path / "work")
    with trials() as made:
        for workspace in (
            Workspace.private(base, kind="copy"),
            Workspace.private(None, kind="overlay"),
            Workspace.direct(base),
        ):
            assert Task.create("t", workspace=workspace, home=home).record.chosen == ""
    assert made == []


def test_one_trial_serves_later_tasks_and_processes(tmp_path: Path, home: Home) -> None:
    """Until the host starts anew; what did not work is tried again, as there is a remedy."""
    base = furnished(tmp_path / "work")
    with trials() as made:
        for _ in range(3):
            Task.create("t", workspace=base, home=home)
        assert len(made) == 1
        forget()
        Task.create("t", workspace=base, home=home)
        assert len(made) == 1
        lines = Path(home.path, "overlays").read_text().splitlines()
        assert len(lines) == 1
        Path(home.path, "overlays").write_bytes(b"\xff\0 damaged")
        forget()
        assert Task.create("t", workspace=base, home=home).record.workspace.kind == "overlay"
        assert len(made) == 2


@contextlib.contextmanager
def trials() -> Iterator[list[str]]:
    """List the scratch directories of trials that are made during the block."""
    made: list[str] = []

    def see(call: str, arguments: tuple[Any, ...]) -> None:
        if call == "make_directory" and str(arguments[0]).endswith(".trial"):
            made.append(arguments[0])

    disk.watcher = see
    try:
        yield made
    finally:
        disk.watcher = None


def test_what_a_killed_trial_leaves_is_removed(tmp_path: Path, home: Home) -> None:
    """By the next one, unless it may still be at work."""
    old, young = (Path(home.path, f"{number:016}.trial") for number in (1, 2))
    for place in (old, young):
        (place / "upper").mkdir(parents=True)
    os.utime(old, (1, 1))
    Task.create("t", workspace=furnished(tmp_path / "work"), home=home)
    assert not old.exists()
    assert young.exists()


def test_where_nothing_can_be_tried(tmp_path: Path) -> None:
    """No namespaces: then no box starts, and says why itself; the types of file systems decide."""
    base = furnished(tmp_path / "work")
    code = (
        "import sys; from sandboxsdk import Home, Task;"
        "t = Task.create('t', workspace=sys.argv[1], home=Home(sys.argv[2]));"
        "print(t.record.workspace.kind, t.record.chosen)"
    )
    command = [sys.executable, "-c", code, str(base), str(tmp_path / "home")]
    limited = ["unshare", "--map-root-user", "--user", "sh", "-c"]
    inner = 'echo 0 > /proc/sys/user/max_mnt_namespaces && exec "$@"'
    done = subprocess.run(
        [*limited, inner, "sh", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("overlay ")
    assert "could not be tried" in done.stdout
