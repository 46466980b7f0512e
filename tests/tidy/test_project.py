"""The top level, and the promise that CI runs a command of the README."""

from __future__ import annotations

import os
import stat
import tomllib

from .house import PACKAGE, ROOT, TOP_LEVEL, all_modules, complain, project_files


def test_the_top_level_is_what_it_should_be() -> None:
    """Nothing lies at the top level but the listed entries and dotfiles, and all of those do."""
    found = {name.partition("/")[0] for name in project_files()}
    offenders = [f"unexpected: {name}" for name in found - TOP_LEVEL if not name.startswith(".")]
    offenders += [f"missing: {name}" for name in TOP_LEVEL - found]
    complain("the top level is exactly the list in tests/tidy/house.py", offenders)


def test_ci_runs_the_command_of_the_readme() -> None:
    """`.ci/run` is executable, and the one command in it stands word for word in the README."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    lines = script.read_text(encoding="utf-8").splitlines()
    setting_up = ("#", "set ", "cd ")
    commands = [line for line in lines if line and not line.startswith(setting_up)]
    assert len(commands) == 1
    assert commands[0] in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()


def test_the_version_has_one_place() -> None:
    """The version is a literal in pyproject.toml and nowhere in the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    offenders = [
        module.shown
        for module in all_modules()
        if module.shown.startswith(f"{PACKAGE}/") and f'"{project["version"]}"' in module.source
    ]
    complain("the version is written in pyproject.toml only", offenders)


def test_the_changelog_has_a_place_for_the_next_change() -> None:
    """CHANGELOG.md follows Keep a Changelog and begins with what is not released yet."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert text.index("## [Unreleased]") == text.index("## [")


def test_typed_code_is_marked_as_such() -> None:
    """The marker of PEP 561 lies in the package, or nobody's type checker would look at it."""
    assert os.path.exists(ROOT / PACKAGE / "py.typed")
