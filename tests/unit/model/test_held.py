"""Which paths are held back because they run code on the host."""

from __future__ import annotations

import pytest

from sandboxsdk.errors import UsageError
from sandboxsdk.model import HELD_PATHS, check_allow, is_allowed, is_held

PATHS = [held.path for held in HELD_PATHS]


def held(path: str, *beside: str, is_directory: bool = False) -> bool:
    names = tuple(path.split("/"))
    return is_held(names, is_directory=is_directory, beside=lambda: beside)


@pytest.mark.parametrize("path", PATHS)
def test_every_entry_is_held_wherever_it_lies(path):
    """At the top, at any depth, in any case, as a file and as a directory; a longer name is not."""
    path = path.replace("*", "name")
    for shown in (path, f"deep/er/{path}", path.upper(), f"x/{path.title()}"):
        assert held(shown)
        assert held(shown, is_directory=True)
    assert not held(f"x{path}") or path.startswith("name")
    assert not held(f"{path}x")


def test_every_entry_says_why():
    """Each has a reason, and none is there twice."""
    assert len(set(PATHS)) == len(PATHS)
    assert all(len(one.why) > 8 for one in HELD_PATHS)


@pytest.mark.parametrize(
    "path", ["Makefile", "src/config", "hooks/x.py", "a/HEAD", ".github/x.yml"]
)
def test_ordinary_work_is_not_held(path):
    """What is worked on comes through."""
    assert not held(path)


@pytest.mark.parametrize("name", [".git", ".GIT", ".git ", "git~1", "\u200c.git", ".git::$X"])
def test_no_file_leads_git_elsewhere(name):
    """A file or link called .git, however it is written; the directory is work."""
    assert held(f"sub/{name}")
    assert not held(f"sub/{name}", is_directory=True)
    assert held(f"sub/{name}/hooks/x"[:-2], is_directory=True)


def test_what_makes_a_bare_repository_is_held():
    """Its config and hooks where a head is, and a head where these are."""
    assert held("x/config", "HEAD")
    assert held("x/Hooks", "head", is_directory=True)
    assert held("x/HEAD", "config")
    assert held("HEAD", "hooks", "other")
    assert not held("x/HEAD", "objects", "refs")
    assert not held(".git/HEAD", "config", "hooks")


def test_what_is_allowed():
    """By its full path, by its last names, or by a directory above it."""
    allow = check_allow([".vscode", "lib/.envrc", "sub/.git"])
    assert is_allowed((".vscode",), allow)
    assert is_allowed(("deep", ".vscode"), allow)
    assert is_allowed(("lib", ".envrc"), allow)
    assert not is_allowed((".envrc",), allow)
    assert is_allowed(("sub", ".git", "hooks"), allow)
    assert not is_allowed((".git", "hooks"), allow)


@pytest.mark.parametrize("allow", ["text", b"x", 3, [3], [""], ["a//b"], [".."], ["a/../b"], None])
def test_wrong_lists_are_refused(allow):
    """No list of relative paths."""
    with pytest.raises(UsageError):
        check_allow(allow)
