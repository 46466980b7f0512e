"""A task in one file: its journal and every object that its trees need, checked to the last bit.

A head, then frames, each with its type and its lengths before and after compression, then an end
that counts the objects and has the digest of everything before it. docs/format.md has the details.
Objects have no names here: whoever reads one computes its digest, so none can pass for another.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from typing import Any, final

import msgspec

from sandboxsdk import disk
from sandboxsdk.codec import Hasher, decode_json, decode_msgpack, encode_json, encode_msgpack
from sandboxsdk.errors import (
    Corrupt,
    Denied,
    FileConflict,
    FileMissing,
    LimitExceeded,
    SandboxError,
    Unavailable,
)
from sandboxsdk.ids import new_id
from sandboxsdk.snapshot import needed_by, reachable
from sandboxsdk.store import (
    BLOB,
    LIST,
    OBJECT_BYTES_MAX,
    TREE,
    Malformed,
    Store,
    Writer,
    compress,
    decompress,
)

VERSION = 1
_MAGIC = b"SBXTASK\n"
_HEAD = struct.Struct("<8sI")
_FRAME = struct.Struct("<BII")
_OBJECTS, _JOURNAL, _FACTS, _END = range(1, 5)
_BATCH_BYTES = 1 << 20
# One object may have 16 MiB, and a batch holds little more than its last.
_FRAME_BYTES_MAX = OBJECT_BYTES_MAX + 2 * _BATCH_BYTES
_JOURNAL_BYTES_MAX = 1 << 30
_NO_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENOTDIR)


class _Object(msgspec.Struct, array_like=True, frozen=True):
    kind: int
    data: bytes


class _Told(msgspec.Struct, frozen=True):
    roots: list[str]
    facts: dict[str, Any]


class _End(msgspec.Struct, array_like=True, frozen=True):
    objects: int
    digest: str


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """What a file held.

    Attributes:
        journal: the bytes of the task's journal.
        facts: what its writer said besides.
        roots: digests of the trees that are in it whole.
    """

    journal: bytes
    facts: dict[str, Any]
    roots: tuple[bytes, ...]


# --- Writing --------------------------------------------------------------------------------------


def write_bundle(
    path: str, *, store: Store, roots: Iterable[bytes], journal: bytes, facts: Mapping[str, Any]
) -> None:
    """Write a new file, which is there whole and on disk, or not at all.

    Raises:
        FileConflict: something has the name.
        Corrupt: an object is missing or damaged.
        HostFull, HostRefused, Denied: it cannot be written; nothing is left of it.
    """
    wanted = sorted(set(roots))
    folder, name = os.path.split(path)
    with disk.translated("write", path):
        try:
            above = disk.open_directory(folder or ".")
        except FileNotFoundError:
            raise FileMissing(path=folder, hint="make that directory first") from None
        try:
            _refuse_existing(above, name, path)
            fresh = f".{name[:200]}.{new_id()}.sandboxsdk"
            descriptor = disk.create(fresh, dir_fd=above)
            try:
                try:
                    _write(descriptor, store, wanted, journal, facts)
                    disk.sync_data(descriptor)
                finally:
                    os.close(descriptor)
                _publish(above, fresh, name, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    disk.remove(fresh, dir_fd=above)
                raise
            disk.sync(above)
        finally:
            os.close(above)


def _refuse_existing(above: int, name: str, path: str) -> None:
    try:
        os.stat(name, dir_fd=above, follow_symlinks=False)
    except FileNotFoundError:
        return
    raise FileConflict(path=path, reason="is there already")


def _publish(above: int, fresh: str, name: str, path: str) -> None:
    try:
        disk.rename_new(os.fsencode(fresh), os.fsencode(name), old_dir=above, new_dir=above)
    except FileExistsError:
        raise FileConflict(path=path, reason="is there by now") from None
    except OSError as error:
        # A file system without the flag; the name was free a moment ago.
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        disk.rename(fresh, name, old_dir=above, new_dir=above)


def _write(
    descriptor: int, store: Store, roots: list[bytes], journal: bytes, facts: Mapping[str, Any]
) -> None:
    out = _Output(descriptor)
    out.put(_HEAD.pack(_MAGIC, VERSION))
    told = _Told([root.hex() for root in roots], dict(facts))
    out.frame(_FACTS, encode_json(told))
    for start in range(0, len(journal), _BATCH_BYTES):
        out.frame(_JOURNAL, journal[start : start + _BATCH_BYTES])
    count = 0
    for kind, digests in needed_by(store, roots).items():
        batch: list[_Object] = []
        size = 0
        for _, data in store.read_many(kind, sorted(digests)):
            batch.append(_Object(kind, data))
            count += 1
            size += len(data)
            if size >= _BATCH_BYTES:
                out.frame(_OBJECTS, encode_msgpack(batch))
                batch, size = [], 0
        if batch:
            out.frame(_OBJECTS, encode_msgpack(batch))
    out.frame(_END, encode_msgpack(_End(count, out.digest())))


@final
class _Output:
    """Appends to a file, and keeps the digest of what it wrote."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._length = descriptor, 0
        self._hasher = Hasher()

    def put(self, data: bytes) -> None:
        disk.write(self._descriptor, data, self._length)
        self._length += len(data)
        self._hasher.update(data)

    def frame(self, kind: int, data: bytes) -> None:
        packed = compress(data)
        if len(packed) >= len(data):
            packed = data
        self.put(_FRAME.pack(kind, len(data), len(packed)) + packed)

    def digest(self) -> str:
        return self._hasher.hexdigest()


# --- Reading --------------------------------------------------------------------------------------


def read_bundle(path: str, writer: Writer) -> Bundle:
    """Read a file, and add its objects to a store; who calls commits, if this returns.

    Raises:
        FileMissing: there is none.
        Denied: it is a link or no file.
        Corrupt: it is truncated, damaged or forged.
        Unavailable: a newer version wrote it.
        HostRefused: it cannot be read.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with disk.translated("read", path):
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            raise FileMissing(path=path) from None
        except OSError as error:
            if error.errno in _NO_FILE:
                raise Denied(path=path, reason="is a symbolic link or no file") from error
            raise
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Denied(path=path, reason="is no regular file")
            return _Input(descriptor, path).read(writer)
        finally:
            os.close(descriptor)


@final
class _Input:
    """Reads a file once, from its head to its end, believing nothing."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor, self._path, self._position = descriptor, path, 0
        self._hasher = Hasher()
        self._count = 0
        self._told: _Told | None = None
        self._journal: list[bytes] = []
        self._journal_bytes = 0

    def read(self, writer: Writer) -> Bundle:
        self._read_head()
        ended = False
        while not ended:
            before = self._hasher.hexdigest()
            kind, data = self._frame()
            if kind == _OBJECTS:
                self._add(writer, data)
            elif kind == _JOURNAL:
                self._add_journal(data)
            elif kind == _FACTS and self._told is None:
                self._told = decode_json(data, _Told, path=self._path)
            elif kind == _END:
                self._check_end(data, before)
                ended = True
            else:
                raise self._corrupt(f"has a frame of type {kind} where none can be")
        if os.pread(self._descriptor, 1, self._position):
            raise self._corrupt("goes on after its end")
        if self._told is None:
            raise self._corrupt("lacks the frame that says what it is")
        roots = tuple(self._root(root) for root in self._told.roots)
        try:
            reachable(writer, roots)
        except Corrupt as error:
            raise self._corrupt(f"lacks an object: {error.fields.get('reason')}") from error
        return Bundle(journal=b"".join(self._journal), facts=self._told.facts, roots=roots)

    def _read_head(self) -> None:
        magic, version = _HEAD.unpack(self._take(_HEAD.size))
        if magic != _MAGIC:
            raise self._corrupt("is no exported task")
        if version > VERSION:
            raise Unavailable(
                reason=f"{self._path} was written by a newer version (format {version})",
                hint="upgrade sandboxsdk",
            )
        if version != VERSION:
            raise self._corrupt(f"has format {version}")

    def _take(self, length: int) -> bytes:
        pieces = []
        left = length
        while left:
            piece = os.pread(self._descriptor, left, self._position)
            if not piece:
                raise self._corrupt("is truncated")
            pieces.append(piece)
            self._position += len(piece)
            left -= len(piece)
        data = b"".join(pieces)
        self._hasher.update(data)
        return data

    def _frame(self) -> tuple[int, bytes]:
        kind, length, stored = _FRAME.unpack(self._take(_FRAME.size))
        if length > _FRAME_BYTES_MAX or stored > length:
            raise self._corrupt("has a frame of a length that cannot be")
        data = self._take(stored)
        if stored == length:
            return kind, data
        try:
            return kind, decompress(data, length)
        except Malformed as error:
            raise self._corrupt(f"has a frame that {error}") from error

    def _add(self, writer: Writer, data: bytes) -> None:
        for one in decode_msgpack(data, list[_Object], path=self._path):
            if one.kind not in (BLOB, TREE, LIST) or len(one.data) > OBJECT_BYTES_MAX:
                raise self._corrupt("has an object that cannot be")
            writer.add(one.kind, one.data)
            self._count += 1

    def _add_journal(self, data: bytes) -> None:
        self._journal.append(data)
        self._journal_bytes += len(data)
        if self._journal_bytes > _JOURNAL_BYTES_MAX:
            raise LimitExceeded(reason=f"{self._path}: its journal is too large")

    def _check_end(self, data: bytes, digest: str) -> None:
        end = decode_msgpack(data, _End, path=self._path)
        if end.digest != digest:
            raise self._corrupt("is not what was written")
        if end.objects != self._count:
            raise self._corrupt(f"holds {self._count} objects and says {end.objects}")

    def _root(self, text: str) -> bytes:
        try:
            return bytes.fromhex(text)
        except ValueError:
            raise self._corrupt("names a tree that cannot be") from None

    def _corrupt(self, reason: str) -> SandboxError:
        hint = "export the task again, and copy the file whole; nothing was imported"
        return Corrupt(path=self._path, reason=reason, hint=hint)
