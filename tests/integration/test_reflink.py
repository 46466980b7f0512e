"""Workspaces whose files share blocks with the directory, where the file system can."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxsdk import Home, Sandbox, Task, Workspace
from sandboxsdk.errors import CapabilityError

from .workspaces import furnish, look, mess_up, outside


def _used(directory: Path) -> int:
    os.sync()
    found = os.statvfs(directory)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_large_files_take_no_space(sharing: Path) -> None:
    """Contents are shared until they are written; the directory stays as it is."""
    base, home = sharing / "large", Home(sharing / "home-large")
    base.mkdir()
    # All the same to the store, and not to the file system.
    (base / "big").write_bytes(b"x" * (64 << 20))
    before = _used(sharing)
    task = Task.create("t", workspace=Workspace.private(base, kind="reflink"), home=home)
    with Sandbox(task) as box:
        assert box.exec("wc -c < big").stdout == f"{64 << 20}\n"
        assert _used(sharing) - before < 8 << 20
        assert "private reflink of" in task.workspace().describe()
        box.exec("printf y | dd of=big bs=1 conv=notrunc", check=True)
        assert box.exec("head -c 2 big").stdout == "yx"
    with open(base / "big", "rb") as file:
        assert file.read(2) == b"xx"


def test_it_is_a_workspace_as_any_other(sharing: Path) -> None:
    """Checkpoints, restores, exclusions and the untouched directory hold here too."""
    base, home = sharing / "all", Home(sharing / "home-all")
    base.mkdir()
    furnish(base)
    (base / "left.log").write_text("left out")
    before = outside(base)
    workspace = Workspace.private(base, kind="reflink", exclude=["*.log"])
    task = Task.create("t", workspace=workspace, home=home)
    with Sandbox(task) as box:
        start = look(box)
        assert "left.log" in start
        checkpoint = box.checkpoint()
        mess_up(box)
        messed = look(box)
        report = box.restore(checkpoint)
        assert look(box) == start
        box.restore(report.saved or "")
        assert look(box) == messed
    assert outside(base) == before
    assert home.verify("content").ok


def test_a_file_system_that_cannot_is_told(tmp_path: Path, home: Home, sharing: Path) -> None:
    """CapabilityError with the remedy, nothing half made; a copy works there."""
    (sharing / "f").write_text("x")
    # The home lies elsewhere, so nothing can be shared.
    task = Task.create("t", workspace=Workspace.private(sharing, kind="reflink"), home=home)
    with Sandbox(task) as box, pytest.raises(CapabilityError, match="reflink") as caught:
        box.exec("true")
    assert 'kind="copy"' in caught.value.hint
    assert not any(name.startswith((".files", "files")) for name in os.listdir(task.directory))
    copy = Task.create(
        "t", workspace=Workspace.private(tmp_path, kind="copy"), home=Home(sharing / "h")
    )
    with Sandbox(copy) as box:
        assert box.exec("ls").ok


def test_an_empty_one_needs_no_such_file_system(home: Home) -> None:
    """There is nothing to share."""
    task = Task.create("t", workspace=Workspace.private(None, kind="reflink"), home=home)
    with Sandbox(task) as box:
        assert box.exec("echo x > f && cat f").stdout == "x\n"
        assert box.checkpoint().stats.files == 1
