"""What every kind of workspace does, and which one a task has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from sandboxsdk.layers import Layers
from sandboxsdk.model import Change, View, Workspace
from sandboxsdk.snapshot import Captured, Exclude, Merge, Progress, Sink, Totals
from sandboxsdk.store import Store

from .direct import CopiedWorkspace, DirectWorkspace
from .fitting import NOTHING_EXCLUDED, Excluded
from .layering import Standing
from .overlay import Mounted, OverlayWorkspace
from .scan import Scan


class OpenWorkspace(Protocol):
    """A workspace of one task, as those who hold the task use it.

    Attributes:
        begins: whether `begin` must be called, with the tree that it begins with, before it is
            prepared for the first time.
        layered: whether the files that it began with show through where nothing else lies.
    """

    @property
    def begins(self) -> bool: ...

    @property
    def layered(self) -> bool: ...

    def begin(self, store: Store, tree: bytes) -> None:
        """Make the files that it begins with, unless they are there."""
        ...

    def prepare(self) -> View:
        """Make it ready for one mount, and say how it is to be mounted.

        Called before each mount, by the one who holds the task.

        Raises:
            WorkspaceInvalid: the user's directory is gone or is none any more.
            CapabilityError: the home cannot hold a private view.
            HostFull, HostRefused: the host's disk is full, or it refused an operation.
        """
        ...

    def settle(self) -> None:
        """Wait until what was given up is removed; what is done next does so itself."""
        ...

    def is_untouched(self) -> bool:
        """Whether nothing was ever written into the view, or all of it was given up."""
        ...

    def standing(self, store: Store, *, stacks: bool = True) -> Standing:
        """Tell whether the view can be mounted as it lies there.

        "lost" is it without some of its layers, or with ones that do not hold what they should:
        its files are known and have to be put into place once `forget_layers` was called. "torn" is
        it when a power cut lost what it lies over.
        """
        ...

    def forget_layers(self) -> None:
        """Lay what the view holds over the base itself: its files are to be put into place."""
        ...

    def freeze(
        self, captured: Captured, base: bytes, store: Store, boxes: Sequence[Mounted]
    ) -> bool:
        """Make a layer of what the view holds beyond what it lies over, if that is worth it.

        Called when `captured` is on disk and in a journal, and while nothing has written since it
        was captured. What is there stays the same; only going back to it is faster then.

        Args:
            base: digest of what the workspace began with.
            boxes: what has it mounted.
        """
        ...

    def bottom(self) -> bytes:
        """Give the digest of what lies at the bottom of the view, as far as it was told; empty is
        what the workspace began with.
        """
        ...

    def layered_tree(self) -> bytes:
        """Give the digest of the tree that the layers show over that; empty is none but that."""
        ...

    @property
    def path(self) -> str | None:
        """The user's directory, if there is one."""
        ...

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
        """Show a tree by laying the view over the layers that make it; what it held is given up.

        False, and nothing is done, if there are no such layers, a box uses the files, or what is
        excluded would not stay what it is.

        Args:
            bottom: digest of what lies at the bottom now, and if `above` is given did before.
            begun: called before anything is changed.
            excluded: what there is of it, as it was captured.
            above: what the view holds, on disk and in a journal: it is kept as a layer, if it can
                be one.
        """
        ...

    def diff(self) -> list[Change] | None:
        """List what changed since the beginning, in the order of the paths' bytes; None where that
        takes a comparison of trees.

        Raises:
            WorkspaceInvalid: the user's directory is gone or is none any more.
            HostRefused: a directory that changed may not be read.
        """
        ...

    def capture_beginning(self, sink: Sink, store: Store, progress: Progress | None) -> Scan | None:
        """Capture what it began with; None if nobody knows any more.

        Raises:
            WorkspaceInvalid: as `prepare`.
            Denied: something may not be read; the path says what.
        """
        ...

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
        """Capture what it holds now.

        Args:
            base: what it began with, where that is known.
            mapped: programs run that may have files of it mapped.
            unlock: open up for the moment what is closed also in a user's own directory; in the
                task's own that is always done.
            before: what the same walk gave just before, with the same sink: what has not changed
                since then is not read again.
            layers: False says that `base` is what the layers show too.

        Raises:
            WorkspaceInvalid, Denied: as `capture_beginning`.
        """
        ...

    def restoring(self, mounted: int) -> AbstractContextManager[int]:
        """Give the directory to restore in, for a block.

        Args:
            mounted: descriptor of the workspace as an open box has it mounted.
        """
        ...

    @property
    def spared(self) -> Exclude | None:
        """Say which paths no checkpoint has and no restore touches."""
        ...

    def disk_bytes(self) -> int:
        """Count the bytes of disk that it takes beyond the user's directory."""
        ...

    def describe(self) -> str:
        """Say in one line what it is."""
        ...

    def notes(self) -> tuple[str, ...]:
        """Say what a user should know about it, a sentence each."""
        ...


def open_workspace(
    workspace: Workspace,
    *,
    directory: str,
    scans: str,
    layers: Layers,
    since: int | None = None,
    forked: bool = False,
    chosen: str = "",
) -> OpenWorkspace:
    """Open a workspace that went through `resolve`.

    Args:
        directory: the task's own; it exists.
        scans: where walks through users' directories are remembered.
        layers: where frozen layers lie.
        since: UTC nanoseconds; what changed in the user's directory after that is told when it is
            captured.
        forked: it begins with what another one had, and so with nothing that is excluded.
        chosen: why it is of its kind, if that was chosen for it.
    """
    if workspace.mode == "direct":
        return DirectWorkspace(workspace, scans=scans)
    if workspace.kind in ("copy", "reflink"):
        return CopiedWorkspace(
            workspace,
            directory=directory,
            scans=scans,
            since=since,
            forked=forked,
            chosen=chosen,
        )
    return OverlayWorkspace(
        workspace, directory=directory, scans=scans, layers=layers, since=since, chosen=chosen
    )
