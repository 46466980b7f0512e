"""Files as a dict, and edits of it.

The dict is the naive truth: an entry per path, one and the same entry for all names of a hard link.
Every change of it is also noted down as a step for `taking`, with the times that the kernel would
set by itself: so modes, contents and times of files and directories are all known exactly.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import stat
import zlib
from collections.abc import Iterable
from typing import Any

from sandboxsdk.model import Change

FILE, DIRECTORY, SYMLINK, FIFO = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO

Seen = dict[str, list[Any]]
Told = tuple[str, str, int | None, int | None, int, str | None]

# Deeper than this nothing is made.
_DEPTH_MAX = 7


# The same few contents are asked for after every step.
@functools.lru_cache(4096)
def _checksum(content: bytes) -> int:
    return zlib.crc32(content)


@functools.lru_cache(4096)
def _has_hole(content: bytes) -> bool:
    return bytes(512) in content


@dataclasses.dataclass(slots=True)
class Entry:
    """What one or more names stand for."""

    kind: int
    mode: int
    time: int = 0
    content: bytes = b""
    target: str | None = None
    notes: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int | None:
        return len(self.content) if self.kind == FILE else None


def order(paths: Iterable[str]) -> list[str]:
    return sorted(paths, key=os.fsencode)


def join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def above(path: str) -> str:
    return path.rpartition("/")[0]


class Files:
    """Files by path; "" is the directory itself. `steps` is what was done since they were taken."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.steps: list[list[Any]] = []
        self._seconds = 10**9

    def copy(self) -> Files:
        """Give the same files; names of one entry stay names of one."""
        made = Files()
        same = {id(e): dataclasses.replace(e, notes=dict(e.notes)) for e in self.entries.values()}
        made.entries = {path: same[id(entry)] for path, entry in self.entries.items()}
        made._seconds = self._seconds
        return made

    def become(self, other: Files) -> None:
        """Have the files of another one; time goes on."""
        self.entries = other.copy().entries

    def take_steps(self) -> list[list[Any]]:
        """Give what leads to the same files from those of the last time, once."""
        steps, self.steps = self.steps, []
        return steps

    def seen(self) -> Seen:
        """Give what `taking` sees."""
        found: Seen = {}
        for path, e in self.entries.items():
            closed = not e.mode & 0o400
            content = _checksum(e.content) if e.kind == FILE and not closed else None
            notes = {} if closed else dict(e.notes)
            found[path] = [e.kind, e.mode, e.size or 0, e.time, e.target, content, notes]
        return found

    def plain(self) -> bool:
        """Tell whether there is but one way to store these files.

        What is a hole is for the file system and a copy to say; how the names of a hard link are
        numbered depends on which layer they lie in.
        """
        entries = self.entries.values()
        return len({id(entry) for entry in entries}) == len(entries) and not self.holed()

    def holed(self) -> dict[str, Entry]:
        """Give the files that may have holes."""
        return {path: e for path, e in self.entries.items() if _has_hole(e.content)}

    # --- Asking -----------------------------------------------------------------------------------

    def of(self, *kinds: int) -> list[str]:
        return order(path for path, e in self.entries.items() if e.kind in kinds and path)

    def below(self, path: str) -> list[str]:
        """Give the path and all below it, from the top."""
        if not path:
            return order(self.entries)
        return order(p for p in self.entries if p == path or p.startswith(f"{path}/"))

    def folders(self) -> list[str]:
        """Give the directories in which something can be made."""
        found = ["", *self.of(DIRECTORY)]
        return [p for p in found if self.entries[p].mode & 0o200 and p.count("/") < _DEPTH_MAX]

    def removable(self, path: str) -> bool:
        """Tell whether the box's user may remove a path with all that is below it."""
        open_above = self.entries[above(path)].mode & 0o200
        return bool(path and open_above and self._all_open(path))

    def _all_open(self, path: str) -> bool:
        inner = (self.entries[p] for p in self.below(path))
        return all(e.mode & 0o200 for e in inner if e.kind == DIRECTORY)

    # --- Doing ------------------------------------------------------------------------------------

    def stamp(self, path: str, time: int | None = None) -> None:
        """Set the time of a path: the next second, unless told."""
        self._seconds += 1
        self.entries[path].time = self._seconds * 10**9 + 123_456_789 if time is None else time
        self.steps.append(["stamp", path or ".", self.entries[path].time])

    def _made(self, path: str, entry: Entry, *step: Any) -> None:
        self.entries[path] = entry
        self.steps.append(list(step))
        self.stamp(path)
        self.stamp(above(path))

    def make(self, path: str, content: bytes = b"", mode: int = 0o644) -> None:
        """Make a file where nothing is."""
        pieces = [[0, content.hex()]] if content else []
        step = ("write", path, os.O_CREAT | os.O_EXCL, mode, None, pieces)
        self._made(path, Entry(FILE, mode, content=content), *step)

    def make_sparse(self, path: str, size: int, at: int) -> None:
        """Make a file of holes around a few bytes."""
        content = bytearray(size)
        content[at : at + 6] = b"island"
        pieces = [[at, b"island".hex()]]
        step = ("write", path, os.O_CREAT | os.O_EXCL, 0o644, size, pieces)
        self._made(path, Entry(FILE, 0o644, content=bytes(content)), *step)

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        self._made(path, Entry(DIRECTORY, mode), "mkdir", path, mode)

    def mkfifo(self, path: str, mode: int = 0o644) -> None:
        self._made(path, Entry(FIFO, mode), "mkfifo", path, mode)

    def symlink(self, path: str, target: str) -> None:
        self._made(path, Entry(SYMLINK, 0o777, target=target), "symlink", target, path)

    def link(self, old: str, new: str) -> None:
        self._made(new, self.entries[old], "link", old, new)

    def overwrite(self, path: str, content: bytes, *, fresh: bool, keep: bool = False) -> None:
        """Write all of a file in place; `fresh` truncates it at first, `keep` keeps its time."""
        e = self.entries[path]
        e.content = content
        pieces = [[0, content.hex()]] if content else []
        flags, size = (os.O_TRUNC, None) if fresh else (0, len(content))
        self.steps.append(["write", path, flags, 0, size, pieces])
        self.stamp(path, e.time if keep else None)

    def write_at(self, path: str, at: int, data: bytes, size: int | None = None) -> None:
        """Cut or extend a file to a size, and write a piece into it."""
        e = self.entries[path]
        content = bytearray(e.content)
        if size is not None:
            content = content[:size] + bytes(max(0, size - len(content)))
        if data:
            content += bytes(max(0, at + len(data) - len(content)))
            content[at : at + len(data)] = data
        e.content = bytes(content)
        pieces = [[at, data.hex()]] if data else []
        self.steps.append(["write", path, 0, 0, size, pieces])
        self.stamp(path)

    def chmod(self, path: str, mode: int) -> None:
        self.entries[path].mode = mode
        self.steps.append(["chmod", path or ".", mode])

    def note(self, path: str, name: str, value: bytes | None) -> None:
        """Set or remove an attribute of a user."""
        notes = self.entries[path].notes
        if value is None:
            del notes[name]
        else:
            notes[name] = value.hex()
        self.steps.append(["note", path or ".", name, None if value is None else value.hex()])

    def remove(self, path: str) -> None:
        for inner in self.below(path):
            del self.entries[inner]
        self.steps.append(["remove", path])
        self.stamp(above(path))

    def move(self, old: str, new: str) -> None:
        """Rename over what is there, if anything is."""
        if self.entries.get(new) is self.entries[old]:
            return  # rename(2) of one name of a file over another one does nothing.
        moved = {path: self.entries.pop(path) for path in self.below(old)}
        for path, entry in moved.items():
            self.entries[new + path[len(old) :]] = entry
        self.steps.append(["move", old, new])
        self.stamp(above(old))
        self.stamp(above(new))

    def clear(self, path: str) -> bool:
        """Remove what is there; False if something is there that the user may not remove."""
        if path not in self.entries:
            return True
        if not self.removable(path):
            return False
        self.remove(path)
        return True


# --- What a diff says -----------------------------------------------------------------------------


def differences(old: Files, new: Files, *, closed: bool = False) -> list[Told]:
    """Tell what changed: each path by itself, then files that moved with exactly their content.

    Args:
        closed: as far as it can be told without reading what the owner may not read: such a file
            counts as different, and as moved from nowhere.
    """
    told: dict[str, Told] = {}
    removed: dict[bytes, list[str]] = {}
    added: dict[bytes, list[str]] = {}
    for path in order(old.entries.keys() | new.entries.keys()):
        was, now = old.entries.get(path), new.entries.get(path)
        kind = _kind(was, now)
        unread = closed and now is not None and now.kind == FILE and not now.mode & 0o400
        if unread and kind == "mode" and now and now.size:
            kind = "modified"
        if kind is None or not path:
            continue
        shown = now or was
        assert shown is not None
        sizes = (now.size if now else None, was.size if was else None)
        told[path] = (kind, path, *sizes, shown.mode, None)
        if kind in ("added", "removed") and shown.size and not unread:
            side = added if kind == "added" else removed
            side.setdefault(shown.content, []).append(path)
    for content, there in added.items():
        gone = removed.get(content, [])
        for new_path, old_path in _pairs(gone, there):
            _, _, size, _, mode, _ = told[new_path]
            told[new_path] = ("renamed", new_path, size, size, mode, old_path)
            del told[old_path]
    return [told[path] for path in order(told)]


def _kind(was: Entry | None, now: Entry | None) -> str | None:
    if was is None or now is None:
        return "added" if was is None else "removed"
    if was.kind != now.kind:
        return "type"
    if (was.content, was.target) != (now.content, now.target):
        return "modified"
    return None if was.mode == now.mode else "mode"


def _pairs(gone: list[str], there: list[str]) -> list[tuple[str, str]]:
    """Pair paths: those that kept their name first, the rest in order."""
    gone, rest, found = list(gone), [], []
    for path in there:
        same = [p for p in gone if p.rpartition("/")[2] == path.rpartition("/")[2]]
        if same:
            gone.remove(same[0])
            found.append((path, same[0]))
        else:
            rest.append(path)
    return [*found, *zip(rest, gone, strict=False)]


def shown(changes: Iterable[Change]) -> list[Told]:
    """Give changes as `differences` has them."""
    return [(c.kind, c.path, c.size, c.old_size, c.mode, c.old_path) for c in changes]
