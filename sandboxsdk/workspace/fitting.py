"""Whether excluded paths stay what they are when the view is laid over other layers.

They do where they find the directories that they lie in, and as much or as little below them as
before. Where that is not simple, a restore writes through the mount instead.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple, final

from sandboxsdk.host import Opener, has_openat2, owned
from sandboxsdk.snapshot import BASES, DIRECTORY, Directory, Objects, is_whiteout, read_attributes

from .carrying import Groups, Parts, grouped, is_open

_READABLE = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Excluded(NamedTuple):
    """Topmost paths that no checkpoint has.

    Attributes:
        above: what the upper holds of them.
        below: what lies at the bottom, as far as that is known.
        hide: that is not to show: there is no upper yet, and it is a fork's.
    """

    above: Sequence[bytes] = ()
    below: Sequence[bytes] = ()
    hide: bool = False


NOTHING_EXCLUDED = Excluded()


class Taken(Exception):
    """Something that is no directory is wanted where one has to be."""


@final
class Wanted:
    """The directories of a tree, by their path."""

    def __init__(self, reader: Objects, tree: bytes) -> None:
        self._reader, self._tree = reader, tree

    def __call__(self, parts: Parts) -> Directory | None:
        """Give a directory; None if there is none.

        Raises:
            Taken: something else is there, or on the way.
            Corrupt: it is missing or damaged.
        """
        digest = self._tree
        for name in parts:
            node = BASES.read(self._reader, digest).find(name)
            if node is None:
                return None
            if node.kind != DIRECTORY:
                raise Taken
            digest = node.content
        return BASES.read(self._reader, digest).directory


def fit(
    upper: int,
    excluded: Excluded,
    base: int,
    wanted: Wanted,
    *,
    now: Sequence[int],
    then: Sequence[int],
) -> bool:
    """Tell whether they stay what they are when those of an upper are moved into one over other
    layers, and the rest shows through or does not.

    Args:
        base: descriptor of what lies at the bottom.
        wanted: the tree that will show.
        now, then: descriptors of the upper and the layers below it, and of the layers to be, the
            top one first.

    Raises:
        OSError: something cannot be read.
        Corrupt: a part of the tree is missing or damaged.
    """
    fitting = _Fitting(base, wanted, now, then)
    groups = grouped(excluded.above)
    return all(fitting.takes(upper, parts, names) for parts, names in groups.items()) and all(
        fitting.shows_as_before(parts, set(names).difference(groups.get(parts, ())))
        for parts, names in grouped(excluded.below).items()
    )


def showing(paths: Sequence[bytes], base: int, wanted: Wanted, then: Sequence[int]) -> Groups:
    """Give those of these paths of what lies at the bottom that would show over layers.

    Args:
        base, wanted, then: as for `fit`.

    Raises:
        OSError, Corrupt: as `fit`.
    """
    fitting = _Fitting(base, wanted, (), then)
    found = {
        parts: [name for name in names if fitting.has(parts, name)]
        for parts, names in grouped(paths).items()
        if fitting.shows_then(parts)
    }
    return {parts: names for parts, names in found.items() if names}


@final
class _Fitting:
    def __init__(self, base: int, wanted: Wanted, now: Sequence[int], then: Sequence[int]) -> None:
        self._opener = Opener(with_openat2=has_openat2())
        self._base, self._wanted = base, wanted
        self._now, self._then = _Showing(self._opener, now), _Showing(self._opener, then)

    def takes(self, upper: int, parts: Parts, names: list[bytes]) -> bool:
        """Tell whether names of a directory of the upper can be moved."""
        try:
            directories = [self._wanted(parts[:depth]) for depth in range(len(parts) + 1)]
        except Taken:
            return False
        there = directories[-1]
        if any(found is not None and not is_open(found.mode) for found in directories):
            return False
        if there is not None and any(node.name in names for node in there.nodes):
            return False
        same = self._now(parts) == self.shows_then(parts)
        with owned(self._opener.directory(upper, parts)) as place:
            for name in names:
                found = os.stat(name, dir_fd=place, follow_symlinks=False)
                if is_whiteout(found) and there is None:
                    return False  # There it would be a name that cannot be looked at.
                if stat.S_ISDIR(found.st_mode) and not (
                    same or _is_opaque(name, place) or not self.has(parts, name)
                ):
                    return False
        return True

    def shows_as_before(self, parts: Parts, names: set[bytes]) -> bool:
        """Tell whether names at the bottom neither come to light nor go."""
        if not names or self._now(parts) == self.shows_then(parts):
            return True
        return not any(self.has(parts, name) for name in names)

    def shows_then(self, parts: Parts) -> bool:
        """Tell whether what lies at the bottom will show in a directory."""
        try:
            return self._wanted(parts) is not None and self._then(parts)
        except Taken:
            return False

    def has(self, parts: Parts, name: bytes) -> bool:
        """Tell whether there is a name at the bottom."""
        try:
            with owned(self._opener.directory(self._base, parts)) as place:
                os.stat(name, dir_fd=place, follow_symlinks=False)
        except OSError:
            return False
        return True


@final
class _Showing:
    """Tells of a directory whether what lies at the bottom shows through in it."""

    def __init__(self, opener: Opener, layers: Sequence[int]) -> None:
        self._opener = opener
        # The layers that have it; None where something hides what lies below.
        self._having: dict[Parts, list[int] | None] = {(): list(layers)}

    def __call__(self, parts: Parts) -> bool:
        for depth in range(1, len(parts) + 1):
            here = parts[:depth]
            if here not in self._having:
                above = self._having[here[:-1]]
                self._having[here] = None if above is None else self._look(above, here)
        return self._having[parts] is not None

    def _look(self, layers: list[int], parts: Parts) -> list[int] | None:
        having = []
        for layer in layers:
            with owned(self._opener.directory(layer, parts[:-1])) as place:
                try:
                    found = os.stat(parts[-1], dir_fd=place, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if not stat.S_ISDIR(found.st_mode) or _is_opaque(parts[-1], place):
                    return None
            having.append(layer)
        return having


def _is_opaque(name: bytes, place: int) -> bool:
    with owned(os.open(name, _READABLE, dir_fd=place)) as directory:
        return read_attributes(directory, overlay=True).opaque == b"y"
