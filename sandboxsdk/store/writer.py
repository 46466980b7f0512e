"""Adding objects: gathered into segments, compressed by threads, committed with one sync.

Memory is bounded: beside the segments that are being gathered, a few are on their way to disk.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Protocol

from sandboxsdk.codec import typed_digest
from sandboxsdk.errors import Conflict

from .catalog import Catalog
from .crew import Crew
from .frame import KINDS, OBJECT_BYTES_MAX, OBJECTS_MAX, build
from .index import Place
from .pack import PACK_BYTES_MAX, Frame, OpenPack
from .reading import Reader, Wrong

SEGMENT_BYTES = 1024 * 1024
# So many objects are looked up at once.
_BATCH_OBJECTS = 512
_THREADS = 2
_ON_THEIR_WAY = 4

Object = tuple[int, bytes, bytes]


class Owner(Protocol):
    """What a writer needs of its store."""

    def checkout(self) -> OpenPack: ...

    def put_back(self, pack: OpenPack) -> None: ...

    def read(self, kind: int, digest: bytes) -> bytes: ...

    def is_sound(self, digest: bytes, place: Place) -> bool: ...


class _Gathering:
    """Objects that will be one segment."""

    def __init__(self) -> None:
        self.objects: list[Object] = []
        self.bytes = 0

    def has_room_for(self, data: bytes) -> bool:
        return len(self.objects) < OBJECTS_MAX and (
            not self.objects or self.bytes + len(data) <= SEGMENT_BYTES
        )

    def put(self, item: Object) -> None:
        self.objects.append(item)
        self.bytes += len(item[2])


class Writer:
    """The adding side of a store, for one block of `Store.writing`; may be used from several
    threads.
    """

    def __init__(self, owner: Owner, catalog: Catalog, reader: Reader) -> None:
        self._owner, self._catalog, self._reader = owner, catalog, reader
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._packing = threading.Lock()
        # What this block has met: the object itself until it is written, then its place; None is
        # an object that was stored before.
        self._met: dict[bytes, Object | Place | None] = {}
        self._pending = _Gathering()
        self._gathering: dict[int, _Gathering] = {}
        self._crew = Crew(self._write_noting, threads=_THREADS, waiting=_ON_THEIR_WAY)
        self._packs: list[OpenPack] = []
        self._frames: dict[str, list[Frame]] = {}
        self._failure: BaseException | None = None

    def add(self, kind: int, data: bytes, *, anew: bool = False) -> bytes:
        """Store an object, unless it is stored already; gives its digest.

        It counts when `commit` has returned. An object that the index says is stored is believed
        only when the segment that it lies in was read and found whole.

        Args:
            kind: `BLOB`, `TREE` or `LIST`.
            data: at most `OBJECT_BYTES_MAX` bytes.
            anew: store it even if it is stored already.

        Raises:
            HostFull, HostRefused: what was added before could not be written.
        """
        assert kind in KINDS
        assert len(data) <= OBJECT_BYTES_MAX
        data = bytes(data)
        digest = typed_digest(kind, data)
        found: Object = (kind, digest, data)
        try:
            with self._guard:
                self._check()
                if digest in self._met:
                    return digest
                self._met[digest] = found
                if anew:
                    ready, batch = self._gather([found]), []
                else:
                    self._pending.put(found)
                    ready, batch = [], self._taken()
            self._send(ready)
            if batch:
                self._sort_out(batch)
        except BaseException as error:
            self._fail(error)
            raise
        return digest

    def _fail(self, error: BaseException) -> None:
        """When something does not get to its end, nothing more is committed: objects that were on
        their way might be missing.
        """
        if self._failure is None:
            self._failure = error

    def knows(self, digests: Iterable[bytes]) -> set[bytes]:
        """Give those that are stored, or were added in this block."""
        with self._guard:
            self._check()
            wanted = set(digests)
            here = wanted & self._met.keys()
        return here | self._catalog.locate(wanted - here).keys()

    def read(self, kind: int, digest: bytes) -> bytes:
        """Give an object, also one that was added in this block.

        Raises:
            Corrupt: there is none, or it is damaged.
        """
        with self._guard:
            found = self._met.get(digest)
        if isinstance(found, Place):
            try:
                return self._reader.get(kind, digest, found)
            except Wrong:
                return self._owner.read(kind, digest)
        if found is not None and found[0] == kind:
            return found[2]
        return self._owner.read(kind, digest)

    def commit(self) -> int:
        """Have everything that was added on disk when this returns; gives the bytes that it took.

        Costs one sync, two when the pack is new, none when nothing was new.

        Raises:
            HostFull, HostRefused: it could not be written; nothing that was added counts.
        """
        try:
            with self._guard:
                self._check()
                batch = self._taken(all_of_it=True)
            self._sort_out(batch)
            with self._guard:
                rest = [gathering.objects for gathering in self._gathering.values()]
                self._gathering = {}
            self._finish(rest)
            changed = [pack for pack in self._packs if self._frames.get(pack.pack)]
            for pack in changed:
                pack.sync()
            return sum(self._committed(pack) for pack in changed)
        except BaseException as error:
            self._fail(error)
            raise

    def _committed(self, pack: OpenPack) -> int:
        """Count what is on disk now; gives its bytes."""
        frames = sorted(self._frames.pop(pack.pack))
        before, pack.committed = pack.committed, frames[-1].offset + frames[-1].size
        self._catalog.note(pack, before, frames)
        return pack.committed - before

    def close(self) -> None:
        """End the block: what was not committed is taken back."""
        if os.getpid() != self._pid:
            return
        self._failure = Conflict(reason="this block of writing is over")
        # What is on its way sees the failure and ends.
        self._crew.end()
        for pack in self._packs:
            pack.cut()
            self._owner.put_back(pack)
        self._packs = []

    def _check(self) -> None:
        assert os.getpid() == self._pid, "a block of writing does not live on in a forked child"
        if self._failure is not None:
            raise self._failure

    # --- From objects to segments -----------------------------------------------------------------

    def _taken(self, *, all_of_it: bool = False) -> list[Object]:
        """Take what waits to be looked up, if it is worth it."""
        pending = self._pending
        full = pending.bytes >= SEGMENT_BYTES or len(pending.objects) >= _BATCH_OBJECTS
        if not (full or all_of_it):
            return []
        self._pending = _Gathering()
        return pending.objects

    def _sort_out(self, batch: list[Object]) -> None:
        """Find out which objects are new, and send off the segments that they fill."""
        places = self._catalog.locate(digest for _, digest, _ in batch)
        fresh: list[Object] = []
        known: list[bytes] = []
        for found in batch:
            place = places.get(found[1])
            if place is not None and self._owner.is_sound(found[1], place):
                known.append(found[1])
            else:
                fresh.append(found)
        with self._guard:
            self._met.update(dict.fromkeys(known))
            ready = self._gather(fresh)
        self._send(ready)

    def _gather(self, objects: list[Object]) -> list[list[Object]]:
        """Put new objects with others of their kind; gives the segments that are full."""
        ready: list[list[Object]] = []
        for found in objects:
            gathering = self._gathering.setdefault(found[0], _Gathering())
            if not gathering.has_room_for(found[2]):
                ready.append(gathering.objects)
                gathering = self._gathering[found[0]] = _Gathering()
            gathering.put(found)
        return ready

    # --- From segments to the pack ----------------------------------------------------------------

    def _send(self, segments: list[list[Object]]) -> None:
        """Have full segments written by threads: where there is one, there will be more."""
        for objects in segments:
            self._crew.give(objects)

    def _finish(self, rest: list[list[Object]]) -> None:
        """Write what is left; the little of a small checkpoint needs no threads."""
        if self._crew.at_work:
            self._send(rest)
            self._crew.wait()
            with self._guard:
                self._check()
        else:
            for objects in rest:
                self._write(objects)

    def _write_noting(self, objects: list[Object]) -> None:
        """In a thread, or here where none can be had: whatever fails ends the block."""
        try:
            if self._failure is None:
                self._write(objects)
        except BaseException as error:  # noqa: BLE001 - whoever adds or commits next is told
            self._fail(error)

    def _write(self, objects: list[Object]) -> None:
        try:
            pack = self._pack()
            frame, items = build(pack.pack, objects)
            offset = pack.append(frame)
        except BaseException as error:
            self._fail(error)
            raise
        size = len(frame)
        with self._guard:
            self._frames.setdefault(pack.pack, []).append(Frame(offset, size, items))
            for item in items:
                self._met[item.digest] = Place(
                    pack.pack, offset, size, item.start, item.length, item.kind
                )

    def _pack(self) -> OpenPack:
        with self._packing:
            if not self._packs or self._packs[-1].length >= PACK_BYTES_MAX:
                self._packs.append(self._owner.checkout())
            return self._packs[-1]
