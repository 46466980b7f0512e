"""The swap attacker for tests: names trade places for as long as a block lasts, and what lies
outside is fingerprinted before and after.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "programs" / "swapper.c"


def compiled(directory: Path) -> Path:
    """Build the attacker; skips where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    program = directory / "swapper"
    subprocess.run([compiler, "-O2", "-o", program, SOURCE], check=True, timeout=60)
    return program


@contextlib.contextmanager
def swapping(program: Path, pairs: Iterable[tuple[Path, Path]]) -> Iterator[None]:
    """Let each pair of names of one directory trade places, one process for each pair."""
    with contextlib.ExitStack() as stack:
        for one, two in pairs:
            assert one.parent == two.parent
            command = [program, one.parent, one.name, two.name]
            attacker = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(attacker.kill)
            assert attacker.stdout is not None
            assert attacker.stdout.readline() == b"ready\n"
        yield


def fingerprint(directory: Path) -> dict[str, tuple[object, ...]]:
    """Give all that can be seen of a directory and what is below it, but when it was read."""
    found = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        entry = path.lstat()
        content: object = None
        if stat.S_ISREG(entry.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(entry.st_mode):
            content = os.readlink(path)
        found[str(path.relative_to(directory))] = (
            entry.st_ino,
            entry.st_mode,
            entry.st_uid,
            entry.st_gid,
            entry.st_nlink,
            entry.st_size,
            entry.st_mtime_ns,
            entry.st_ctime_ns,
            content,
            () if stat.S_ISLNK(entry.st_mode) else tuple(os.listxattr(path)),
        )
    return found
