"""Which directories may be a workspace, and what is said about the others."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from sandboxsdk.errors import UsageError, WorkspaceInvalid
from sandboxsdk.model import Workspace
from sandboxsdk.workspace import resolve, settle


@pytest.fixture
def state(tmp_path: Path) -> str:
    """Give the path of a home of tasks beside what a test makes."""
    path = tmp_path / "state" / "home"
    path.mkdir(parents=True)
    return str(path)


def _refusal(path: str | Path, home: str) -> WorkspaceInvalid:
    with pytest.raises(WorkspaceInvalid) as caught:
        resolve(Workspace.private(path), home=home)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", ["plain", "with space", "new\nline", "b\udcffytes", "ünï", "-x"])
def test_any_legal_name_is_taken(name: str, tmp_path: Path, state: str) -> None:
    """Spaces, newlines, bytes that are no text: a directory is a directory."""
    directory = tmp_path / name
    directory.mkdir()
    for workspace in (Workspace.private(directory), Workspace.direct(directory)):
        resolved = resolve(workspace, home=state)
        assert resolved.path == str(directory)
        assert resolved.mode == workspace.mode


def test_path_becomes_real_and_absolute(
    tmp_path: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths, trailing slashes, links and ~ are followed once, here."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for word in ("real", "./real//", "link", "link/", "real/../real", "~/real", "~/link/."):
        assert resolve(Workspace.private(word), home=state).path == str(tmp_path / "real")


def test_kind_is_settled(tmp_path: Path, state: str) -> None:
    """What is stored says which kind it is, so that opening it again means the same."""
    (tmp_path / "w").mkdir()
    settled, why = settle(Workspace.private(tmp_path / "w"), home=state)
    assert settled.kind == "overlay"
    assert why
    assert settle(Workspace.private(None), home=state)[0] == Workspace(kind="overlay")
    asked = Workspace.private(tmp_path / "w", kind="copy")
    assert settle(asked, home=state) == (asked, "")


def test_missing_directory_is_refused(tmp_path: Path, state: str) -> None:
    """A path that does not exist is refused and not made."""
    for path in (tmp_path / "none", tmp_path / "none" / "below"):
        assert "does not exist" in str(_refusal(path, state))
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "does not exist" in str(_refusal(tmp_path / "dangling", state))
    assert not (tmp_path / "none").exists()


def test_what_is_no_directory_is_refused(tmp_path: Path, state: str) -> None:
    """Files, FIFOs (which are not opened), loops of links and impossible paths are told apart."""
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    assert "is not a directory" in str(_refusal(tmp_path / "file", state))
    assert "is not a directory" in str(_refusal(tmp_path / "fifo", state))
    assert "cannot be used" in str(_refusal(tmp_path / "file" / "below", state))
    assert "cannot be used" in str(_refusal(tmp_path / "loop", state))
    assert "cannot be used" in str(_refusal("/" + "x" * 300, state))
    assert "is not a path" in str(_refusal("/tmp/\0", state))
    assert "is an empty path" in str(_refusal("", state))


@pytest.mark.parametrize("path", ["/", "//", "/..", "/proc", "/proc/self", "/sys/kernel", "/dev"])
def test_host_itself_is_refused(path: str, state: str) -> None:
    """Neither the whole host nor what the kernel shows of itself is a workspace."""
    assert "host" in str(_refusal(path, state)) or "system" in str(_refusal(path, state))


def test_home_and_workspace_must_be_apart(tmp_path: Path, state: str) -> None:
    """A workspace that contains the home, is it, or lies inside it is refused, by links too."""
    inside = Path(state, "tasks")
    inside.mkdir()
    (tmp_path / "link").symlink_to(inside)
    assert "contains the home" in str(_refusal(tmp_path, state))
    assert "contains the home" in str(_refusal(tmp_path, f"{state}/not/made/yet"))
    assert "is the home itself" in str(_refusal(state, state))
    assert "lies inside the home" in str(_refusal(inside, state))
    assert "lies inside the home" in str(_refusal(tmp_path / "link", state))
    (tmp_path / "state" / "home2").mkdir()
    assert resolve(Workspace.private(tmp_path / "state" / "home2"), home=state).path


def test_home_given_by_a_link_is_the_same_home(tmp_path: Path, state: str) -> None:
    """The home counts by what it is, not by how it is written."""
    (tmp_path / "link").symlink_to(state)
    assert "is the home itself" in str(_refusal(state, str(tmp_path / "link")))


@pytest.mark.parametrize("mode", [0o000, 0o300, 0o400])
def test_unreadable_directory_is_refused(mode: int, tmp_path: Path, state: str) -> None:
    """Both reading and searching are needed; root may do everything, so there it is taken."""
    directory = tmp_path / "w"
    directory.mkdir()
    directory.chmod(mode)
    try:
        if os.geteuid() == 0:
            assert resolve(Workspace.private(directory), home=state).path == str(directory)
        else:
            assert "is not readable" in str(_refusal(directory, state))
    finally:
        directory.chmod(0o700)


def test_settings_are_kept(tmp_path: Path, state: str) -> None:
    """Patterns and a kind that was asked for are stored as they were given."""
    (tmp_path / "w").mkdir()
    for kind in ("overlay", "copy"):
        asked = Workspace.private(tmp_path / "w", exclude=["*.log", "!keep.log"], kind=kind)
        assert resolve(asked, home=state) == asked
    direct = Workspace.direct(tmp_path / "w", exclude=["target/"])
    assert resolve(direct, home=state) == direct


def test_what_cannot_be_is_refused_first(tmp_path: Path, state: str) -> None:
    """A pattern that cannot be is told of before the path; direct needs a directory."""
    with pytest.raises(UsageError, match="exclude"):
        resolve(Workspace.private(tmp_path / "none", exclude=["a\\"]), home=state)
    with pytest.raises(WorkspaceInvalid, match="direct needs a directory"):
        resolve(Workspace(mode="direct"), home=state)


@pytest.mark.parametrize("pattern", ["!", "a\\", "[z-a]", "[[:alpha:]]x", "[", "", "#x", "a**b"])
def test_any_pattern_is_taken_or_refused(pattern: str, tmp_path: Path, state: str) -> None:
    """No error and no warning of a library comes through, whatever is written."""
    (tmp_path / "w").mkdir()
    with contextlib.suppress(UsageError):
        resolve(Workspace.private(tmp_path / "w", exclude=[pattern]), home=state)
