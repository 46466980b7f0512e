"""Packs as files: reading frames out of damaged ones, and the one that a writer appends to.

Invariants: one writer owns a pack and holds its lock as long as it is open. Bytes that were
committed are never written again. A pack whose end is not the end of a whole frame is neither
appended to nor cut, but by the writer that has just failed, back to its own last commit. After a
failed sync a pack is not used again and the sync is not asked for again.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

from sandboxsdk import disk
from sandboxsdk.disk import translated
from sandboxsdk.errors import Corrupt, SandboxError
from sandboxsdk.ids import new_id

from .compression import Malformed
from .files import StoreFiles, read_at
from .frame import (
    FRAME_BYTES_MAX,
    HEADER_BYTES,
    MARK_BYTES,
    PACK_HEADER_BYTES,
    Header,
    Item,
    Newer,
    check_pack_header,
    check_sum,
    mark_of,
    pack_header,
    parse_header,
    parse_table,
)

# A pack that is longer gets no more blocks.
PACK_BYTES = 64 * 1024 * 1024
# A single block may write more into one, for the sake of few syncs, up to here.
PACK_BYTES_MAX = 1024 * 1024 * 1024
_WINDOW = 1024 * 1024
# How often the bytes of a pack are read at most while frames are looked for behind damage.
_SEARCH_FACTOR = 4


class Frame(NamedTuple):
    """A whole frame of a pack, and what is in it."""

    offset: int
    size: int
    items: tuple[Item, ...]


class Gap(NamedTuple):
    """Bytes of a pack that are no whole frame.

    Attributes:
        items: what its table names, if that can still be read.
        torn: the file ends within a frame, as a crash leaves it.
    """

    offset: int
    size: int
    reason: str
    items: tuple[Item, ...]
    torn: bool


class _Broken(Exception):
    def __init__(self, reason: str, header: Header | None = None, *, torn: bool = False) -> None:
        self.reason, self.header, self.torn = reason, header, torn
        super().__init__(reason)


def scan(fd: int, pack: str, start: int, end: int, *, sums: bool = True) -> Iterator[Frame | Gap]:
    """Give what lies between two offsets of a pack, in order and without holes between.

    Behind damage the next frame is looked for. Without `sums`, only headers and tables are read.
    """
    offset, budget = max(start, PACK_HEADER_BYTES), _SEARCH_FACTOR * (end - start) + FRAME_BYTES_MAX
    while offset < end:
        try:
            header, data = _frame(fd, pack, offset, end, sums=sums)
            items = parse_table(data[HEADER_BYTES : HEADER_BYTES + header.table], header)
        except Malformed as error:
            broken = _Broken(str(error))
        except _Broken as error:
            broken = error
        else:
            yield Frame(offset, header.size, items)
            offset += header.size
            budget -= header.size
            continue
        budget -= broken.header.size if broken.header else HEADER_BYTES
        after = end
        if not broken.torn and budget > 0:
            after = _next_frame(fd, pack, offset, end, broken.header)
        yield Gap(
            offset,
            after - offset,
            broken.reason,
            _named(fd, offset, broken.header),
            broken.torn and after == end,
        )
        offset = after


def _frame(fd: int, pack: str, offset: int, end: int, *, sums: bool) -> tuple[Header, bytes]:
    data = read_at(fd, min(HEADER_BYTES, end - offset), offset)
    try:
        if len(data) < HEADER_BYTES:
            raise _Broken("ends within the header of a frame", torn=True)
        header = parse_header(data, pack)
    except Newer as error:
        raise _Broken(f"holds a frame that a newer version wrote ({error})") from error
    except Malformed as error:
        raise _Broken(str(error)) from error
    if header.size > end - offset:
        raise _Broken("ends within a frame", header, torn=True)
    wanted = header.size if sums else HEADER_BYTES + header.table
    data += read_at(fd, wanted - HEADER_BYTES, offset + HEADER_BYTES)
    if len(data) < wanted:
        raise _Broken("became shorter while it was read", header)
    if sums:
        try:
            check_sum(data, pack)
        except Malformed as error:
            raise _Broken(str(error), header) from error
    return header, data


def _named(fd: int, offset: int, header: Header | None) -> tuple[Item, ...]:
    if header is None:
        return ()
    table = read_at(fd, header.table, offset + HEADER_BYTES)
    try:
        return parse_table(table, header) if len(table) == header.table else ()
    except Malformed:
        return ()


def _next_frame(fd: int, pack: str, offset: int, end: int, header: Header | None) -> int:
    """Find the offset of the next frame behind a broken one, or the end."""
    if header is not None:
        after = offset + header.size
        if after == end or _begins(fd, pack, after):
            return after
    mark, position = mark_of(pack), offset + 1
    while position < end:
        window = read_at(fd, min(_WINDOW, end - position), position)
        found = window.find(mark)
        if found >= 0:
            if _begins(fd, pack, position + found):
                return position + found
            position += found + 1
        elif len(window) < MARK_BYTES:
            break
        else:
            position += len(window) - MARK_BYTES + 1
    return end


def _begins(fd: int, pack: str, offset: int) -> bool:
    try:
        parse_header(read_at(fd, HEADER_BYTES, offset), pack)
    except (Malformed, Newer):
        return False
    return True


def read_frame(fd: int, pack: str, offset: int, size: int) -> tuple[Header, bytes]:
    """Give the frame that the index says lies there; its sum is not looked at.

    Raises:
        Malformed: there is none of this size.
        Newer: a newer version wrote it.
    """
    data = read_at(fd, size, offset)
    header = parse_header(data, pack)
    if header.size != size or len(data) != size:
        raise Malformed("has a frame of another size than the index says")
    return header, data


class OpenPack:
    """A pack of ours that is appended to; its lock is held. Made by `begin_pack` and `adopt_pack`.

    Attributes:
        committed: bytes that count; what is behind them is on its way.
        fresh: its name is not on disk yet.
        spoiled: a sync failed, so it is not used again.
    """

    def __init__(self, files: StoreFiles, pack: str, file: io.FileIO, *, fresh: bool) -> None:
        self.pack: str = pack
        self.fresh: bool = fresh
        self.spoiled: bool = False
        self._files, self._file = files, file
        self._appending = threading.Lock()
        self.length: int = os.fstat(file.fileno()).st_size
        self.committed: int = self.length

    @property
    def path(self) -> str:
        return self._files.shown_pack(self.pack)

    @property
    def fd(self) -> int:
        return self._file.fileno()

    def append(self, frame: bytes) -> int:
        """Write a frame at the end; gives its offset."""
        with self._appending:
            offset = self.length
            self.length += len(frame)
        with translated("write", self.path):
            disk.write(self._file.fileno(), frame, offset)
        return offset

    def sync(self) -> None:
        """Have all that was appended on disk. Costs one sync, two when the pack is fresh."""
        try:
            with translated("sync", self.path):
                disk.sync_data(self._file.fileno())
                if self.fresh:
                    self._files.sync_packs()
        except BaseException:
            self.spoiled = True
            raise
        self.fresh = False

    def cut(self) -> None:
        """Take back what was appended since the last commit."""
        with contextlib.suppress(OSError):
            if self.length != self.committed:
                disk.truncate(self._file.fileno(), self.committed)
        self.length = self.committed

    def close(self) -> None:
        """Let go of the pack; others may append to it."""
        self._file.close()


def begin_pack(files: StoreFiles) -> OpenPack:
    """Make a new pack.

    Raises:
        HostFull, HostRefused: it cannot be made.
    """
    pack = new_id()
    with translated("make", files.shown_pack(pack)):
        file = files.create_pack(pack)
        try:
            # Nobody else can have it: the name is new, and a header is missing until it is ours.
            files.lock_pack(file)
            disk.write(file.fileno(), pack_header(pack), 0)
        except BaseException:
            file.close()
            with contextlib.suppress(OSError):
                files.remove_pack(pack)
            raise
    return OpenPack(files, pack, file, fresh=True)


def adopt_pack(files: StoreFiles, pack: str, size: int, last: tuple[int, int]) -> OpenPack | None:
    """Take over a pack whose writer is gone, if it is as long as the index says and its last frame,
    given by offset and size, is whole. Gives None if not.
    """
    try:
        file = files.open_pack(pack, write=True)
    except (OSError, SandboxError):
        return None
    try:
        if _is_adoptable(files, file, pack, size, last):
            return OpenPack(files, pack, file, fresh=False)
    except (OSError, Malformed, Newer, Corrupt):
        pass
    file.close()
    return None


def _is_adoptable(
    files: StoreFiles, file: io.FileIO, pack: str, size: int, last: tuple[int, int]
) -> bool:
    fd = file.fileno()
    if not files.lock_pack(file) or os.fstat(fd).st_size != size or os.fstat(fd).st_nlink != 1:
        return False
    check_pack_header(read_at(fd, PACK_HEADER_BYTES, 0), pack)
    offset, length = last
    if length == 0:
        return size == PACK_HEADER_BYTES
    if offset + length != size:
        return False
    check_sum(read_frame(fd, pack, offset, length)[1], pack)
    return True
