"""A directory of the user that changes are applied to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from sandboxsdk import disk
from sandboxsdk.errors import Denied
from sandboxsdk.host import owned
from sandboxsdk.model import Workspace
from sandboxsdk.snapshot import Exclude, Progress, Rules, Sink, excluding, is_leftover
from sandboxsdk.store import Store

from .place import open_pinned
from .scan import Scan, base_cache, scan


@final
class Target:
    """The directory `workspace.path`, read as a private workspace reads what it begins with.

    Args:
        workspace: that went through `resolve`; what it excludes is neither read nor touched.
        scans: where walks through users' directories are remembered.
    """

    def __init__(self, workspace: Workspace, *, scans: str) -> None:
        assert workspace.path is not None
        self.path: str = workspace.path
        excluded = excluding(workspace.exclude)
        # What a run that was killed has left is nobody's.
        self.exclude: Exclude = lambda path, is_directory: (
            is_leftover(path.rpartition(b"/")[2])
            or (excluded is not None and excluded(path, is_directory))
        )
        self._scans = scans
        # The name under which a private workspace remembers the same directory.
        self._cache = base_cache(
            Workspace(mode="private", path=workspace.path, exclude=workspace.exclude)
        )

    def capture(self, sink: Sink, store: Store, progress: Progress | None) -> Scan:
        """Capture what it holds now.

        Raises:
            WorkspaceInvalid: it is gone, or none any more.
            Denied: something may not be read; the path says what.
        """
        rules = Rules(
            overlay=True,
            mounts=True,
            exclude=self.exclude,
            progress=progress,
            shown=f"{self.path}/",
        )
        with owned(open_pinned(self.path)) as root:
            return scan(sink, store, root, rules, directory=self._scans, name=self._cache)

    @contextmanager
    def writing(self) -> Iterator[int]:
        """Give its descriptor for a block; what was written is on disk when the block ends well.

        Raises:
            Denied: it is read-only for us, or lies on a file system that is.
        """
        with owned(open_pinned(self.path)) as root:
            if not os.access(f"/proc/self/fd/{root}", os.W_OK | os.X_OK):
                hint = "make it writable for its owner (chmod u+w), or name another one with to="
                raise Denied(path=self.path, reason="may not be written", hint=hint)
            yield root
            with (
                disk.translated("sync", self.path),
                owned(disk.open_directory(".", dir_fd=root)) as directory,
            ):
                disk.sync_file_system(directory)
