"""What a private view changed, told from its upper layer: acting on the decisions of `comparison`.

The kernel's marks in an upper: a character device 0:0 (or, in a directory marked "x", an empty file
with an attribute) hides that name of the base; a directory marked "y" hides the base's directory of
that name, and so does everything below it. Any other entry replaces the base's. What the upper does
not name is unchanged and is not looked at, so the cost is that of the change.
"""

from __future__ import annotations

import os
from typing import NamedTuple, final

from sandboxsdk.errors import HostRefused
from sandboxsdk.model import Change
from sandboxsdk.snapshot import (
    Content,
    Entry,
    Exclude,
    compare,
    contents_matter,
    make_change,
    pair_renames,
    rename_candidates,
    with_renames,
)
from sandboxsdk.units import format_size

from .layer import WHITEOUT, Layer

# Memory that the paths of one diff may take: a guest can nest directories without end, and each
# path holds all names above it.
_PATH_BYTES_MAX = 512 * 1024 * 1024


def difference(
    base: Layer,
    upper: Layer,
    *,
    exclude: Exclude | None = None,
    path_bytes_max: int = _PATH_BYTES_MAX,
) -> list[Change]:
    """List what differs between the base and the view, in the order of the paths' bytes; what
    `exclude` names is passed over.

    May run while the view is in use: what moves meanwhile is told as it was when we looked.

    Raises:
        HostRefused: a changed directory may not be read, or the list would not fit into memory.
    """
    changes = _Walk(base, upper, exclude, path_bytes_max).run()
    removed, added = rename_candidates(changes)
    pairs = pair_renames(_contents(base, removed), _contents(upper, added))
    return with_renames(changes, pairs)


def _contents(layer: Layer, changes: list[Change]) -> list[Content]:
    found = []
    for change in changes:
        size = (change.size if change.kind == "added" else change.old_size) or 0
        digest = layer.digest(change.path, size)
        if digest is not None:
            found.append(Content(change.path, size, digest))
    return found


class _Visit(NamedTuple):
    """A directory to look at.

    Attributes:
        complete: whether the upper says all there is, so that names of the base alone are gone.
    """

    path: str
    in_base: bool
    in_upper: bool
    complete: bool


@final
class _Walk:
    def __init__(
        self, base: Layer, upper: Layer, exclude: Exclude | None, path_bytes_max: int
    ) -> None:
        self._base = base
        self._upper = upper
        self._exclude = exclude
        self._changes: list[Change] = []
        self._pending = [_Visit("", in_base=True, in_upper=True, complete=False)]
        self._path_bytes_max = path_bytes_max
        self._path_bytes = 0

    def run(self) -> list[Change]:
        while self._pending:
            self._look(self._pending.pop())
        return self._changes

    def _look(self, visit: _Visit) -> None:
        path, complete = visit.path, visit.complete
        above = self._upper.directory(path) if visit.in_upper else None
        below = self._base.directory(path) if visit.in_base else None
        names: set[str] = set()
        marker = b""
        if above is not None:
            listed, marker = self._upper.listing(above, path)
            names.update(listed)
        # The root is always merged with the base: the mount itself says so.
        complete = complete or (marker == b"y" and path != "")
        if complete and below is not None:
            names.update(self._base.listing(below, path)[0])
        for name in names:
            child = f"{path}/{name}" if path else name
            new = None
            if above is not None:
                new = self._upper.entry(above, child, marked=marker == b"x")
                if new is None and not complete:
                    continue  # It vanished while we looked: the base shows through.
            old = None if below is None else self._base.entry(below, child)
            if self._exclude is not None and (old is not None or new is not None):
                shown = new if new is not None and new is not WHITEOUT else old
                is_directory = shown is not None and shown.is_directory
                if self._exclude(os.fsencode(child), is_directory):
                    continue
            # Anybody can plant a whiteout in a base; an overlay takes it for one.
            self._tell(
                child,
                None if old is WHITEOUT else old,
                None if new is WHITEOUT else new,
                complete=complete,
            )

    def _tell(self, path: str, old: Entry | None, new: Entry | None, *, complete: bool) -> None:
        self._path_bytes += len(path)
        if self._path_bytes > self._path_bytes_max:
            hint = "look for directories nested without end and remove them in the sandbox"
            reason = f"the list of changes exceeds {format_size(self._path_bytes_max)}"
            raise HostRefused(what="cannot compare", path=path[:200], reason=reason, hint=hint)
        same = not contents_matter(old, new) or self._base.same_content(self._upper, path)
        kind = compare(old, new, same_content=same)
        if kind is not None:
            self._changes.append(make_change(kind, path, old, new))
        in_base = old is not None and old.is_directory
        in_upper = new is not None and new.is_directory
        if in_base or in_upper:
            # Without a directory in the upper, all that the base's held is gone.
            self._pending.append(_Visit(path, in_base, in_upper, complete or not in_upper))
