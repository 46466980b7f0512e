"""Homes that earlier versions wrote can be read, by us and by whoever has docs/format.md."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from sandboxsdk.errors import Corrupt, SandboxError, Unavailable
from sandboxsdk.home import Home
from sandboxsdk.model import Workspace
from sandboxsdk.sandbox import Sandbox
from sandboxsdk.task import Task

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import other_reader  # noqa: E402

FORMATS = sorted(path.name for path in HERE.glob("format-*"))


@pytest.fixture(params=FORMATS)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Give a copy of a golden directory that belongs to us alone."""
    target = tmp_path / "golden"
    shutil.copytree(HERE / request.param, target)
    for folder, _, files in os.walk(target):
        os.chmod(folder, 0o700)
        for name in files:
            os.chmod(os.path.join(folder, name), 0o600)
    return target


def test_every_format_is_kept() -> None:
    """There is a golden home for each format up to today's."""
    from sandboxsdk.home import FORMAT

    assert [f"format-{number}" for number in range(1, FORMAT + 1)] == FORMATS


def test_a_golden_home_is_whole_and_says_what_it_said(stored: Path) -> None:
    """All checkpoints verify, and list exactly what they listed when they were made."""
    home = Home(stored / "home", read_only=True)
    (record,) = Task.list(home=home)
    task = Task.open(record.id, home=home)
    expected = json.loads((stored / "expected.json").read_text())
    found = {
        checkpoint.name: {
            os.fsencode(entry.path).hex(): [entry.kind, entry.mode, entry.mtime_ns, entry.size]
            for entry in checkpoint.files()
        }
        for checkpoint in task.checkpoints()
    }
    assert found == expected
    assert all(checkpoint.verify().ok for checkpoint in task.checkpoints())
    assert home.verify("content").ok
    assert task.checkpoint_by("stable").name == "second"
    assert task.checkpoint_by("first").labels == {"kind": "golden"}
    assert [change.path for change in task.diff("first", "second")] == ["new", "text"]


def test_a_golden_home_can_be_worked_on(stored: Path, tmp_path: Path) -> None:
    """Its checkpoints restore, and gc keeps what they need."""
    home = Home(stored / "home")
    (record,) = Task.list(home=home)
    task = Task.open(record.id, home=home)
    home.gc()
    first = task.checkpoint_by("first")
    first.restore_to(tmp_path / "out")
    assert (tmp_path / "out" / "text").read_text() == "some text\n"
    assert (tmp_path / "out" / "text").samefile(tmp_path / "out" / "folder" / "same")
    assert (tmp_path / "out" / "big").stat().st_size == 5_460_000 + 70_000
    assert not (tmp_path / "out" / "run").stat().st_mode & 0o4000


def test_another_reader_finds_the_same(stored: Path) -> None:
    """A reader that was written from the page alone gives the same files, byte for byte."""
    read_by_both(stored / "home")


def test_another_reader_finds_large_directories(tmp_path: Path) -> None:
    """Directories that are stored in leaves are read from the page too."""
    work = tmp_path / "work"
    (work / "large" / "below").mkdir(parents=True)
    for number in range(1000):
        (work / "large" / f"{number}").write_text(f"{number}\n" * (number % 7))
    home = Home(tmp_path / "home")
    task = Task.create("large", workspace=Workspace.direct(work), home=home)
    with Sandbox(task, runtime="process") as box:
        box.checkpoint("first")
        (work / "large" / "new").write_text("new\n")
        (work / "large" / "7").unlink()
        box.checkpoint("second")
    assert read_by_both(tmp_path / "home") == 2 * 1002


def read_by_both(path: Path) -> int:
    """Compare all that both readers find; gives how many paths these are."""
    home = Home(path, read_only=True)
    (record,) = Task.list(home=home)
    ours = {
        checkpoint.id: checkpoint for checkpoint in Task.open(record.id, home=home).checkpoints()
    }
    theirs = {entry["id"]: (entry, files) for entry, files in other_reader.checkpoints(path)}
    compared = 0
    assert theirs.keys() == ours.keys()
    for id_, (entry, files) in theirs.items():
        assert (entry["name"], entry["parent"]) == (ours[id_].name, ours[id_].parent)
        listed = {os.fsencode(found.path): found for found in ours[id_].files()}
        assert files.keys() - {b""} == listed.keys()
        compared += len(listed)
        for name, found in listed.items():
            _, mode, mtime, _, content, _, _ = files[name]
            assert (found.mode, found.mtime_ns) == (mode, mtime)
            if found.kind == "file":
                assert ours[id_].read(found.path) == content
            elif found.kind == "symlink":
                assert os.fsencode(found.target or "") == content
    return compared


@pytest.mark.parametrize("name", ["format", "store/format"])
def test_a_newer_format_is_refused(stored: Path, name: str) -> None:
    """It says so, and how to go on; nothing in the home is touched."""
    path = stored / "home" / name
    path.write_text('{"format":2}')
    before = _fingerprint(stored)
    with pytest.raises(Unavailable, match="newer version") as caught:
        Home(stored / "home", read_only=True).verify()
    assert "upgrade" in caught.value.hint
    assert _fingerprint(stored) == before


def test_a_newer_record_is_refused(stored: Path) -> None:
    """A task that a newer version has changed is not read as if it were an older one."""
    (journal,) = (stored / "home" / "tasks").glob("*/journal.jsonl")
    journal.write_bytes(journal.read_bytes().replace(b'"schema":1', b'"schema":2'))
    with pytest.raises(SandboxError) as caught:
        Task.open(journal.parent.name, home=Home(stored / "home", read_only=True))
    assert isinstance(caught.value, Corrupt)


def _fingerprint(root: Path) -> list[tuple[str, int, int]]:
    return sorted(
        (str(path), path.lstat().st_mtime_ns, path.lstat().st_size) for path in root.rglob("*")
    )
