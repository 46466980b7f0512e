"""Any number of small files of text, the same ones on every machine."""

from __future__ import annotations

import concurrent.futures
import functools
import math
import os
import random
from pathlib import Path
from typing import Any

_SEED = 20
_FEWEST, _MOST = 20, 30  # files in a directory
_SUBDIRECTORIES = 8
_SHORTEST, _LONGEST = 100, 8192  # bytes of a file


def generate(target: Path, *, files: int) -> dict[str, Any]:
    """Write so many files, in as many processes as there are processors."""
    directories = planned(files)
    for path, _number, _files in directories:
        (target / path).mkdir(exist_ok=True)
    with concurrent.futures.ProcessPoolExecutor() as pool:
        write = functools.partial(_write, str(target))
        for _done in pool.map(write, directories, chunksize=64):
            pass
    return {"seed": _SEED, "bytes of a file": [_SHORTEST, _LONGEST]}


def planned(files: int) -> list[tuple[str, int, int]]:
    """Give each directory with its number and how many files it has; parents come first."""
    chosen = random.Random(_SEED)
    paths: list[str] = []
    found = []
    while files:
        number = len(paths)
        parent = paths[(number - 1) // _SUBDIRECTORIES] if number else "."
        paths.append(os.path.normpath(f"{parent}/part-{number}") if number else ".")
        here = min(chosen.randint(_FEWEST, _MOST), files)
        found.append((paths[-1], number, here))
        files -= here
    return found


def _write(target: str, directory: tuple[str, int, int]) -> None:
    path, number, files = directory
    for one in range(files):
        with open(f"{target}/{path}/file-{number}-{one}.txt", "wb", buffering=0) as file:
            file.write(content(number, one))


def content(directory: int, number: int) -> bytes:
    """Give lines of hexadecimal digits, more often few than many: half as much to compress."""
    chosen = random.Random(f"{_SEED}/{directory}/{number}")
    size = round(math.exp(chosen.uniform(math.log(_SHORTEST), math.log(_LONGEST))))
    text = chosen.randbytes(size // 2 + 1).hex("\n", -32)
    return f"{text[: size - 1]}\n".encode()
