"""The files of a task made what a plan says."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from sandboxsdk.model import Restoring
from sandboxsdk.snapshot import Restored, Scratch, restore_in_place
from sandboxsdk.store import Store
from sandboxsdk.workspace import OpenWorkspace

from .checkpoint import owners_of
from .recording import beginning_of, merge_over

Owners = Callable[[int, int], tuple[int, int]]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where files are restored.

    Attributes:
        mounted: descriptor of the workspace as an open box has it.
        owners: gives the ids to set through it so that on disk they are those given; None where
            no owner can be set.
    """

    mounted: int
    owners: Owners | None = None


def restore_files(
    workspace: OpenWorkspace,
    store: Store,
    plan: Restoring,
    place: Place,
    *,
    current: str | None,
    begun: Callable[[], None],
) -> Restored:
    """Make the files what a plan says, touching only what differs.

    Args:
        current: tree of what is there, if that is known.
        begun: called when all is known to be there and to fit, before anything is touched.
    """
    scratch = Scratch(store)
    if current is None or workspace.layered:
        present = _tree_of(workspace, store, scratch)
    else:
        present = bytes.fromhex(current)
    owners = owners_of(plan.uid)
    if owners is not None and workspace.layered:
        owners = place.owners
    with workspace.restoring(place.mounted) as root:
        return restore_in_place(
            scratch,
            root,
            current=present,
            target=bytes.fromhex(plan.tree),
            owners=owners,
            spare=workspace.spared,
            shown="/workspace/",
            begun=begun,
        )


def _tree_of(workspace: OpenWorkspace, store: Store, scratch: Scratch) -> bytes:
    """Give the tree of what lies there now, the user's own directory looked at anew: a restore must
    find what differs, whoever changed it.
    """
    merge = None
    if workspace.layered:
        base = workspace.capture_beginning(scratch, store, None)
        assert base is not None
        merge = merge_over(scratch, beginning_of(base.captured))
    return workspace.capture(scratch, store, merge, None, unlock=True).captured.tree
