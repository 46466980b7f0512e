"""Running the programs that a corpus is made with; where one is missing or fails, the remedy."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class Unbuildable(Exception):
    """A program that a corpus is made with is not there, or failed."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}\n{remedy}")


def ran(
    command: Sequence[str],
    remedy: str,
    *,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a program and give its output.

    Raises:
        Unbuildable: with the end of what it said, and the remedy.
    """
    try:
        done = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise Unbuildable(f"{command[0]} is not there", f"remedy: {remedy}") from None
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-10:])
        shown = " ".join(command[:6])
        raise Unbuildable(f"{shown} ... ended with {done.returncode}:\n{said}", f"remedy: {remedy}")
    return done.stdout.strip()
