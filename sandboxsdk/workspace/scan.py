"""Walks through a workspace that remember what they saw, once what they stored is safe."""

from __future__ import annotations

import os

from sandboxsdk import disk
from sandboxsdk.codec import digest, encode_json
from sandboxsdk.host import owned
from sandboxsdk.model import Workspace
from sandboxsdk.snapshot import Captured, Rules, Sink, StatCache, capture
from sandboxsdk.store import Store

from .place import file_system

CACHE = "scan"
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


class Scan:
    """What a walk gave: the tree, and what it learned."""

    def __init__(
        self,
        captured: Captured,
        learned: StatCache | None = None,
        directory: str = "",
        name: str = "",
    ) -> None:
        self.captured = captured
        self.learned: StatCache | None = learned
        self._directory, self._name = directory, name

    def remember(self) -> None:
        """Write down what was learned. Only after everything that was stored is on disk: whoever
        reads it takes its word that the contents are in the store.
        """
        if self.learned is None:
            return
        try:
            directory = disk.open_directory(self._directory)
        except OSError:
            return
        with owned(directory):
            self.learned.save(self._name, directory)


def scan(
    sink: Sink,
    store: Store,
    root: int,
    rules: Rules,
    *,
    directory: str,
    name: str,
    before: Scan | None = None,
) -> Scan:
    """Capture what is below `root`, reading what the cache `name` in `directory` does not know.

    Args:
        before: a walk of the same place, just done with the same sink; used instead of the cache.
    """
    if rules.mapped and file_system(os.fstat(root).st_dev) in _IN_MEMORY:
        # Nothing tells what was changed through a mapping.
        return Scan(capture(sink, root, StatCache(""), StatCache(""), rules))
    if before is not None and before.learned is not None:
        known = before.learned
    else:
        with owned(disk.open_directory(directory)) as place:
            known = StatCache.load(name, place, generation=store.generation, has=store.has)
    learned = StatCache(store.generation)
    captured = capture(sink, root, known, learned, rules)
    return Scan(captured, learned, directory, name)


def base_cache(workspace: Workspace) -> str:
    """Name the cache of a user's directory: what is seen depends on these settings alone."""
    seen = [workspace.path, workspace.mode, list(workspace.exclude)]
    return digest(encode_json(seen))[:32]
