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
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, final

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
from sandboxsdk.snapshot import Progress, needed_by
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

from .bundle_format import (
    BATCH_BYTES,
    BATCH_OBJECTS,
    BYTES_MAX,
    END,
    FACTS,
    FRAME,
    HEAD,
    JOURNAL,
    JOURNAL_BYTES_MAX,
    MAGIC,
    NEXT,
    OBJECTS,
    VERSION,
    Batch,
    Bundle,
    BundleReport,
    End,
    Object,
    Told,
)

T = TypeVar("T")

_NO_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENOTDIR)
_NO_FLAG = (errno.EINVAL, errno.ENOSYS)
_ANOTHER = "name a file that is not there yet"


# --- Writing --------------------------------------------------------------------------------------


def write_bundle(
    path: str,
    *,
    store: Store,
    roots: Iterable[bytes],
    journal: bytes,
    facts: Mapping[str, Any],
    progress: Progress | None = None,
) -> BundleReport:
    """Write a new file, which is there whole and on disk, or not at all.

    Args:
        path: of the file; that it may lie there was checked before.
        progress: is called now and then with the objects and bytes written so far.

    Raises:
        FileConflict: something has the name.
        FileMissing: its directory is not there.
        Corrupt: an object is missing or damaged.
        LimitExceeded: the journal or the facts are larger than a file may hold.
        HostFull, HostRefused, Denied: it cannot be written; nothing is left of it.
    """
    wanted = sorted(set(roots))
    folder, name = os.path.split(path)
    with disk.translated("write", path):
        above = _open_folder(folder or ".")
        try:
            _refuse_existing(above, name, path)
            return _write_beside(
                above, name, path, lambda out: _write(out, store, wanted, journal, facts, progress)
            )
        finally:
            os.close(above)


def _open_folder(folder: str) -> int:
    try:
        return disk.open_directory(folder)
    except FileNotFoundError:
        raise FileMissing(path=folder, hint="make that directory first") from None
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        hint = "name the directory itself"
        reason = "is a symbolic link or no directory"
        raise Denied(path=folder, reason=reason, hint=hint) from error


def _refuse_existing(above: int, name: str, path: str) -> None:
    try:
        os.stat(name or ".", dir_fd=above, follow_symlinks=False)
    except FileNotFoundError:
        return
    raise FileConflict(path=path, reason="is there already", hint=_ANOTHER)


def _write_beside(
    above: int, name: str, path: str, write: Callable[[_Output], None]
) -> BundleReport:
    """Write under a fresh name, and give it the real one when it is whole and on disk."""
    # A name may have 255 bytes; what is cut within a character is no text.
    begin = os.fsencode(name)[:200].decode(errors="ignore")
    fresh = f".{begin}.{new_id()}.sandboxsdk"
    made: os.stat_result | None = None
    try:
        descriptor = disk.create(fresh, dir_fd=above)
        try:
            made = os.fstat(descriptor)
            out = _Output(descriptor)
            write(out)
            disk.sync_data(descriptor)
        finally:
            os.close(descriptor)
        _publish(above, fresh, name, path)
        disk.sync(above)
    except BaseException:
        _take_back(above, fresh, name, made)
        raise
    return BundleReport(objects=out.objects, bytes=out.length)


def _publish(above: int, fresh: str, name: str, path: str) -> None:
    try:
        try:
            disk.rename_new(os.fsencode(fresh), os.fsencode(name), old_dir=above, new_dir=above)
        except OSError as error:
            # A file system without the flag; a link replaces nothing either.
            if error.errno not in _NO_FLAG:
                raise
            disk.make_hard_link(fresh, name, old_dir=above, new_dir=above)
            disk.remove(fresh, dir_fd=above)
    except FileExistsError:
        raise FileConflict(path=path, reason="is there by now", hint=_ANOTHER) from None


def _take_back(above: int, fresh: str, name: str, made: os.stat_result | None) -> None:
    """Remove what was written; under the real name only if it is ours."""
    with contextlib.suppress(OSError):
        disk.remove(fresh, dir_fd=above)
    with contextlib.suppress(OSError):
        found = os.stat(name, dir_fd=above, follow_symlinks=False)
        if made is not None and os.path.samestat(found, made):
            disk.remove(name, dir_fd=above)


def _write(
    out: _Output,
    store: Store,
    roots: list[bytes],
    journal: bytes,
    facts: Mapping[str, Any],
    progress: Progress | None,
) -> None:
    told = encode_json(Told([root.hex() for root in roots], dict(facts)))
    if len(told) > BYTES_MAX[FACTS] or len(journal) > JOURNAL_BYTES_MAX:
        hint = "delete checkpoints that are not needed, then export again"
        raise LimitExceeded(reason="the task's history is too long for one file", hint=hint)
    out.put(HEAD.pack(MAGIC, VERSION))
    out.frame(FACTS, told)
    for start in range(0, len(journal), BATCH_BYTES):
        out.frame(JOURNAL, journal[start : start + BATCH_BYTES])
    for kind, digests in needed_by(store, roots).items():
        batch: list[Object] = []
        size = 0
        for _, data in store.read_many(kind, sorted(digests)):
            if batch and (size + len(data) > BATCH_BYTES or len(batch) == BATCH_OBJECTS):
                out.batch(batch, progress)
                batch, size = [], 0
            batch.append(Object(kind, data))
            size += len(data)
        if batch:
            out.batch(batch, progress)
    out.frame(END, encode_msgpack(End(out.objects, out.digest())))


@final
class _Output:
    """Appends to a file, counts, and keeps the digest of what it wrote."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._hasher = Hasher()
        self.length: int = 0
        self.objects: int = 0

    def put(self, data: bytes) -> None:
        disk.write(self._descriptor, data, self.length)
        self.length += len(data)
        self._hasher.update(data)

    def frame(self, kind: int, data: bytes) -> None:
        # No digest covers the end: a compressed one would have bits that change nothing.
        packed = data if kind == END else compress(data)
        if len(packed) >= len(data):
            packed = data
        self.put(FRAME.pack(kind, len(data), len(packed)) + packed)

    def batch(self, objects: list[Object], progress: Progress | None) -> None:
        self.frame(OBJECTS, encode_msgpack(objects))
        self.objects += len(objects)
        if progress is not None:
            progress(self.objects, self.length)

    def digest(self) -> str:
        return self._hasher.hexdigest()


# --- Reading --------------------------------------------------------------------------------------


def read_bundle(path: str, writer: Writer) -> Bundle:
    """Read a file, and add its objects to a store; who calls commits, if this returns.

    Memory: one frame, the journal, and the digests of all objects.

    Raises:
        FileMissing: there is none.
        Denied: it is a link, no file, or somebody else's.
        Corrupt: it is truncated, damaged or forged.
        Unavailable: a newer version wrote it.
        HostFull, HostRefused: it cannot be read, or its objects not be written.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with disk.translated("read", path):
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            hint = "name a file that task.export() has written"
            raise FileMissing(path=path, hint=hint) from None
        except OSError as error:
            if error.errno in _NO_FILE:
                raise Denied(path=path, reason="is a symbolic link or no file") from error
            raise
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise Denied(path=path, reason="is no regular file")
            if found.st_uid != os.geteuid():
                hint = "make a copy of your own, and import that"
                raise Denied(path=path, reason="belongs to somebody else", hint=hint)
            return _Input(descriptor, path).read(writer)
        finally:
            os.close(descriptor)


@final
class _Input:
    """Reads a file once, from its head to its end, believing nothing."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor, self._path, self._position = descriptor, path, 0
        self._hasher = Hasher()
        self._journal = bytearray()
        self._told = Told([], {})
        self._held: dict[int, set[bytes]] = {BLOB: set(), LIST: set(), TREE: set()}

    def read(self, writer: Writer) -> Bundle:
        self._read_head()
        kind = 0
        while kind != END:
            before = self._hasher.hexdigest()
            kind, data = self._frame(NEXT[kind])
            if kind == FACTS:
                self._told = self._decoded(decode_json, data, Told)
            elif kind == JOURNAL:
                self._add_journal(data)
            elif kind == OBJECTS:
                self._add(writer, data)
            else:
                self._check_end(data, before)
        if os.pread(self._descriptor, 1, self._position):
            raise self._corrupt("goes on after its end")
        roots = self._roots()
        self._check_whole(writer, roots)
        return Bundle(journal=bytes(self._journal), facts=self._told.facts, roots=roots)

    def _read_head(self) -> None:
        begin = os.pread(self._descriptor, len(MAGIC), 0)
        if not MAGIC.startswith(begin):
            raise self._corrupt("is no exported task")
        _, version = HEAD.unpack(self._take(HEAD.size))
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

    def _frame(self, expected: tuple[int, ...]) -> tuple[int, bytes]:
        kind, length, stored = FRAME.unpack(self._take(FRAME.size))
        if kind not in expected:
            raise self._corrupt(f"has a frame of type {kind} where none can be")
        if not 0 < stored <= length <= BYTES_MAX[kind]:
            raise self._corrupt("has a frame of a length that cannot be")
        if kind == END and stored != length:
            raise self._corrupt("has an end that is compressed")
        data = self._take(stored)
        if stored == length:
            return kind, data
        try:
            return kind, decompress(data, length)
        except Malformed as error:
            raise self._corrupt(f"has a frame that {error}") from error

    def _decoded(self, decode: Callable[..., T], data: bytes, kind: type[T]) -> T:
        try:
            return decode(data, kind, path=self._path)
        except Corrupt as error:
            raise self._corrupt("has a frame of another shape than it says") from error

    def _add(self, writer: Writer, data: bytes) -> None:
        for one in self._decoded(decode_msgpack, data, Batch):
            held = self._held.get(one.kind)
            if held is None or len(one.data) > OBJECT_BYTES_MAX:
                raise self._corrupt("has an object that cannot be")
            digest = writer.add(one.kind, one.data)
            if digest in held:
                raise self._corrupt("has an object twice")
            held.add(digest)

    def _add_journal(self, data: bytes) -> None:
        self._journal += data
        if len(self._journal) > JOURNAL_BYTES_MAX:
            raise self._corrupt("has a journal of a length that cannot be")

    def _check_end(self, data: bytes, digest: str) -> None:
        end = self._decoded(decode_msgpack, data, End)
        if end.digest != digest:
            raise self._corrupt("is not what was written")
        count = sum(len(held) for held in self._held.values())
        if end.objects != count:
            raise self._corrupt(f"holds {count} objects and says {end.objects}")

    def _roots(self) -> tuple[bytes, ...]:
        try:
            roots = tuple(bytes.fromhex(root) for root in self._told.roots)
        except ValueError:
            raise self._corrupt("names a tree that cannot be") from None
        if [root.hex() for root in sorted(set(roots))] != self._told.roots:
            raise self._corrupt("names its trees in another order than they are written in")
        return roots

    def _check_whole(self, writer: Writer, roots: tuple[bytes, ...]) -> None:
        """Compare what it holds with what its trees need; what else a store has does not count."""
        try:
            needed = needed_by(_Held(writer, self._held), roots)
        except Corrupt as error:
            raise self._corrupt(f"is not whole: {error.fields.get('reason')}") from error
        if any(needed[kind] - self._held[kind] for kind in needed):
            raise self._corrupt("is not whole: the content of a file is missing")
        if needed != self._held:
            raise self._corrupt("holds an object that none of its trees needs")

    def _corrupt(self, reason: str) -> SandboxError:
        hint = "export the task again, and copy the file whole; nothing was imported"
        return Corrupt(path=self._path, reason=reason, hint=hint)


@final
class _Held:
    """Reads the objects that came from a file, and no others: a forged tree must not get at what
    the store has of somebody else.
    """

    def __init__(self, writer: Writer, held: Mapping[int, set[bytes]]) -> None:
        self._writer, self._held = writer, held

    def read(self, kind: int, digest: bytes) -> bytes:
        if digest not in self._held[kind]:
            raise Corrupt(path="bundle", reason=f"object {digest.hex()} is missing")
        return self._writer.read(kind, digest)
