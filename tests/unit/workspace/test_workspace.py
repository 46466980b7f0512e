"""How workspaces are stored, made ready for a mount, and described."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sandboxsdk.errors import HostRefused, WorkspaceInvalid
from sandboxsdk.layers import Layers
from sandboxsdk.model import Place, Workspace
from sandboxsdk.workspace import (
    CopiedWorkspace,
    DirectWorkspace,
    OpenWorkspace,
    OverlayWorkspace,
    open_workspace,
    resolve,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Give a directory of a user."""
    (tmp_path / "base").mkdir(mode=0o755)
    (tmp_path / "base" / "f").write_text("text")
    return tmp_path / "base"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Give the directory of a task."""
    (tmp_path / "home" / "tasks" / "id").mkdir(parents=True, mode=0o700)
    return tmp_path / "home" / "tasks" / "id"


def _overlay(base: Path | str | None, task: Path) -> OverlayWorkspace:
    (task.parent.parent / "scans").mkdir(exist_ok=True)
    scans = str(task.parent.parent / "scans")
    return OverlayWorkspace(
        Workspace.private(base),
        directory=str(task),
        scans=scans,
        layers=Layers(f"{task}-layers", ()),
    )


def _direct(base: Path) -> DirectWorkspace:
    return DirectWorkspace(Workspace.direct(base), scans="")


def _place(path: Path) -> Place:
    found = path.stat()
    owner = (found.st_uid, found.st_gid)
    return Place(path=str(path), device=found.st_dev, inode=found.st_ino, owner=owner)


def test_open_gives_what_was_resolved(base: Path, task: Path) -> None:
    """A private workspace is an overlay or a copy, a direct one the directory itself."""
    opened: list[OpenWorkspace] = []
    overlay = Workspace.private(base, kind="overlay")
    copy, empty = Workspace.private(base, kind="copy"), Workspace(kind="copy")
    for workspace in (overlay, Workspace(kind="overlay"), Workspace.direct(base), copy, empty):
        resolved = resolve(workspace, home=str(task.parent.parent))
        opened.append(
            open_workspace(resolved, directory=str(task), scans="", layers=Layers("", ()))
        )
    assert [type(each) for each in opened] == [
        OverlayWorkspace,
        OverlayWorkspace,
        DirectWorkspace,
        CopiedWorkspace,
        CopiedWorkspace,
    ]
    assert opened[0].describe() == f"private view of {base} (overlay), which itself is not written"
    assert opened[1].describe() == "private and empty at first (overlay)"
    assert opened[2].describe() == f"{base} itself; what the sandbox writes is written"
    assert opened[3].describe() == f"private copy of {base}, which itself is not written"
    assert opened[4].describe() == "private and empty at first (copy)"


def test_view_names_everything_by_identity(base: Path, task: Path) -> None:
    """The view pins the base and the task's directory, and names an upper and a work directory."""
    view = _overlay(base, task).prepare()
    assert view.kind == "overlay"
    assert view.base == _place(base)
    assert view.task == _place(task)
    assert (task / view.upper).is_dir()
    assert list((task / view.work).iterdir()) == []
    assert list((task / view.upper).iterdir()) == []


def test_empty_workspace_stands_on_an_empty_directory(task: Path) -> None:
    """Without a base there is an empty one, and nothing to note about what came with it."""
    workspace = _overlay(None, task)
    view = workspace.prepare()
    assert view.base == _place(task / "empty")
    assert stat.S_IMODE((task / view.upper).stat().st_mode) == 0o755
    layered, _kept = workspace.notes()
    assert "64.0 MiB" in layered


def test_each_mount_gets_a_fresh_work_directory(base: Path, task: Path) -> None:
    """What an earlier mount left, unreadable directories included, goes; the upper stays."""
    workspace = _overlay(base, task)
    first = workspace.prepare()
    (task / first.upper / "kept").write_text("x")
    (task / first.work / "work" / "incompat" / "volatile").mkdir(parents=True)
    (task / first.work / "work").chmod(0)
    (task / "upper-unfinished").mkdir()
    second = workspace.prepare()
    assert second.work != first.work
    assert sorted(os.listdir(task)) == sorted(["boot", "upper", second.work])
    assert os.listdir(task / "upper") == ["kept"]


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o2775, 0o1777, 0o555])
def test_upper_has_the_mode_of_the_base(mode: int, base: Path, task: Path) -> None:
    """The view's root shows the upper's mode, so it is the base's, without set-id bits."""
    base.chmod(mode)
    try:
        _overlay(base, task).prepare()
    finally:
        base.chmod(0o755)
    assert stat.S_IMODE((task / "upper").stat().st_mode) == mode & 0o1777


def test_upper_belongs_to_the_owner_of_the_base(base: Path, task: Path) -> None:
    """Root works on somebody's directory as that somebody: the view's root is theirs as well."""
    if os.geteuid() == 0:
        os.chown(base, 65534, 65533)
    view = _overlay(base, task).prepare()
    assert _place(task / view.upper).owner == _place(base).owner == view.owner


def test_base_that_went_is_named(base: Path, task: Path, tmp_path: Path) -> None:
    """A base that is gone, a file, or behind a link by now is refused; the upper is kept."""
    below = base / "project"
    below.mkdir()
    workspace = _overlay(below, task)
    (task / workspace.prepare().upper / "kept").write_text("x")
    below.rmdir()
    for prepare in (lambda: None, below.touch):
        prepare()
        with pytest.raises(WorkspaceInvalid, match="any more") as caught:
            workspace.prepare()
        assert caught.value.hint
        with pytest.raises(WorkspaceInvalid, match="any more"):
            workspace.diff()
        with pytest.raises(WorkspaceInvalid, match="any more"):
            _direct(below).prepare()
    below.unlink()
    base.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "project").mkdir()
    base.symlink_to("elsewhere")
    with pytest.raises(WorkspaceInvalid, match="link"):
        workspace.prepare()
    assert (task / "upper" / "kept").exists()


def test_nothing_is_made_when_the_base_is_missing(task: Path) -> None:
    """A refusal leaves the task's directory as it was."""
    with pytest.raises(WorkspaceInvalid):
        _overlay("/nowhere", task).prepare()
    assert os.listdir(task) == []


def test_workspace_that_was_never_entered(base: Path, task: Path) -> None:
    """Before the first mount nothing changed and nothing is used."""
    workspace = _overlay(base, task)
    assert workspace.diff() == []
    assert workspace.disk_bytes() == 0


def test_diff_and_disk_use_are_those_of_the_upper(base: Path, task: Path) -> None:
    """The base costs nothing; what the upper holds is counted and told."""
    (base / "large").write_bytes(bytes(1 << 20))
    workspace = _overlay(base, task)
    upper = task / workspace.prepare().upper
    (upper / "new").write_bytes(os.urandom(300_000))
    assert [str(change) for change in workspace.diff()] == ["+ new  (293.0 KiB)"]
    assert 300_000 <= workspace.disk_bytes() < 1 << 20


def test_notes_say_what_surprises(base: Path, task: Path) -> None:
    """An overlay's own ways are noted, and an upper of an earlier boot as soon as it is one."""
    workspace = _overlay(base, task)
    workspace.prepare()
    notes = " ".join(workspace.notes())
    assert "EXDEV" in notes
    assert "hard links" in notes
    assert ("read-only" in notes) == (os.geteuid() != 0)
    assert "boot" not in notes
    (task / "boot").write_text("another")
    workspace.prepare()
    assert "earlier boot" in workspace.notes()[-1]


def test_direct_workspace(base: Path) -> None:
    """It is bound as it is, uses nothing beyond itself, and cannot tell alone what changed."""
    workspace = _direct(base)
    view = workspace.prepare()
    assert (view.kind, view.task, view.base) == ("bind", _place(base), None)
    assert workspace.disk_bytes() == 0
    assert workspace.notes() == ()
    assert workspace.diff() is None


def test_description_is_one_line(task: Path) -> None:
    """Names that would move the reader's cursor are shown escaped."""
    shown = _overlay("/a\n\x1b[2J", task).describe()
    assert shown.isprintable()
    assert "\\n" in shown


def test_missing_task_directory_is_a_typed_error(base: Path, task: Path) -> None:
    """The host's own error never comes through bare."""
    workspace = _overlay(base, task / "gone")
    for call in (workspace.prepare, workspace.diff, workspace.disk_bytes):
        with pytest.raises(HostRefused, match="gone"):
            call()
