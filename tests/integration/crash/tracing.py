"""Programs under strace: what they asked the kernel for, and marks to find a part of it by."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# What changes files, or makes such changes last. A lock is here too: it orders them.
CHANGING = [
    "open",
    "openat",
    "openat2",
    "creat",
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "pwritev2",
    "sendfile",
    "copy_file_range",
    "fallocate",
    "truncate",
    "ftruncate",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "chmod",
    "fchmod",
    "fchmodat",
    "chown",
    "fchown",
    "lchown",
    "fchownat",
    "utimensat",
    "utime",
    "utimes",
    "futimesat",
    "setxattr",
    "lsetxattr",
    "fsetxattr",
    "removexattr",
    "lremovexattr",
    "fremovexattr",
    "ioctl",
]
# Not sync_file_range: it has pages written, and nothing last.
SYNCING = ["fsync", "fdatasync", "syncfs", "sync", "msync"]

# In a traced program: a call on a descriptor that nobody has, which shows in the trace.
MARKS_BEGIN = 7_000_000
MARK = f"""
import os, sys
def mark(number):
    try:
        os.fdatasync({MARKS_BEGIN} + number)
    except OSError:
        pass
"""


def strace() -> str:
    """Give the path of strace; without it nothing here proves anything, so nothing is skipped."""
    found = shutil.which("strace")
    if found is None:
        pytest.fail("strace is not installed: on Debian, apt-get install strace", pytrace=False)
    return found


def environment() -> dict[str, str]:
    """Give the environment in which another interpreter imports what this one does."""
    path = os.pathsep.join(part for part in sys.path if part)
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def until(happened, seconds: float = 20.0):
    """Wait for something to become true, and give it."""
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)
    return found


def trace(script: str, *arguments: object, calls: list[str], log: Path) -> list[str]:
    """Run a Python program to its end; gives its calls of these names, with all of its children's,
    descriptors with their paths.
    """
    # Calls that this machine does not have are passed over.
    wanted = ",".join(f"?{call}" for call in calls)
    command = [strace(), "-f", "-qq", "-y", "-s", "4096", "-o", str(log), "-e", f"trace={wanted}"]
    program = [sys.executable, "-c", MARK + script, *map(str, arguments)]
    done = subprocess.run(
        [*command, *program], env=environment(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


_MARK = re.compile(r"\bfdatasync\((7\d{6})\b")
# An interrupted call shows twice; its second half does not have this form.
_CALL = re.compile(r"^\d+ +(\w+)\(")


def between_marks(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Give the calls behind each mark, up to the next one."""
    found: list[str] = []
    number = 0
    for line in lines:
        marked = _MARK.search(line)
        if marked is not None:
            yield number, found
            number, found = int(marked[1]) - MARKS_BEGIN, []
        elif _CALL.match(line):
            found.append(line)
    yield number, found


def name_of(line: str) -> str:
    """Give the name of the call in a line of a trace."""
    found = _CALL.match(line)
    return found[1] if found else ""


def writes_below(lines: list[str], directory: str) -> list[str]:
    """Give the calls that would change something below a directory, whether they worked or not."""
    found = []
    for line in lines:
        name = name_of(line)
        if not name or directory not in line or name == "ioctl":
            continue
        if name.startswith("open") and not re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC|TMPFILE)", line):
            continue
        found.append(line)
    return found
