"""What a task began with and what it has now, brought into the store."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import final

from sandboxsdk.model import Beginning, Points
from sandboxsdk.snapshot import Captured, Progress, Totals
from sandboxsdk.store import Store, Writer
from sandboxsdk.workspace import OpenWorkspace, Scan

from .recording import beginning_of, merge_over


@final
class Present:
    """What a task began with and has now, in the store.

    Attributes:
        base_is_new: nothing knew what it began with before.
        added: bytes that came into the store.
        uid: who captured it; root's captures know owners.
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
    ) -> None:
        self.base: Beginning = base
        self.captured: Captured = captured
        self.uid: int = uid
        self.base_is_new: bool = base_is_new
        self.added: int = added
        self._scans = scans

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
    still: Callable[[], AbstractContextManager[object]],
    busy: Callable[[], bool],
    progress: Progress | None,
) -> Present:
    """Store what the files of a task are now, and what they began with if that is not there yet.

    Args:
        still: makes everything stand still for a block, in which the files are read.
        busy: whether programs run, which may have files mapped.
    """
    scans: list[Scan] = []
    uid = os.geteuid()
    base = points.base
    if base is None:
        begun = workspace.capture_beginning(writer, store, progress)
        if begun is not None:
            scans.append(begun)
            base = beginning_of(begun.captured)
    if points.placed and points.restoring is not None:
        captured = Captured(tree=bytes.fromhex(points.restoring.tree), totals=Totals(0, 0))
        uid = points.restoring.uid
    else:
        merge = None if base is None else merge_over(writer, base)
        with still():
            scan = workspace.capture(writer, store, merge, progress, mapped=busy())
        scans.append(scan)
        captured = scan.captured
    added = writer.commit()
    # What a directory held before its first checkpoint, nobody kept.
    base = base or beginning_of(captured)
    return Present(base, captured, scans, base_is_new=points.base is None, added=added, uid=uid)
