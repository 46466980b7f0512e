"""What `docker commit` costs with the same changes, where an engine answers."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from sandboxsdk.home import Home

from .bench_checkpoint import Side
from .measuring import Figure, Taken

_STEP = "checkpoint, 20 files changed"
_WHO = "docker commit"


def commits(base: str, home: Home, *, rounds: int) -> list[Figure]:
    """Time commits of a container whose image is the directory, after 20 files were changed.

    The container does not run, so nothing has to be paused for it.
    """
    try:
        _docker("version", "--format", "{{.Server.Version}}", timeout=10)
    except (OSError, subprocess.SubprocessError):
        return [Figure(f"{_STEP}: {_WHO}", note="  (no docker engine answers)")]
    taken = Taken()
    files = Side(base, home).files
    with subprocess.Popen(["tar", "-C", base, "-c", "."], stdout=subprocess.PIPE) as tar:
        images = [_docker("import", "-", stdin=tar.stdout)]
    containers = []
    try:
        containers.append(_docker("create", images[0], "none"))
        for turn in range(rounds):
            changed = _archive(base, files, turn)
            command = ["docker", "cp", "-", f"{containers[0]}:/"]
            subprocess.run(command, input=changed, check=True, capture_output=True)
            commit = lambda: _docker("commit", containers[0])  # noqa: E731
            images.append(taken.timed(_STEP, _WHO, commit))
        different = _docker("diff", containers[0]).splitlines()
        assert set(files) == {line[3:] for line in different if line[3:] in files}
    finally:
        for container in containers:
            _docker("rm", "-f", container)
        _docker("rmi", "-f", *reversed(images))
    return taken.figures()


def _docker(*words: str, **how: object) -> str:
    done = subprocess.run(["docker", *words], check=True, capture_output=True, text=True, **how)
    return done.stdout.strip()


def _archive(base: str, files: Sequence[str], turn: int) -> bytes:
    """Give the files with one more line in each."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in files:
            content = Path(base, name).read_bytes() + f"turn {turn}\n".encode()
            entry = tar.gettarinfo(str(Path(base, name)), name)
            entry.size, entry.mtime = len(content), entry.mtime + turn + 1
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
