"""Where an attack takes place: a tree to restore, a target, and an outside that must not change."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxsdk import disk
from sandboxsdk.errors import SandboxError
from sandboxsdk.snapshot import Node, Restored, restore_in_place, restore_to
from sandboxsdk.snapshot import tree as t
from tests.swapping import fingerprint
from tests.trees import Memory, capture, tree

ROOT = os.geteuid() == 0


class Stand:
    """One attack's place.

    Attributes:
        sink: the objects.
        parent: holds the target and nothing else.
        target: where it is restored to.
        outside: holds `file` and `directory/file`.
    """

    def __init__(self, directory: Path) -> None:
        self.sink = Memory()
        self.parent = directory / "parent"
        self.target = self.parent / "target"
        self.outside = directory / "outside"
        self.parent.mkdir()
        (self.outside / "directory").mkdir(parents=True)
        for name in ("file", "directory/file"):
            (self.outside / name).write_bytes(b"outside")
            (self.outside / name).chmod(0o640)
        self._before = fingerprint(self.outside)
        gc.collect()  # What other tests left open is not ours.
        self._descriptors = set(os.listdir("/proc/self/fd"))

    def check(self) -> None:
        """Nothing outside is another than before, and no descriptor is left."""
        assert fingerprint(self.outside) == self._before
        # What other tests have left may be closed at any moment.
        assert set(os.listdir("/proc/self/fd")) <= self._descriptors

    def tree(self, spec: dict[bytes, Any], **own: Any) -> bytes:
        return tree(self.sink, spec, **own)

    def make(self, digest: bytes, where: Path | None = None) -> Restored:
        target = str(where or self.target)
        return restore_to(self.sink, digest, target, owners=None, durable=False)

    def turn(self, target: bytes, current: bytes | None = None) -> Restored:
        """Restore in place what lies at the target."""
        if current is None:
            current = capture(self.sink, self.target)
        fd = os.open(self.target, os.O_PATH | os.O_DIRECTORY)
        try:
            return restore_in_place(
                self.sink, fd, current=current, target=target, owners=None, shown="target/"
            )
        finally:
            os.close(fd)

    def lies(self, path: str) -> Path:
        return self.target / path

    def refused(self, digest: bytes, *errors: type[SandboxError]) -> None:
        """Neither way of restoring takes this tree, and neither makes a single call."""
        self.target.mkdir()
        (self.target / "mine").write_bytes(b"mine")
        current = capture(self.sink, self.target)
        before = fingerprint(self.target)
        with watched() as calls:
            with pytest.raises(errors):
                self.turn(digest, current)
            with pytest.raises(errors):
                self.make(digest, self.parent / "new")
        assert calls == []
        assert fingerprint(self.target) == before
        assert os.listdir(self.parent) == ["target"]

    def nodes(self, *nodes: Node) -> bytes:
        """Store a directory of these nodes in this order, whatever they are."""
        return t.write_directory(self.sink, t.Directory(0o755, 0, 0, 0, (), nodes))

    def fails_cleanly(self, digest: bytes, *errors: type[SandboxError]) -> None:
        """A new directory fails and nothing of it is left."""
        with pytest.raises(errors):
            self.make(digest)
        assert os.listdir(self.parent) == []


@contextlib.contextmanager
def watched(act: Callable[[str, tuple[Any, ...]], None] | None = None) -> Iterator[list[str]]:
    """Have the names of all writing calls, and act before each."""
    calls: list[str] = []

    def watcher(call: str, arguments: tuple[Any, ...]) -> None:
        calls.append(call)
        if act is not None:
            act(call, arguments)

    disk.watcher = watcher
    try:
        yield calls
    finally:
        disk.watcher = None
