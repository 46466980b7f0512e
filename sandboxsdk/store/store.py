"""The store as the rooms above see it: objects by their digest, added in blocks, read verified."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

from sandboxsdk.disk import translated
from sandboxsdk.errors import Corrupt, Denied, Unavailable
from sandboxsdk.model import GcReport, Level

from .catalog import Catalog
from .collection import Collection, Live
from .files import StoreFiles
from .frame import PACK_HEADER_BYTES
from .index import Place
from .pack import PACK_BYTES, OpenPack, adopt_pack, begin_pack
from .reading import Reader, Wrong
from .verification import StoreCheck, Verification
from .writer import Writer

# So many packs are tried before a new one is made.
_ADOPTIONS_MAX = 8


class Store:
    """Objects of bytes by their digest, in a directory of our own.

    May be used from several threads, and by several processes at once; a forked child opens
    everything anew.

    Args:
        path: of the directory; it is made, but not its parent.
        read_only: write nothing at all: no index, no lock.

    Raises:
        NotFound: there is none, and none may be made.
        Denied: it belongs to somebody else, or others may write into it.
        Corrupt: something else stands in place of one of its files.
        Unavailable: it was written by a newer version.
        HostFull, HostRefused: it cannot be made or opened.
    """

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        self.path: str = os.path.abspath(path)
        self.read_only: bool = read_only
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._idle: list[OpenPack] = []
        self._own: dict[str, OpenPack] = {}
        self._retired: frozenset[str] = frozenset()
        self._writing: list[int] = []
        # Segments that were read for the sake of a repeated object, and what is good in them.
        self._checked: dict[tuple[str, int], frozenset[bytes]] = {}
        self._files = StoreFiles(self.path, read_only=self.read_only)
        try:
            if not self.read_only:
                self._files.make_reserve()
            self._reader = Reader(self._files)
            self._catalog = Catalog(self._files, lambda: dict(self._own), read_only=self.read_only)
            try:
                self._refresh()
            except BaseException:
                self._catalog.close()
                raise
        except BaseException:
            self._files.close()
            raise

    def close(self) -> None:
        """Let go of everything; the object is not used any more."""
        if os.getpid() != self._pid:
            return
        with self._guard:
            packs, self._own, self._idle = list(self._own.values()), {}, []
        for pack in packs:
            pack.close()
        self._reader.close()
        self._catalog.close()
        self._files.close()

    def _here(self) -> None:
        """In a forked child: open everything anew, and use nothing of the parent's."""
        if os.getpid() != self._pid:
            self._catalog.abandon()
            self._files.close()
            self._start()

    def _refresh(self, *, held: bool = False) -> None:
        self._catalog.refresh(held=held)
        self._reader.keep(self._catalog.sizes)

    @property
    def generation(self) -> str:
        """Another one whenever objects may have gone: who has noted down that some are stored, asks
        `has` again.
        """
        self._here()
        return self._catalog.generation

    def has(self, digests: Iterable[bytes], *, certain: bool = False) -> set[bytes]:
        """Give those that are stored, as the index says.

        Args:
            certain: make the index anew before something counts as missing.
        """
        self._here()
        self._refresh()
        wanted = set(digests)
        found = set(self._catalog.locate(wanted))
        if certain and found != wanted and self._catalog.rebuild():
            found = set(self._catalog.locate(wanted))
        if self.read_only:
            # What nobody may note down is looked for each time.
            found |= self._catalog.peek(wanted - found).keys()
        return found

    def read(self, kind: int, digest: bytes) -> bytes:
        """Give an object.

        Raises:
            Corrupt: there is none of this kind, or it is damaged; `digest` says which.
            Unavailable: a newer version wrote it.
            HostRefused: it cannot be read.
        """
        self._here()
        place = self._catalog.locate([digest]).get(digest)
        if place is not None:
            with contextlib.suppress(Wrong):
                return self._reader.get(kind, digest, place)
        return self._recovered(kind, digest)

    def read_many(self, kind: int, digests: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Give objects with their digests in the order in which they lie on disk, each once.

        Each segment is read once, and one is held at a time. Raises as `read`.
        """
        self._here()
        wanted = list(dict.fromkeys(digests))
        places = self._catalog.locate(wanted)
        missing = [digest for digest in wanted if digest not in places]
        in_order = sorted(places.items(), key=itemgetter(1))
        del wanted, places
        for (_, _), group in groupby(in_order, key=lambda found: found[1][:2]):
            segment = None
            for digest, place in group:
                try:
                    if segment is None:
                        segment = self._reader.segment(place)
                    data = self._reader.take(segment, kind, digest, place)
                except Wrong:
                    data = self._recovered(kind, digest)
                yield digest, data
        for digest in missing:
            yield digest, self.read(kind, digest)

    def _recovered(self, kind: int, digest: bytes) -> bytes:
        """Give an object that is not where the index says, or of which it says nothing.

        First what is being written is looked at, then the index is made anew; once for each state
        of the packs, or a store that lacks much would do it all the time.
        """
        self._refresh()
        self._reader.forget_segments()
        path, reason = self.path, "an object is missing"
        for attempt in ("as it is", "from packs that are being written", "with a new index"):
            if attempt == "from packs that are being written":
                place = self._catalog.peek([digest]).get(digest)
            elif attempt == "as it is" or self._catalog.rebuild():
                place = self._catalog.locate([digest]).get(digest)
            else:
                break
            if place is None:
                continue
            try:
                return self._reader.get(kind, digest, place)
            except Wrong as wrong:
                path, reason = wrong.path, wrong.reason
            if place.kind != kind:
                break
            if attempt == "as it is":
                with contextlib.suppress(Wrong):
                    self._catalog.refuse(self._reader.examine(place.pack, place.offset)[2], place)
            else:
                self._catalog.forget_peeks()
        raise Corrupt(path=path, reason=f"{reason} (object {digest.hex()})", digest=digest.hex())

    @contextlib.contextmanager
    def writing(self) -> Iterator[Writer]:
        """Add objects; nothing is taken away from the store until the block ends.

        What was added since the last `commit` when it ends is as if it had never been.

        Raises:
            Denied: the store is open to be read only.
        """
        self._here()
        self._check_writable()
        with self._files.hold():
            self._refresh(held=True)
            writer = Writer(self, self._catalog, self._reader)
            self._writing.append(threading.get_ident())
            try:
                yield writer
            finally:
                self._writing.remove(threading.get_ident())
                writer.close()

    def _check_writable(self) -> None:
        if self.read_only:
            hint = "open it without read_only"
            raise Denied(path=self.path, reason="the store is open to be read only", hint=hint)

    def gc(self, live: Live, *, dry_run: bool) -> GcReport:
        """Take away what nothing needs, and move together what is needed of sparse packs.

        On a full disk it frees first and moves then, as far as there is room.

        Args:
            live: gives the digests of all objects that are needed. It is called several times, also
                while writers are excluded: it may read from this store, and must not write to it.
            dry_run: only say what would go.

        Raises:
            Denied: the store is open to be read only.
            HostRefused: it cannot be read or changed.
        """
        self._here()
        if not dry_run:
            self._check_writable()
            inside = threading.get_ident() in self._writing
            assert not inside, "who writes would wait for itself to end"
        with translated("collect garbage in", self.path):
            return self._catalog.answered(lambda: self._collected(live, dry_run=dry_run))

    def _collected(self, live: Live, *, dry_run: bool) -> GcReport:
        collection = Collection(self, self._files, self._catalog, self._reader, live)
        return collection.run(list(self._own), dry_run=dry_run)

    def verify(self, level: Level, *, repair: bool = False) -> StoreCheck:
        """Look at everything that is stored; says nothing of what should be.

        Args:
            level: "index" looks at headers and tables, "objects" also at every stored byte,
                "content" also at every object.
            repair: make the index anew from what is whole, so that damaged objects are written
                again when they are added again. Packs are not changed.

        Raises:
            Denied: the store is open to be read only, and is to be repaired.
            HostRefused: it cannot be read.
        """
        self._here()
        if repair:
            self._check_writable()
        return self._catalog.answered(lambda: self._verified(level, repair=repair))

    def _verified(self, level: Level, *, repair: bool) -> StoreCheck:
        with self._files.hold():
            self._refresh(held=True)
            self._reader.forget_segments()
            check = Verification(self._files, self._catalog, level)
            found = check.run()
            if repair and found.problems:
                for bad, place in check.lies:
                    self._catalog.refuse(bad, place)
                self._catalog.repair()
                self._checked.clear()
        return found

    def disk_bytes(self) -> int:
        """Bytes of disk that it takes."""
        self._here()
        with translated("read", self.path):
            return self._files.disk_bytes()

    # --- For the writer ---------------------------------------------------------------------------

    def checkout(self) -> OpenPack:
        """Give a pack to append to, for one block: ours, one whose writer is gone, or a new one."""
        with self._guard:
            while self._idle:
                pack = self._idle.pop()
                found = os.fstat(pack.fd)
                if found.st_nlink == 1 and found.st_size == pack.committed:
                    return pack
                self._let_go(pack)
        pack = self._adopted() or begin_pack(self._files)
        with self._guard:
            self._own[pack.pack] = pack
        return pack

    def _adopted(self) -> OpenPack | None:
        try:
            return self._first_adoptable()
        except Corrupt:
            # The index is damaged; somebody will notice where it matters.
            return None

    def _first_adoptable(self) -> OpenPack | None:
        tried = 0
        rows = self._catalog.index.packs()
        for name, size in self._catalog.sizes.items():
            row = rows.get(name)
            if row is None or name in self._own or name in self._retired or size >= PACK_BYTES:
                continue
            if tried == _ADOPTIONS_MAX or not row.size == row.end == size:
                continue
            tried += 1
            last = [(s.offset, s.size) for s in self._catalog.index.segments(name)[-1:]]
            pack = adopt_pack(self._files, name, size, last[0] if last else (PACK_HEADER_BYTES, 0))
            if pack is not None:
                return pack
        return None

    @contextlib.contextmanager
    def retiring(self, packs: Iterable[str]) -> Iterator[set[str]]:
        """Append to none of these packs for the block; gives those that are our own, out of which
        the caller takes what it removes.
        """
        with self._guard:
            self._retired = frozenset(packs)
            waiting = {pack.pack: pack for pack in self._idle if pack.pack in self._retired}
            self._idle = [pack for pack in self._idle if pack.pack not in self._retired]
        left = set(waiting)
        try:
            yield left
        finally:
            with self._guard:
                self._retired = frozenset()
                for name, pack in waiting.items():
                    if name in left:
                        self._idle.append(pack)
                    else:
                        self._let_go(pack)

    def put_back(self, pack: OpenPack) -> None:
        """Take back a pack from a block."""
        with self._guard:
            if pack.pack not in self._own:
                pack.close()
            elif pack.spoiled:
                # Its lock is kept: what the failed sync left in memory must not count for others.
                pass
            elif pack.committed < PACK_BYTES:
                self._idle.append(pack)
            else:
                self._let_go(pack)

    def _let_go(self, pack: OpenPack) -> None:
        self._own.pop(pack.pack, None)
        pack.close()

    def is_sound(self, digest: bytes, place: Place) -> bool:
        """Tell whether an object that the index claims is really there.

        Each segment is read once in the life of this object.
        """
        key = (place.pack, place.offset)
        if key not in self._checked:
            try:
                self._checked[key] = frozenset(self._reader.examine(*key)[1])
            except (Wrong, Unavailable):
                self._checked[key] = frozenset()
        return digest in self._checked[key]
