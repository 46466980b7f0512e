"""The names below a directory, noted down: what it takes to tell later that one is gone."""

from __future__ import annotations

import os
from typing import final

import msgspec

from sandboxsdk.codec import decode_msgpack, encode_msgpack
from sandboxsdk.errors import Corrupt
from sandboxsdk.host import Opener, has_openat2

from .rules import Exclude


class _Noted(msgspec.Struct, array_like=True, frozen=True):
    """Paths with their inode numbers, doubled and one more for a directory: a number is used anew
    as soon as it is free.
    """

    paths: tuple[bytes, ...]
    inodes: tuple[int, ...]


@final
class Names:
    """Which names there were, with their inode numbers."""

    def __init__(self, noted: dict[bytes, int]) -> None:
        self._noted = noted

    def __contains__(self, path: bytes) -> bool:
        return path in self._noted

    def was_directory(self, path: bytes, inode: int) -> bool:
        """Say whether a path had the directory with this inode number."""
        return self._noted.get(path) == _number(inode, is_directory=True)


def note_names(root: int, limit: int, exclude: Exclude | None) -> bytes | None:
    """Give all names below a directory, encoded; None if there are more than `limit`, or something
    may not be read. Nothing is followed.
    """
    opener = Opener(with_openat2=has_openat2())
    found: dict[bytes, int] = {}
    waiting: list[tuple[bytes, ...]] = [()]
    while waiting:
        names = waiting.pop()
        try:
            fd = opener.directory(root, list(names)) if names else os.dup(root)
            try:
                reader = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            finally:
                os.close(fd)
            try:
                with os.scandir(reader) as entries:
                    for entry in entries:
                        plain = os.fsencode(entry.name)
                        path = b"/".join((*names, plain))
                        inner = entry.is_dir(follow_symlinks=False)
                        if exclude is not None and exclude(path, inner):
                            continue
                        if len(found) >= limit:
                            return None
                        # What a directory lists as its inode is another one on some file systems.
                        inode = entry.stat(follow_symlinks=False).st_ino if inner else entry.inode()
                        found[path] = _number(inode, is_directory=inner)
                        if inner:
                            waiting.append((*names, plain))
            finally:
                os.close(reader)
        except OSError:
            return None
    return encode_msgpack(_Noted(tuple(found), tuple(found.values())))


def read_names(data: bytes) -> Names | None:
    """Read what `note_names` gave; None if it is damaged."""
    try:
        noted = decode_msgpack(data, _Noted, path="names")
    except Corrupt:
        return None
    if len(noted.paths) != len(noted.inodes):
        return None
    return Names(dict(zip(noted.paths, noted.inodes, strict=True)))


def _number(inode: int, *, is_directory: bool) -> int:
    return inode << 1 | is_directory
