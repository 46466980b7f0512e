"""The real command line, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sandboxsdk

Typed = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def environment() -> dict[str, str]:
    """Let a child find the same sandboxsdk as this process, and format for 80 columns."""
    places = [str(Path(sandboxsdk.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    found |= {"COLUMNS": "80", "PYTHONIOENCODING": "utf-8", "PYTHONDONTWRITEBYTECODE": "1"}
    found.pop("NO_COLOR", None)
    return found


@pytest.fixture
def typed(tmp_path: Path, environment: dict[str, str]) -> Typed:
    """Give a function that runs `python -m sandboxsdk` with what is typed."""

    def run(
        *arguments: str | os.PathLike[str], **variables: str
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "sandboxsdk", *map(os.fspath, arguments)],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=100,
        )

    return run
