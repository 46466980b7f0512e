"""What figures were measured on: they mean nothing without it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def machine(home: str, base: str, bwrap: str) -> dict[str, Any]:
    """Say what this is, and which versions the peers have.

    Args:
        home: where everything is written.
        base: what is measured on.
        bwrap: the peer of commands.
    """
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processor": _first(r"model name\s*: (.*)", "/proc/cpuinfo"),
        "processors": len(os.sched_getaffinity(0)),
        "memory": _first(r"MemTotal:\s*(.*)", "/proc/meminfo"),
        "file system": _file_system(home),
        "file system of the directory": _file_system(base),
        "load": round(os.getloadavg()[0], 1),
        "root": os.geteuid() == 0,
        "sandboxsdk": importlib.metadata.version("sandboxsdk"),
        "commit": _said(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        ),
        "peers": {
            "bubblewrap": _said([bwrap, "--version"]),
            "cp": _said(["cp", "--version"]),
            "docker": _said(["docker", "version", "--format", "{{.Server.Version}}"]),
            "git": _said(["git", "--version"]),
            "restic": _said(["restic", "version"]),
        },
    }


def _first(pattern: str, path: str) -> str | None:
    """Give what the pattern finds first in a file."""
    found = re.search(pattern, Path(path).read_text(encoding="utf-8"))
    return found and found[1]


def _file_system(path: str) -> str | None:
    return _said(["findmnt", "--noheadings", "--output", "FSTYPE", "--target", path])


def _said(command: Sequence[str]) -> str | None:
    """Give the first line of what a program says, if it is there and answers."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0] or None
