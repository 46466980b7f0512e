"""Objects read from where they are said to lie, and believed only when their digest agrees."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator

from sandboxsdk.codec import typed_digest
from sandboxsdk.disk import translated
from sandboxsdk.errors import Corrupt, Unavailable

from .compression import Malformed
from .files import StoreFiles, read_at
from .frame import HEADER_BYTES, Item, Newer, content, holds, parse_header, parse_table
from .index import Place
from .pack import read_frame

_FILES_MAX = 24
_KEPT_BYTES_MAX = 8 * 1024 * 1024

# Not the disk's fault.
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)


class Wrong(Exception):
    """What lies at a place is not what was stored there. Fields: path, reason."""

    def __init__(self, path: str, reason: str) -> None:
        self.path: str = path
        self.reason: str = reason
        super().__init__(reason)


class Reader:
    """Reads packs; keeps some of them open, and the segments that were read last.

    May be used from several threads.
    """

    def __init__(self, files: StoreFiles) -> None:
        self._files = files
        self._guard = threading.Lock()
        self._open: OrderedDict[str, io.FileIO] = OrderedDict()
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._kept_bytes = 0

    def close(self) -> None:
        """Let go of everything."""
        self.keep(frozenset())

    def keep(self, packs: frozenset[str] | dict[str, int]) -> None:
        """Let go of all but these packs."""
        with self._guard:
            for pack in [pack for pack in self._open if pack not in packs]:
                self._open.pop(pack).close()
            for key in [key for key in self._kept if key[0] not in packs]:
                self._kept_bytes -= len(self._kept.pop(key))

    def forget_segments(self) -> None:
        """Read anew from disk what comes next."""
        with self._guard:
            self._kept.clear()
            self._kept_bytes = 0

    def get(self, kind: int, digest: bytes, place: Place) -> bytes:
        """Give an object.

        Raises:
            Wrong: what lies there is something else.
            Unavailable: a newer version wrote it.
            HostRefused: it cannot be read.
        """
        return self.take(self.segment(place), kind, digest, place)

    def take(self, segment: bytes, kind: int, digest: bytes, place: Place) -> bytes:
        """Give an object out of the segment that it lies in. Raises `Wrong`."""
        data = segment[place.start : place.start + place.length]
        if len(data) != place.length or typed_digest(kind, data) != digest:
            raise Wrong(self._files.shown_pack(place.pack), "holds other bytes than were stored")
        return data

    def segment(self, place: Place) -> bytes:
        """Give a whole segment. Raises as `get`."""
        key = (place.pack, place.offset)
        with self._guard:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept
        found = self.load(place)
        with self._guard:
            if key not in self._kept:
                self._kept[key] = found
                self._kept_bytes += len(found)
            while self._kept_bytes > _KEPT_BYTES_MAX and len(self._kept) > 1:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])
        return found

    def load(self, place: Place) -> bytes:
        """As `segment`, from the file, and without keeping it."""
        with self._wrong(place.pack):
            with self._guard:
                fd = self._file(place.pack).fileno()
                header, frame = read_frame(fd, place.pack, place.offset, place.size)
            return content(frame, header)

    def examine(self, pack: str, offset: int) -> tuple[bytes, dict[bytes, Item], frozenset[bytes]]:
        """Read a frame from disk and believe nothing but what can be checked.

        Returns:
            The segment, its objects that are what their digests say, and those that are not.

        Raises:
            Wrong: no frame begins there.
            Unavailable, HostRefused: as `get`.
        """
        with self._wrong(pack):
            with self._guard:
                fd = self._file(pack).fileno()
                header = parse_header(read_at(fd, HEADER_BYTES, offset), pack)
                _, frame = read_frame(fd, pack, offset, header.size)
            items = parse_table(frame[HEADER_BYTES : HEADER_BYTES + header.table], header)
            try:
                segment = content(frame, header)
            except Malformed:
                return b"", {}, frozenset(item.digest for item in items)
        good = {item.digest: item for item in items if holds(segment, item)}
        return segment, good, frozenset(item.digest for item in items) - good.keys()

    @contextlib.contextmanager
    def _wrong(self, pack: str) -> Iterator[None]:
        """Turn what can be wrong with a place into `Wrong`."""
        path = self._files.shown_pack(pack)
        try:
            yield
        except FileNotFoundError:
            raise Wrong(path, "is gone") from None
        except Corrupt as error:
            raise Wrong(path, str(error.fields["reason"])) from error
        except Malformed as error:
            raise Wrong(path, str(error)) from error
        except Newer as error:
            hint = "upgrade sandboxsdk, or use another home"
            reason = f"{path} was written by a newer version ({error})"
            raise Unavailable(reason=reason, hint=hint) from error
        except OSError as error:
            if error.errno in _SHORT:
                with translated("read", path):
                    raise
            raise Wrong(path, os.strerror(error.errno or 0)) from error

    def _file(self, pack: str) -> io.FileIO:
        file = self._open.get(pack)
        if file is not None:
            self._open.move_to_end(pack)
            return file
        file = self._open[pack] = self._files.open_pack(pack)
        while len(self._open) > _FILES_MAX:
            self._open.popitem(last=False)[1].close()
        return file
