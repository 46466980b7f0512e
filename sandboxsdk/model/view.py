"""How a workspace is to be mounted: what the workspace room tells the runtime room, which does not
know it.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Place(msgspec.Struct, frozen=True):
    """A file or directory of the host, pinned by its identity so that a swap is noticed.

    `owner` is its uid and gid: when root runs a box, the box acts as the owner of what it is given.
    """

    path: str
    device: int
    inode: int
    owner: tuple[int, int] = (0, 0)


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The files behind /workspace.

    Attributes:
        kind: "overlay" puts `upper` over `stack` over `base`; "bind" is the directory `task`.
        base: of an overlay, the read-only directory at the bottom.
        layers: the directory that frozen layers lie in.
        stack: paths of the frozen layers over the base, relative to `layers`, top layer first.
        task: the directory that `upper` and `work` (names relative to it) lie in.
    """

    kind: Literal["overlay", "bind"]
    task: Place
    base: Place | None = None
    layers: Place | None = None
    stack: tuple[str, ...] = ()
    upper: str = ""
    work: str = ""

    @property
    def owner(self) -> tuple[int, int]:
        """Uid and gid of whom the files belong to."""
        return (self.base or self.task).owner
