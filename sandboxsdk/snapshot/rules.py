"""What a capture is asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from sandboxsdk.model import MovedSince

from .bases import Bases
from .laying import Base
from .totals import Totals, counted
from .tree import Objects

Exclude = Callable[[bytes, bool], bool]
Progress = Callable[[int, int], None]

EXCLUDED_MAX = 1_000
"""So many excluded paths are told, and one more says that there are more."""


class Merge(msgspec.Struct, frozen=True):
    """What an upper is laid over: a tree, and where to read it.

    Attributes:
        bases: remembers directories, so that not each of them is read.
    """

    reader: Objects
    tree: bytes
    totals: Totals
    bases: Bases | None = None

    def base(self, digest: bytes) -> Base:
        """Give a directory of the tree.

        Raises:
            Corrupt: it is missing, damaged, or not what a directory can be.
        """
        if self.bases is None:
            return Base.read(self.reader, digest)
        return self.bases.read(self.reader, digest)

    def totals_of(self, digest: bytes) -> Totals:
        """Count what a directory of the tree holds. Raises as `base`."""
        return counted(lambda below: self.base(below).directory.nodes, digest)


class Captured(msgspec.Struct, frozen=True, kw_only=True):
    """A tree that was stored.

    Attributes:
        tree: digest of the root directory.
        skipped: paths that are named in the tree without what they stand for: sockets, devices.
        changed: files that changed each time they were read.
        mounts: directories and files that something else is mounted on; recorded empty.
        moved: what is younger than the rules' `since`.
        whole: the tree says all of what is there but for `excluded`, as it stood still: nothing
            kept changing, nothing was skipped, no file has several names (or other names among what
            is excluded), nothing set-id bits, and no directory is very deep.
        excluded: topmost paths that the rules leave out, of an upper also what hides one; at most
            `EXCLUDED_MAX` and one more.
        disk_bytes: what an upper takes on disk.
        rewritten_bytes: of that, files of 1 MiB and more that were there before.
    """

    tree: bytes
    totals: Totals
    skipped: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    moved: MovedSince = MovedSince()
    whole: bool = True
    excluded: tuple[bytes, ...] = ()
    disk_bytes: int = 0
    rewritten_bytes: int = 0


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How a directory is to be read.

    Attributes:
        overlay: marks of overlay mean what they mean in an upper or a base: a device 0:0 is a name
            that is not there, and its attributes are not the user's.
        merge: of an upper, what it is laid over.
        unlock: files and directories of ours that their mode closes to us are opened up for the
            moment: they are a guest's, in a directory of the task.
        mapped: running programs may have files mapped, and change them so.
        mounts: whether other mounts are recorded as empty; else they are an error.
        exclude: says of a path whether it is left out, and whether it is a directory is told.
        progress: is called now and then with the files and bytes seen so far.
        shown: what stands before a path in errors.
        since: UTC nanoseconds; what changed after that is told.
    """

    overlay: bool = False
    merge: Merge | None = None
    unlock: bool = False
    mapped: bool = False
    mounts: bool = False
    exclude: Exclude | None = None
    progress: Progress | None = None
    shown: str = ""
    since: int | None = None
