"""What a task began with and what it has now, brought into the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import final

from sandboxsdk import clock
from sandboxsdk.errors import SandboxError
from sandboxsdk.model import Beginning, Points
from sandboxsdk.snapshot import YOUNG_SECONDS, Captured, Merge, Progress, Totals
from sandboxsdk.store import Store, Writer
from sandboxsdk.workspace import Mounted, OpenWorkspace, Scan

from .recording import beginning_of, merge_over


@final
class Present:
    """What a task began with and has now, in the store.

    Attributes:
        base_is_new: nothing knew what it began with before.
        added: bytes that came into the store.
        uid: who captured it; root's captures know owners.
        paused: seconds for which running programs stood still.
    """

    def __init__(
        self,
        base: Beginning,
        captured: Captured,
        scans: list[Scan],
        *,
        base_is_new: bool,
        added: int,
        uid: int,
        paused: float,
        above: Scan | None = None,
    ) -> None:
        self.base: Beginning = base
        self.captured: Captured = captured
        self.uid: int = uid
        self.base_is_new: bool = base_is_new
        self.added: int = added
        self.paused: float = paused
        self._scans = scans
        # What can be made a layer.
        self._above = above

    @property
    def above(self) -> Captured | None:
        """What the view holds and could be made a layer, if it still is there."""
        return None if self._above is None else self._above.captured

    def freeze(self, workspace: OpenWorkspace, store: Store, boxes: Sequence[Mounted]) -> None:
        """Have what was captured made a layer, once it is on disk and noted, while nothing has
        written since. That it could not be is no failure.
        """
        if self._above is not None:
            with suppress(SandboxError):
                base = bytes.fromhex(self.base.tree)
                if workspace.freeze(self.captured, base, store, boxes):
                    self.let_go()

    def let_go(self) -> None:
        """Forget the walk through what does not lie above any layers any more."""
        if self._above is not None:
            self._scans.remove(self._above)
            self._above = None

    def remember(self) -> None:
        """Write down what was learned, once the journal says what is in the store."""
        for done in self._scans:
            done.remember()


def look(
    workspace: OpenWorkspace,
    store: Store,
    writer: Writer,
    points: Points,
    *,
    still: Callable[[], AbstractContextManager[Sequence[Mounted] | None]],
    boxes: Callable[[], Sequence[Mounted]],
    progress: Progress | None,
    noted: Callable[[Present], object],
    freeze: bool,
) -> Present:
    """Store what the files of a task are now, and what they began with if that is not there yet.

    Args:
        freeze: where nothing runs, what the view holds becomes a layer.
        still: makes everything stand still for a block, in which the files are read; gives the
            boxes that have them mounted.
        boxes: gives those without making them stand still.
        noted: writes into the journal what is in the store by then.
    """
    scans: list[Scan] = []
    base = points.base
    if base is None:
        begun = workspace.capture_beginning(writer, store, progress)
        if begun is not None:
            scans.append(begun)
            base = beginning_of(begun.captured)

    def settled(
        captured: Captured, uid: int, paused: float = 0.0, above: Scan | None = None
    ) -> Present:
        added = writer.commit()
        present = Present(
            # What a directory held before its first checkpoint, nobody kept.
            base or beginning_of(captured),
            captured,
            scans,
            base_is_new=points.base is None,
            added=added,
            uid=uid,
            paused=paused,
            above=above,
        )
        noted(present)
        return present

    if points.placed and points.restoring is not None:
        plan = points.restoring
        return settled(Captured(tree=bytes.fromhex(plan.tree), totals=Totals(0, 0)), plan.uid)
    merge = None if base is None else merge_over(writer, base)
    ahead = None
    if any(box.busy() for box in boxes()):
        ahead = _looked_ahead(workspace, store, writer, merge, progress)
    with ExitStack() as standing:
        began, paused = clock.monotonic(), 0.0
        stopped = standing.enter_context(still()) or ()
        busy = any(box.busy() for box in stopped)
        scan = workspace.capture(writer, store, merge, progress, mapped=busy, before=ahead)
        if busy:
            # It has stood still long enough.
            standing.close()
            paused = clock.monotonic() - began
        scans.append(scan)
        above = None if busy or base is None else scan
        present = settled(scan.captured, os.geteuid(), paused, above)
        if freeze:
            present.freeze(workspace, store, stopped)
    return present


def _looked_ahead(
    workspace: OpenWorkspace,
    store: Store,
    writer: Writer,
    merge: Merge | None,
    progress: Progress | None,
) -> Scan | None:
    """Read what there is before those stand still that change it: then only what they change in
    between has to be read while they wait. None if they did not let us.
    """
    with suppress(SandboxError):
        scan = workspace.capture(writer, store, merge, progress, mapped=True)
        if scan.learned is not None and scan.learned.has_young:
            # What has just changed is trusted when it is a little older.
            clock.pause(YOUNG_SECONDS)
            scan = workspace.capture(writer, store, merge, progress, mapped=True, before=scan)
        return scan
    return None
