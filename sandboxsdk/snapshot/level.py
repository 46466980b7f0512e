"""What a walk holds of one directory until all of it can be stored."""

from __future__ import annotations

import os
import stat
from operator import attrgetter
from typing import final

from sandboxsdk.errors import LimitExceeded

from .cache import Seen
from .laying import Base, Laid
from .steady import mtime_of
from .tree import LEVELS_MAX, Attributes, Directory, Node

# What lies deeper has no path that the kernel would take. A tree of 4,096 levels has gigabytes of
# such paths, so none is kept.
_PATH_BYTES_MAX = 4096
_LISTED_MAX = 1000
_LISTED_BYTES_MAX = 1 << 18

_LARGE_BYTES = 1024 * 1024
_SET_ID = stat.S_ISUID | stat.S_ISGID
_READABLE = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NAME_OF = attrgetter("name")


def open_readable(directory: int) -> int:
    """Open a directory again, to be read.

    Raises:
        PermissionError: it may not be read, or not be searched.
    """
    reader = os.open(".", _READABLE, dir_fd=directory)
    try:
        # The right to read lists names; looking at them takes the right to search.
        os.stat(".", dir_fd=reader)
    except BaseException:
        os.close(reader)
        raise
    return reader


@final
class Level:
    """A directory of a walk.

    Attributes:
        name: in the directory above; empty for the root.
        above: the directory above.
        found: what it was when the walk came there.
        attributes: its own.
        nodes: what it lists, directories as soon as they are stored.
        depth: levels above it.
        marked: files in it may stand for names that are not there.
        is_far: it is too deep to be remembered by its path.
        inner: names of the directories to go into; None as long as it was not listed.
        others: how many other entries there are, those that a rule excludes among them.
        seen: what is remembered of it, if all but what lies below it is as it was.
        moved: what lies below it is not.
    """

    __slots__ = (
        "_path",
        "above",
        "attributes",
        "depth",
        "found",
        "inner",
        "is_far",
        "marked",
        "moved",
        "name",
        "nodes",
        "others",
        "seen",
    )

    def __init__(self, name: bytes, above: Level | None, found: os.stat_result) -> None:
        self.name: bytes = name
        self.above: Level | None = above
        self.found: os.stat_result = found
        self.attributes: Attributes = ()
        self.nodes: dict[bytes, Node] | Laid = {}
        self.marked: bool = False
        self.depth: int = 0 if above is None else above.depth + 1
        far: bool = above is not None and above.is_far
        path = b"" if far or above is None else above.below(name)
        self.is_far: bool = far or len(path) > _PATH_BYTES_MAX
        self._path: bytes = b"" if self.is_far else path
        self.inner: tuple[bytes, ...] | None = None
        self.others: int = 0
        self.seen: Seen | None = None
        self.moved: bool = False

    @property
    def path(self) -> bytes:
        """The path from the root of the walk, which has an empty one."""
        if not self.is_far:
            return self._path
        names = []
        level: Level | None = self
        while level is not None and level.is_far:
            names.append(level.name)
            level = level.above
        if level is not None and level.path:
            names.append(level.path)
        return b"/".join(reversed(names))

    def finished(self) -> Base:
        """Give what is to be stored of it, once each directory in it is a node."""
        found, nodes = self.found, self.nodes
        own = Directory(
            stat.S_IMODE(found.st_mode),
            mtime_of(found),
            found.st_uid,
            found.st_gid,
            self.attributes,
            () if isinstance(nodes, Laid) else sorted(nodes.values(), key=_NAME_OF),
        )
        return nodes.finished(own) if isinstance(nodes, Laid) else Base(own)

    def check_depth(self) -> None:
        """Refuse to go deeper where a guest has nested directories without end.

        Raises:
            LimitExceeded: it is as deep as we go.
        """
        if self.depth >= LEVELS_MAX:
            shown = os.fsdecode(self.path[:200])
            reason = f"{shown}...: is nested deeper than {LEVELS_MAX:,} levels"
            raise LimitExceeded(reason=reason)

    def below(self, name: bytes) -> bytes:
        """Give the path of a name in it."""
        path = self.path
        return path + b"/" + name if path else name


@final
class Weight:
    """What was seen of entries that says whether an upper can be frozen."""

    def __init__(self) -> None:
        self.disk_bytes: int = 0
        self.rewritten_bytes: int = 0
        self.has_set_id: bool = False

    def told(self) -> dict[str, int]:
        return {"disk_bytes": self.disk_bytes, "rewritten_bytes": self.rewritten_bytes}

    def add(self, found: os.stat_result, *, again: bool) -> None:
        """Add an entry; `again` says that there was one of its name before."""
        # Blocks of 512 bytes, if the file system counts any.
        size = (found.st_blocks or 0) * 512
        self.disk_bytes += size
        if again and size >= _LARGE_BYTES:
            self.rewritten_bytes += size
        if found.st_mode & _SET_ID:
            self.has_set_id = True


@final
class Listing:
    """Paths to be told to people: not more than somebody would read."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._bytes = 0

    def add(self, path: bytes) -> None:
        """Note a path, unless there are very many already."""
        self._bytes += len(path)
        if len(self._paths) < _LISTED_MAX and self._bytes <= _LISTED_BYTES_MAX:
            self._paths.append(os.fsdecode(path))

    def told(self) -> tuple[str, ...]:
        """Give them in the order of their bytes, each once."""
        return tuple(sorted(set(self._paths), key=os.fsencode))
