"""What a checkpoint costs in syncs, and that reading writes nothing: both counted by strace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxsdk import Home, Task, Workspace

from .tracing import CHANGING, SYNCING, between_marks, name_of, trace, writes_below

_CHECKPOINTS = """
from sandboxsdk import Home, Sandbox, Task, Workspace
home, kind, directory = Home(sys.argv[1]), sys.argv[2], sys.argv[3]
workspace = getattr(Workspace, kind)(directory)
with Sandbox(Task.create("syncs", workspace=workspace, home=home)) as box:
    for number in (1, 2, 3):
        box.exec(f"echo {number} > file; mkdir -p d; echo {number} > d/other", check=True)
        mark(number)
        made = box.checkpoint(str(number))
        mark(90 + number)
    mark(4)
    box.checkpoint("unchanged")
    mark(94)
assert made.verify().ok
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["private", "direct"])
def test_a_checkpoint_costs_at_most_three_syncs(kind, tmp_path):
    """A checkpoint syncs at least once before it returns and at most three times, with a new pack
    and with an open one.
    """
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "base").write_text("base")
    lines = trace(
        _CHECKPOINTS,
        tmp_path / "home",
        kind,
        tmp_path / "work",
        calls=[*SYNCING, "openat"],
        log=tmp_path / "log",
    )
    counted = {
        number: [line for line in calls if name_of(line) in SYNCING]
        for number, calls in between_marks(lines)
        if 0 < number < 90
    }
    shown = "\n".join(line for found in counted.values() for line in [*found, ""])
    print(f"{kind}: syncs per checkpoint {[len(found) for found in counted.values()]}")
    assert list(counted) == [1, 2, 3, 4], shown
    assert all(1 <= len(found) <= 3 for found in counted.values()), shown
    assert all("journal.jsonl" in found[-1] for found in counted.values()), shown


_READING = """
from sandboxsdk import Home, Task
home = Home(sys.argv[1], read_only=True)
mark(1)
(record,) = Task.list(home=home)
task = Task.open(record.id, home=home)
first, second = reversed(task.checkpoints())
assert len(second.files()) == 4
assert second.read("file") == b"second"
assert first.verify().ok and second.verify().ok
assert home.verify("content").ok and home.verify("index").ok
assert [change.path for change in task.diff(first, second)] == ["file"]
assert first.diff(second)
assert task.checkpoint_by("first") == first and task.history()
assert home.stats().tasks == 1 and home.gc(dry_run=True).dry_run
mark(2)
"""


def _populated(place: Path) -> Home:
    work = place / "work"
    (work / "d").mkdir(parents=True)
    (work / "d" / "inner").write_text("inner")
    (work / "file").write_text("first")
    os.symlink("file", work / "link")
    home = Home(place / "home")
    task = Task.create("to be read", workspace=Workspace.direct(work), home=home)
    with task.attach():
        task.checkpoint_history().take("first")
        (work / "file").write_text("second")
        task.checkpoint_history().take("second")
    home.store.close()
    return home


def _everything(directory: str) -> dict[str, object]:
    """Describe all that lies below a directory, contents too."""
    found: dict[str, object] = {}
    for folder, folders, files in os.walk(directory):
        for name in (".", *folders, *files):
            path = os.path.join(folder, name)
            stat = os.lstat(path)
            data = Path(path).read_bytes() if name in files else b""
            found[path] = (stat.st_ino, stat.st_mode, stat.st_mtime_ns, stat.st_ctime_ns, data)
    return found


@pytest.mark.timeout(120)
@pytest.mark.parametrize("index", ["present", "missing", "damaged"])
def test_a_home_that_is_read_only_is_not_written(index, tmp_path):
    """Listing, reading, comparing and verifying in a home opened read_only changes nothing in it,
    and asks the kernel for nothing that could.
    """
    home = _populated(tmp_path)
    path = Path(home.path, "store", "index.sqlite")
    if index == "missing":
        path.unlink()
    elif index == "damaged":
        path.write_bytes(b"\xff" * 5000)
    before = _everything(home.path)
    lines = trace(_READING, home.path, calls=[*CHANGING, *SYNCING], log=tmp_path / "log")
    found = writes_below(lines, home.path)
    assert not found, "\n".join(found)
    assert _everything(home.path) == before
    assert any(home.path in line for line in lines), "the trace shows what was opened"


def test_the_trace_shows_what_is_written(tmp_path):
    """The same trace of a home that is written shows opens for writing, renames and syncs."""
    script = """
from sandboxsdk import Home, Task
Task.create("written", home=Home(sys.argv[1]))
"""
    place = tmp_path / "home"
    lines = trace(script, place, calls=[*CHANGING, *SYNCING], log=tmp_path / "log")
    names = {name_of(line) for line in writes_below(lines, str(place))}
    assert {"openat", "pwrite64", "fdatasync", "fsync"} <= names
    assert names & {"rename", "renameat", "renameat2"}
