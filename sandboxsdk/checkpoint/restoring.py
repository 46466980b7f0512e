"""The files of a task made what a plan says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from sandboxsdk.model import Points, Restoring
from sandboxsdk.snapshot import (
    BASES,
    Merge,
    Plan,
    Restored,
    Scratch,
    Totals,
    Trees,
    plan,
    rebased,
    restore_in_place,
)
from sandboxsdk.store import Store
from sandboxsdk.workspace import Excluded, Mounted, OpenWorkspace

from .bottom import bottom_of, totals_between
from .checkpoint import owners_of
from .presence import Present
from .taking_away import take_away

Owners = Callable[[int, int], tuple[int, int]]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where files are restored.

    Attributes:
        mounted: descriptor of the workspace as an open box has it.
        owners: gives the ids to set through it so that on disk they are those given; None where
            no owner can be set.
        boxes: those that have it mounted.
    """

    mounted: int
    owners: Owners | None = None
    boxes: tuple[Mounted, ...] = ()


def restore_files(
    workspace: OpenWorkspace,
    store: Store,
    wanted: Restoring,
    place: Place,
    *,
    points: Points,
    left: Present | None,
    totals: Totals | None,
    kept: bool,
    begun: Callable[[], None],
) -> Restored:
    """Make the files what a plan says, touching only what differs.

    Args:
        points: what the journal says.
        left: what is there, if that was just stored, and nothing has written since.
        totals: of the tree that is wanted, if they are known.
        kept: all of it is certainly in the store. Else it is read, and what is missing is noticed,
            whatever layers show.
        begun: called when all is known to be there and to fit, before anything is touched.
    """
    scratch = Scratch(store)
    owners = owners_of(wanted.uid)
    target = bytes.fromhex(wanted.tree)
    if workspace.layered:
        return _restore_layered(
            workspace,
            store,
            target,
            place,
            points=points,
            owners=owners,
            left=left,
            totals=totals,
            kept=kept,
            begun=begun,
        )
    if left is None:
        present = workspace.capture(scratch, store, None, None, unlock=True).captured.tree
    else:
        present = left.captured.tree
    return _restore_in_place(workspace, scratch, present, target, place, owners, begun)


def _restore_in_place(
    workspace: OpenWorkspace,
    scratch: Scratch,
    present: bytes,
    target: bytes,
    place: Place,
    owners: Owners | None,
    begun: Callable[[], None],
) -> Restored:
    with workspace.restoring(place.mounted) as root:
        return restore_in_place(
            scratch,
            root,
            current=present,
            target=target,
            owners=owners,
            spare=workspace.spared,
            shown="/workspace/",
            begun=begun,
        )


def _restore_layered(
    workspace: OpenWorkspace,
    store: Store,
    target: bytes,
    place: Place,
    *,
    points: Points,
    owners: Owners | None,
    left: Present | None,
    totals: Totals | None,
    kept: bool,
    begun: Callable[[], None],
) -> Restored:
    """Lay the view over the layers that make the tree; where there are none, or they would not show
    it, make what differs through the mount, which knows what lies below.
    """
    base = points.base
    assert base is not None
    scratch = Scratch(store)
    bottom = bottom_of(workspace, store, points, base)
    # What lies at the bottom may be another than when the view was laid over it: then it shows
    # something else too.
    stands_on = workspace.bottom() or bytes.fromhex(base.tree)
    as_before = bottom.tree == stands_on
    above = left.above if left is not None and as_before else None
    if above is None:
        if left is not None:
            left.freeze(workspace, store, place.boxes)
        shown = rebased(scratch, stands_on, workspace.layered_tree() or stands_on, bottom.tree)
        merge = Merge(reader=scratch, tree=shown, totals=bottom.totals, bases=BASES)
        captured = workspace.capture(scratch, store, merge, None, layers=False).captured
    else:
        captured = above
    current, equal = captured.tree, as_before and captured.tree == target
    excluded = Excluded(captured.excluded, bottom.excluded)
    switch = partial(workspace.switch, excluded=excluded)
    if kept and not equal:
        trees = Trees(scratch, BASES)
        foretold = plan(trees, current, target, owners=owners)
        totals = totals or totals_between(trees, bottom.tree, bottom.totals, target)
        if switch(target, totals, bottom.tree, store, place.boxes, begun, above=above):
            if left is not None:
                left.let_go()
            return _told(foretold)
    if left is not None:
        left.freeze(workspace, store, place.boxes)
    if equal:
        begun()
        return Restored()
    if kept and not as_before:
        # From an empty view of it, all that differs is known. First see that all is there.
        plan(Trees(scratch), bottom.tree, target, owners=owners)
        if switch(bottom.tree, bottom.totals, bottom.tree, store, place.boxes, begun):
            current = bottom.tree
    if owners is not None:
        owners = place.owners
    if points.placed:
        # Its layers are lost, or nothing was ever here.
        with workspace.restoring(place.mounted) as root:
            take_away(root, bottom.excluded, scratch, target)
    return _restore_in_place(workspace, scratch, current, target, place, owners, begun)


def _told(made: Plan) -> Restored:
    """Say what a switch of layers did, as if each entry had been written. (pure)"""
    touched = [one for one in made.directories if one.metadata and not one.changed]
    return Restored(
        written=made.total,
        removed=len(made.removals),
        touched=len(touched) + len(made.metadata),
    )
