"""Whose files suffer from what is damaged or missing in a store."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping

from sandboxsdk.errors import Corrupt
from sandboxsdk.model import Points, Problem
from sandboxsdk.store import Store, StoreCheck

from .reach import damaged_paths, reachable


def name_victims(store: Store, check: StoreCheck, tasks: Mapping[str, Points]) -> list[Problem]:
    """Give what a check of the store found, with the checkpoints and files that it concerns, and
    the checkpoints that lack something nobody found.

    Args:
        tasks: what the journals say, by the directory of the task.
    """
    lost = {digest for damage in check.problems if damage.lost for digest in damage.digests}
    needs = {root: _needs(store, root) for points in tasks.values() for root in points.roots()}
    problems = []
    for damage in check.problems:
        hit = {
            root
            for root, need in needs.items()
            if damage.digests and (need is None or need & damage.digests)
        }
        if not hit and not os.path.lexists(damage.path):
            # Collected: an index that a power cut has set back does not know it any more.
            continue
        if not hit and damage.digests and not damage.lost and _is_index(damage.path):
            # Second copies that nothing needs: the first ones were collected, with their rows.
            continue
        names, files = _described(store, tasks, hit, damage.digests)
        problems.append(
            Problem(
                path=damage.path,
                reason=damage.reason,
                lost=damage.lost,
                checkpoints=names,
                files=files,
            )
        )
    for directory, points in tasks.items():
        problems += _incomplete(store, directory, points, needs, lost)
    return problems


def _is_index(path: str) -> bool:
    return os.path.basename(path) == "index.sqlite"


def _incomplete(
    store: Store,
    directory: str,
    points: Points,
    needs: Mapping[str, set[bytes] | None],
    lost: set[bytes],
) -> Iterator[Problem]:
    """Tell which checkpoints of a task, or its beginning, lack something that is not among the
    damage.
    """
    kept: list[tuple[str, tuple[str, ...], str]] = [
        (f"checkpoint {record.id}", (record.id,), record.tree) for record in points.records.values()
    ]
    if points.base is not None:
        kept.append(("what the workspace began with", (), points.base.tree))
    for what, checkpoints, tree in kept:
        need = needs[tree]
        missing = set() if need is None else need - store.has(need, certain=True) - lost
        if need is not None and not missing:
            continue
        reason = f"{what} is not whole: something it needs is missing"
        files = _paths(store, tree, missing | lost)
        path = os.path.join(directory, "journal.jsonl")
        yield Problem(path=path, reason=reason, checkpoints=checkpoints, files=files)


def _paths(store: Store, tree: str, digests: Collection[bytes]) -> tuple[str, ...]:
    try:
        root = bytes.fromhex(tree)
    except ValueError:
        return ()
    return tuple(damaged_paths(store, root, digests))


def _needs(store: Store, root: str) -> set[bytes] | None:
    """Give what a tree is made of; None if that cannot be known, because part of it is gone."""
    try:
        return reachable(store, [bytes.fromhex(root)])
    except (Corrupt, ValueError):
        return None


def _described(
    store: Store, tasks: Mapping[str, Points], roots: set[str], digests: frozenset[bytes]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give the ids of the checkpoints with these roots, and some paths that are hit."""
    names: list[str] = []
    files: tuple[str, ...] = ()
    for points in tasks.values():
        for record in points.records.values():
            if record.tree in roots:
                names.append(record.id)
                if not files:
                    files = _paths(store, record.tree, digests)
    return tuple(names), files
