"""What counts as a change: the decisions of a diff, on values alone. (pure)

Knows nothing of overlays or descriptors: it is handed what was there before and what is there now.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterable

import msgspec

from sandboxsdk.model import Change, ChangeKind


class Entry(msgspec.Struct, frozen=True):
    """One name of a directory, as far as a diff looks at it.

    Attributes:
        kind: file type, as `stat.S_IFMT` gives it.
        mode: permission bits, set-id and sticky bits included.
        size: bytes of a regular file; None for anything else.
        target: where a symlink points.
        device: what a device node stands for; 0 for anything else.
    """

    kind: int
    mode: int
    size: int | None = None
    target: str | None = None
    device: int = 0

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR


class Content(msgspec.Struct, frozen=True):
    """The content of one file that came or went."""

    path: str
    size: int
    digest: str


def contents_matter(old: Entry | None, new: Entry | None) -> bool:
    """Say whether only reading both files tells whether they differ."""
    return old is not None and new is not None and bool(old.size) and old.size == new.size


def compare(
    old: Entry | None, new: Entry | None, *, same_content: bool = True
) -> ChangeKind | None:
    """Say in which way an entry changed; None is not at all.

    `same_content` is asked for where `contents_matter`.
    """
    if old is None:
        return None if new is None else "added"
    if new is None:
        return "removed"
    if old.kind != new.kind:
        return "type"
    before, now = (old.size, old.target, old.device), (new.size, new.target, new.device)
    if before != now or not same_content:
        return "modified"
    return None if old.mode == new.mode else "mode"


def make_change(kind: ChangeKind, path: str, old: Entry | None, new: Entry | None) -> Change:
    """Tell what `compare` found; at least one side is there."""
    shown = old if new is None else new
    assert shown is not None
    size = None if new is None else new.size
    old_size = None if old is None else old.size
    return Change(kind=kind, path=path, size=size, old_size=old_size, mode=shown.mode)


def rename_candidates(changes: Iterable[Change]) -> tuple[list[Change], list[Change]]:
    """Give the removed and the added files whose size occurs on both sides: worth reading."""
    removed = [change for change in changes if change.kind == "removed" and change.old_size]
    added = [change for change in changes if change.kind == "added" and change.size]
    sizes = {change.old_size for change in removed} & {change.size for change in added}
    return (
        [change for change in removed if change.old_size in sizes],
        [change for change in added if change.size in sizes],
    )


def pair_renames(removed: Iterable[Content], added: Iterable[Content]) -> dict[str, str]:
    """Give the old path of each file that moved, by its new path.

    Same content is what makes a pair. Among equals a file that kept its name comes first; the rest
    is paired in the order of paths, so that the answer never depends on a directory's order.
    """
    groups: dict[tuple[int, str], tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, contents in enumerate((removed, added)):
        for content in contents:
            groups[content.size, content.digest][side].append(content.path)
    pairs: dict[str, str] = {}
    for old_paths, new_paths in groups.values():
        by_name: dict[str, list[str]] = defaultdict(list)
        for path in sorted(old_paths, key=os.fsencode, reverse=True):
            by_name[_name(path)].append(path)
        moved = set()
        for path in sorted(new_paths, key=os.fsencode):
            if by_name[_name(path)]:
                pairs[path] = by_name[_name(path)].pop()
                moved.add(pairs[path])
        old_rest = sorted((path for path in old_paths if path not in moved), key=os.fsencode)
        new_rest = sorted((path for path in new_paths if path not in pairs), key=os.fsencode)
        pairs.update(zip(new_rest, old_rest, strict=False))
    return pairs


def with_renames(changes: Iterable[Change], pairs: dict[str, str]) -> list[Change]:
    """Give the changes in the order of their paths' bytes, each pair as one."""
    gone = set(pairs.values())
    told = []
    for change in changes:
        old_path = pairs.get(change.path) if change.kind == "added" else None
        if old_path is not None:
            told.append(
                Change(
                    kind="renamed",
                    path=change.path,
                    old_path=old_path,
                    size=change.size,
                    old_size=change.size,
                    mode=change.mode,
                )
            )
        elif change.kind != "removed" or change.path not in gone:
            told.append(change)
    return sorted(told, key=lambda change: os.fsencode(change.path))


def _name(path: str) -> str:
    return path.rpartition("/")[2]
