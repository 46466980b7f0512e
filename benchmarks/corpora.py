"""Directories to measure on, built from packages by their names, or from a seed: once, then kept.

Beside each lies a JSON file that says what it was made of; without that file it is not finished,
and is built again.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from . import coding, generated
from .building import ran

_LINUX = "linux-source-6.1"
_INSTALLED = Path("/usr/src", f"{_LINUX}.tar.xz")


class Corpus(NamedTuple):
    """A directory, how many files it has, and what it was made of."""

    path: str
    files: int
    made_of: dict[str, Any]


def names() -> list[str]:
    return sorted(_BUILDERS)


def default_directory() -> str:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "sandboxsdk-benchmarks")


def corpus(name: str, directory: str) -> Corpus:
    """Give a corpus, built if it is not there.

    Raises:
        Unbuildable: with the remedy.
    """
    path, told = Path(directory, name), Path(directory, f"{name}.json")
    if not told.exists():
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        print(f"building the corpus {name} in {directory}", file=sys.stderr)
        began = time.monotonic()
        made_of = _BUILDERS[name](path)
        facts = {"files": count(str(path)), "made_of": made_of}
        told.write_text(json.dumps(facts, indent=1) + "\n")
        taken = time.monotonic() - began
        print(f"{name}: {facts['files']:,} files, built in {taken:.0f} s", file=sys.stderr)
    facts = json.loads(told.read_text())
    return Corpus(os.path.realpath(path), facts["files"], facts["made_of"])


def count(directory: str) -> int:
    return sum(len(found) for _path, _directories, found in os.walk(directory))


def _linux(target: Path) -> dict[str, Any]:
    """Unpack the source that Debian's package holds, installed or fetched for this."""
    remedy = f"on Debian 12 or its like: apt-get update; or apt-get install {_LINUX} xz-utils"
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        archive, version = _INSTALLED, ["dpkg-query", "-W", "-f", "${Version}", _LINUX]
        if not archive.exists():
            # As who owns the directory: apt's own user could not write there, and would say so.
            fetch = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", _LINUX]
            ran(fetch, remedy, cwd=scratch)
            (package,) = Path(scratch).glob("*.deb")
            ran(["dpkg-deb", "-x", str(package), scratch], remedy)
            archive = Path(scratch, *_INSTALLED.parts[1:])
            version = ["dpkg-deb", "-f", str(package), "Version"]
        unpack = ["tar", "-xJf", str(archive), "--strip-components=1", "--no-same-owner"]
        ran([*unpack, "-C", str(target)], remedy)
        return {_LINUX: ran(version, remedy)}


_BUILDERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "linux": _linux,
    "coding": coding.build,
    "million": functools.partial(generated.generate, files=1_000_000),
    "small": functools.partial(generated.generate, files=8_000),
}
