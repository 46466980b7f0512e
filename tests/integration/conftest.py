"""What tests of whole boxes share."""

from __future__ import annotations

import gc
import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .marks import until

_numbers = itertools.count()
ROOT = os.geteuid() == 0
REMEDY = (
    "making file systems for this test takes mkfs.xfs or mkfs.btrfs (Debian: xfsprogs) and loop"
)
MAKERS = {"mkfs.xfs": ["-q", "-m", "reflink=1"], "mkfs.btrfs": ["-q"]}


@pytest.fixture
def box(home):
    """Give an entered box without a directory."""
    from sandboxsdk import Sandbox

    with Sandbox(home=home) as box:
        yield box


@pytest.fixture
def mark() -> str:
    """Give an argument of sleep that no other process of this machine has."""
    return f"9{random.SystemRandom().randrange(10**9):09}.{next(_numbers)}"


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a directory on a file system that can share blocks; only root can mount one."""
    if not ROOT:
        pytest.skip("only root mounts file systems")
    place = tmp_path_factory.mktemp("sharing")
    image = place / "image"
    with open(image, "wb") as file:
        file.truncate(400 << 20)
    (place / "mounted").mkdir()
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    for maker, options in MAKERS.items():
        found = shutil.which(maker, path=path)
        if found is None:
            continue
        made = subprocess.run([found, *options, str(image)], capture_output=True, check=False)
        mount = ["mount", "-o", "loop", str(image), str(place / "mounted")]
        if made.returncode == 0 and subprocess.run(mount, check=False).returncode == 0:
            break
    else:
        pytest.fail(REMEDY)
    try:
        yield place / "mounted"
    finally:
        gc.collect()  # A home lets go of its store when nobody has it any more.
        unmount = ["umount", str(place / "mounted")]
        until(lambda: subprocess.run(unmount, check=False).returncode == 0)
