"""What lies at the bottom of a view: the user's directory, which others may have changed."""

from __future__ import annotations

import os

import msgspec

from sandboxsdk.model import Beginning, Points
from sandboxsdk.snapshot import BASES, Totals, Trees, totals_after
from sandboxsdk.store import Store
from sandboxsdk.workspace import OpenWorkspace

# A directory of so many files is looked at: that takes longer than the rest of a restore, but not
# long.
_LOOKED_AT_MAX = 2_000


class Bottom(msgspec.Struct, frozen=True):
    """A tree that lies at the bottom, and what is in it.

    Attributes:
        excluded: topmost paths that are left out of it, as far as they are known.
    """

    tree: bytes
    totals: Totals
    excluded: tuple[bytes, ...] = ()


def bottom_of(workspace: OpenWorkspace, store: Store, points: Points, base: Beginning) -> Bottom:
    """Say what the directory has now, as far as that is quickly told.

    A small directory is looked at, because a restore is to show exactly the checkpoint. Of a large
    one that would take longer than all the rest: it is what the task began with, or what an
    application of the task has made of it; only where one was interrupted it is looked at too.

    Raises:
        WorkspaceInvalid, Denied, HostFull, HostRefused: it cannot be read, or what was read not be
            stored.
    """
    excluded = tuple(map(os.fsencode, base.excluded))
    began = Bottom(bytes.fromhex(base.tree), Totals(base.files, base.bytes), excluded)
    if base.bottom:
        there = bytes.fromhex(base.bottom)
        totals = totals_between(Trees(store, BASES), began.tree, began.totals, there)
        began = Bottom(there, totals, excluded)
    path = workspace.path or ""
    if base.files <= _LOOKED_AT_MAX or path in points.applying:
        return _looked_at(workspace, store, began)
    applied = points.applied.get(path)
    if applied is None:
        return began
    tree = bytes.fromhex(applied.after)
    totals = totals_between(Trees(store, BASES), began.tree, began.totals, tree)
    return Bottom(tree, totals, excluded)


def totals_between(trees: Trees, old: bytes, totals: Totals, new: bytes) -> Totals:
    """Count what a tree holds, from what another one does."""
    return totals_after(lambda digest: trees.directory(digest).nodes, old, totals, new)


def _looked_at(workspace: OpenWorkspace, store: Store, began: Bottom) -> Bottom:
    with store.writing() as writer:
        looked = workspace.capture_beginning(writer, store, None)
        assert looked is not None
        found = looked.captured
        if found.tree == began.tree:
            return msgspec.structs.replace(began, excluded=found.excluded)
        writer.commit()
    looked.remember()
    return Bottom(found.tree, found.totals, found.excluded)
