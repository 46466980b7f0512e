"""Workspaces that are an ordinary directory: the user's own, or a copy of it in the task's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import final

from sandboxsdk import disk
from sandboxsdk.errors import Corrupt, WorkspaceInvalid
from sandboxsdk.host import disk_usage, owned, remove_tree
from sandboxsdk.model import Change, View, Workspace
from sandboxsdk.snapshot import (
    Captured,
    Exclude,
    Merge,
    Progress,
    Rules,
    Scratch,
    Sink,
    StatCache,
    Totals,
    capture,
    excluding,
    restore_to,
)
from sandboxsdk.store import Store

from .copying import BaseContent
from .fitting import NOTHING_EXCLUDED, Excluded
from .layering import Standing
from .overlay import Mounted
from .place import open_base, open_pinned, place_of, shown
from .scan import CACHE, Scan, base_cache, scan

_FILES = "files"
# What a killed one leaves beside it while it is made.
_UNFINISHED = f".{_FILES}."
_ATTEMPTS = 3


class _Unlayered:
    """What lies in one directory: nothing of it is frozen."""

    layered = False

    def is_untouched(self) -> bool:
        """See `OpenWorkspace.is_untouched`."""
        return False

    def standing(self, store: Store, *, stacks: bool = True) -> Standing:
        """See `OpenWorkspace.standing`."""
        del store, stacks
        return "ready"

    def forget_layers(self) -> None:
        """See `OpenWorkspace.forget_layers`: there are none."""

    def settle(self) -> None:
        """See `OpenWorkspace.settle`: nothing goes on."""

    def freeze(
        self, captured: Captured, base: bytes, store: Store, boxes: Sequence[Mounted]
    ) -> bool:
        """See `OpenWorkspace.freeze`: never."""
        del captured, base, store, boxes
        return False

    def bottom(self) -> bytes:
        """See `OpenWorkspace.bottom`."""
        return b""

    def layered_tree(self) -> bytes:
        """See `OpenWorkspace.layered_tree`."""
        return b""

    def switch(
        self,
        tree: bytes,
        totals: Totals,
        bottom: bytes,
        store: Store,
        boxes: Sequence[Mounted],
        begun: Callable[[], None],
        *,
        excluded: Excluded = NOTHING_EXCLUDED,
        above: Captured | None = None,
    ) -> bool:
        """See `OpenWorkspace.switch`: never."""
        del tree, totals, bottom, store, boxes, begun, excluded, above
        return False


@final
class DirectWorkspace(_Unlayered):
    """The directory `path` itself: what a box writes is written."""

    begins = False

    def __init__(self, workspace: Workspace, *, scans: str) -> None:
        assert workspace.path is not None
        self._path = workspace.path
        self._exclude = excluding(workspace.exclude)
        self._scans = scans
        self._cache = base_cache(workspace)

    def begin(self, store: Store, tree: bytes) -> None:
        """See `OpenWorkspace.begin`: nothing, the directory is there."""

    def prepare(self) -> View:
        """See `OpenWorkspace.prepare`."""
        with owned(open_pinned(self._path)) as directory:
            return View(kind="bind", task=place_of(self._path, directory))

    def diff(self) -> list[Change] | None:
        """See `OpenWorkspace.diff`."""
        return None

    def capture_beginning(self, sink: Sink, store: Store, progress: Progress | None) -> Scan | None:
        """See `OpenWorkspace.capture_beginning`: what it began with, nobody kept."""
        del sink, store, progress
        return None

    def capture(
        self,
        sink: Sink,
        store: Store,
        base: Merge | None,
        progress: Progress | None,
        *,
        mapped: bool = False,
        unlock: bool = False,
        before: Scan | None = None,
        layers: bool = True,
    ) -> Scan:
        """See `OpenWorkspace.capture`."""
        del base, mapped, layers  # Who else has mapped a user's files, nobody knows.
        shown_base = f"{self._path}/"
        rules = Rules(
            mapped=True,
            unlock=unlock,
            exclude=self._exclude,
            progress=progress,
            shown=shown_base,
        )
        with owned(open_pinned(self._path)) as root:
            return scan(
                sink, store, root, rules, directory=self._scans, name=self._cache, before=before
            )

    @contextmanager
    def restoring(self, mounted: int) -> Iterator[int]:
        """See `OpenWorkspace.restoring`: in the directory, and on disk when the block ends."""
        with owned(open_pinned(self._path)) as root:
            if mounted >= 0 and not os.path.sameopenfile(mounted, root):
                reason = "is another directory than the one that the box works on"
                hint = "put that one back at this path, or leave the block of the box first"
                raise WorkspaceInvalid(path=self._path, reason=reason, hint=hint)
            yield root
            # The word that it is restored must not outlive a power cut that the files do not.
            with (
                disk.translated("sync", self._path),
                owned(disk.open_directory(".", dir_fd=root)) as d,
            ):
                disk.sync_file_system(d)

    @property
    def path(self) -> str | None:
        """See `OpenWorkspace.path`."""
        return self._path

    @property
    def spared(self) -> Exclude | None:
        """See `OpenWorkspace.spared`."""
        return self._exclude

    def disk_bytes(self) -> int:
        """Give 0: whatever is written is the user's own directory."""
        return 0

    def describe(self) -> str:
        """See `OpenWorkspace.describe`."""
        return f"{shown(self._path)} itself; what the sandbox writes is written"

    def notes(self) -> tuple[str, ...]:
        """See `OpenWorkspace.notes`."""
        return ()


@final
class CopiedWorkspace(_Unlayered):
    """A copy of a directory (or of nothing) in `files/` of the task's own, where no overlay works.

    Invariant: `files/` appears whole or not at all.
    """

    begins = True

    def __init__(
        self,
        workspace: Workspace,
        *,
        directory: str,
        scans: str,
        since: int | None = None,
        forked: bool = False,
        chosen: str = "",
    ) -> None:
        self._since, self._forked, self._chosen = since, forked, chosen
        self._base = workspace.path
        self._kind = workspace.kind
        self._exclude = excluding(workspace.exclude)
        self._directory = directory
        self._files = f"{directory}/{_FILES}"
        self._scans = scans
        self._cache = base_cache(workspace)

    def begin(self, store: Store, tree: bytes) -> None:
        """See `OpenWorkspace.begin`."""
        if os.path.lexists(self._files):
            return
        with disk.translated("read", self._directory), self._opened() as task:
            for name in os.listdir(task):
                if name.startswith(_UNFINISHED):
                    remove_tree(task, name)
            with owned(open_base(task, self._base)) as base:
                for left in reversed(range(_ATTEMPTS)):
                    reader = Scratch(store)
                    try:
                        self._copy(reader, self._whole(reader, base, tree), base)
                    except Corrupt:
                        # What is excluded is in no store, and something of it has changed.
                        if self._exclude is None or not left:
                            raise
                    else:
                        return

    def _whole(self, reader: Scratch, base: int, tree: bytes) -> bytes:
        """Give the tree to be copied: with what is excluded, which the view has unless it is a
        fork's.
        """
        if self._exclude is None or self._forked:
            return tree
        nothing = StatCache("")
        return capture(reader, base, nothing, nothing, self._rules(None, None)).tree

    def _copy(self, reader: Scratch, tree: bytes, base: int) -> None:
        restore_to(
            reader,
            tree,
            self._files,
            owners=(lambda uid, gid: (uid, gid)) if os.geteuid() == 0 else None,
            # It is all that there is of the files: a power cut must not leave half of it.
            durable=True,
            supply=BaseContent(base, clone=self._kind == "reflink"),
        )

    def _rules(self, exclude: Exclude | None, progress: Progress | None) -> Rules:
        return Rules(
            overlay=True,
            mounts=True,
            since=self._since,
            exclude=exclude,
            progress=progress,
            shown=f"{self._base or self._directory}/",
        )

    def prepare(self) -> View:
        """See `OpenWorkspace.prepare`."""
        with owned(open_pinned(self._files)) as files:
            return View(kind="bind", task=place_of(self._files, files))

    def diff(self) -> list[Change] | None:
        """See `OpenWorkspace.diff`."""
        return None

    def capture_beginning(self, sink: Sink, store: Store, progress: Progress | None) -> Scan:
        """See `OpenWorkspace.capture_beginning`."""
        with disk.translated("read", self._directory), self._opened() as task:
            rules = self._rules(self._exclude, progress)
            with owned(open_base(task, self._base)) as base:
                return scan(sink, store, base, rules, directory=self._scans, name=self._cache)

    def capture(
        self,
        sink: Sink,
        store: Store,
        base: Merge | None,
        progress: Progress | None,
        *,
        mapped: bool = False,
        unlock: bool = False,
        before: Scan | None = None,
        layers: bool = True,
    ) -> Scan:
        """See `OpenWorkspace.capture`."""
        del unlock, layers
        if base is not None and not os.path.lexists(self._files):
            # Nobody has opened it yet, so it is what it begins with.
            return Scan(Captured(tree=base.tree, totals=base.totals))
        rules = Rules(
            unlock=True,
            mapped=mapped,
            exclude=self._exclude,
            progress=progress,
            shown="/workspace/",
        )
        with owned(open_pinned(self._files)) as root:
            return scan(
                sink, store, root, rules, directory=self._directory, name=CACHE, before=before
            )

    @contextmanager
    def restoring(self, mounted: int) -> Iterator[int]:
        """See `OpenWorkspace.restoring`."""
        del mounted
        with owned(open_pinned(self._files)) as root:
            yield root

    @property
    def path(self) -> str | None:
        """See `OpenWorkspace.path`."""
        return self._base

    @property
    def spared(self) -> Exclude | None:
        """See `OpenWorkspace.spared`."""
        return self._exclude

    def disk_bytes(self) -> int:
        """See `OpenWorkspace.disk_bytes`."""
        with disk.translated("read", self._files):
            try:
                files = disk.open_directory(self._files)
            except FileNotFoundError:
                return 0
            with owned(files):
                return disk_usage(files)

    def describe(self) -> str:
        """See `OpenWorkspace.describe`."""
        if self._base is None:
            return f"private and empty at first ({self._kind})"
        return f"private {self._kind} of {shown(self._base)}, which itself is not written"

    def notes(self) -> tuple[str, ...]:
        """See `OpenWorkspace.notes`."""
        return (f"kind {self._kind} was chosen: {self._chosen}",) if self._chosen else ()

    @contextmanager
    def _opened(self) -> Iterator[int]:
        with owned(disk.open_directory(self._directory)) as task:
            yield task
