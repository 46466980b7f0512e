"""What is stored, as far as it may be relied on: the index, held against the packs that are there.

Invariants:
- Whoever notes down frames of a pack that it did not write has its lock and has synced it. Frames
  of a pack whose writer lives may be read, and are not counted as stored.
- The index is written under a shared hold of the store and replaced under an exclusive one, so
  nobody writes into an index that was replaced.
- An index that is damaged, foreign, or cannot be written costs time only: a new one comes from the
  packs, in memory if need be.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from sandboxsdk import disk
from sandboxsdk.codec import checksum
from sandboxsdk.disk import translated
from sandboxsdk.errors import Corrupt, HostFull, HostRefused, SandboxError
from sandboxsdk.ids import new_id

from .files import StoreFiles
from .frame import PACK_HEADER_BYTES
from .index import Index, PackRow, Place
from .index_file import IndexFile
from .pack import Frame, OpenPack, scan

T = TypeVar("T")
# A store whose frames lie about their objects, one after the other, must not cost a rebuild each.
_REBUILDS_MAX = 8
# So often a pack is looked at whose writer commits meanwhile.
_LOOKS_MAX = 3


class Catalog:
    """The one view of what lies where; may be used from several threads.

    Args:
        files: of the store.
        own: gives the packs that this process appends to, by id.
        read_only: write nothing.
    """

    def __init__(
        self, files: StoreFiles, own: Callable[[], dict[str, OpenPack]], *, read_only: bool
    ) -> None:
        self._files, self._own, self._read_only = files, own, read_only
        self._guard = threading.RLock()
        self._sizes: dict[str, int] = {}
        # Objects in frames that do not count, or not yet; and up to where each pack was looked at.
        self._peeked: dict[bytes, Place] = {}
        self._peeked_to: dict[str, int] = {}
        self._refused: set[tuple[bytes, str, int]] = set()
        self._rebuilds = 0
        self._rebuilt_at: object = None
        self._local = ""
        self._file = IndexFile(files, read_only=read_only)
        self.index: Index = self._file.open()

    def close(self) -> None:
        """Let go of the index."""
        with contextlib.suppress(SandboxError):
            self.index.close()

    def abandon(self) -> None:
        """In a forked child: leave alone what is the parent's."""
        self.index.abandon()

    # --- One index after the other ----------------------------------------------------------------

    def _ensure_index(self) -> None:
        """Before it is written, under a hold: go on with the file that is there now."""
        if self._read_only or (self.index.path and self._file.is_the_same()):
            return
        if self.index.path or not self._file.is_there():
            self._change_index(self._file.open(held=True))

    def _change_index(self, index: Index) -> None:
        self.close()
        self.index = index

    def answered(self, ask: Callable[[], T]) -> T:
        """Ask something that looks into the index; again with a new one if it is damaged."""
        try:
            return ask()
        except Corrupt as error:
            if error.fields["path"] not in {self._file.path, ":memory:"}:
                raise
        with self._guard:
            self._lost()
            self.refresh()
        return ask()

    def _lost(self) -> None:
        """Go on with a new index: this one is damaged."""
        self._change_index(Index(None) if self._read_only else self._file.replaced())
        self._local = new_id()

    def forget(self, packs: list[str]) -> None:
        """Under an exclusive hold: forget packs that are about to go.

        Raises:
            HostFull: there is no room to note that down.
        """
        with self._guard:
            self._ensure_index()
            try:
                self.index.drop_packs(packs)
            except Corrupt:
                self.discard_index()

    def discard_index(self) -> None:
        """Under an exclusive hold: go on without a file, which needs no space."""
        with self._guard:
            self.close()
            with contextlib.suppress(SandboxError):
                self._file.remove()
            self.index = Index(None)
            self._local = new_id()

    # --- The packs that are there -----------------------------------------------------------------

    @property
    def sizes(self) -> dict[str, int]:
        """The length of each pack when it was last looked at."""
        return self._sizes

    @property
    def generation(self) -> str:
        """Another one whenever objects may have gone."""
        with self._guard:
            self.refresh()
            return self.answered(lambda: self.index.generation + self._local)

    def refresh(self, *, held: bool = False) -> None:
        """Bring the index up to date with the packs.

        Args:
            held: the caller holds the store.
        """
        with self._guard:
            try:
                self._refresh(held=held)
            except Corrupt:
                self._lost()
                self._refresh(held=held)

    def _refresh(self, *, held: bool) -> None:
        with translated("list", self._files.shown("packs")):
            self._sizes = sizes = self._files.pack_sizes()
        if self._read_only and self.index.path and not self._file.is_the_same():
            self._change_index(self._file.open())
        rows = self.index.packs()
        behind = [
            (pack, rows.get(pack))
            for pack, size in sizes.items()
            if size > (rows[pack].size if pack in rows else -1) and self._is_behind(pack, rows)
        ]
        shrunk = self._shrunk(rows)
        if not behind and not shrunk:
            return
        if self._read_only and self.index.path:
            if shrunk:
                self._local = checksum(*(pack.encode() for pack in sorted(shrunk))).hex()
            return
        with self._files.hold(wait=False) if not held else contextlib.nullcontext(True) as had:
            # Else somebody takes away just now: next time.
            if had:
                self._bring_up(behind, shrunk)

    def _shrunk(self, rows: dict[str, PackRow]) -> dict[str, int]:
        """Give the lengths of the packs that are shorter than they were, or gone (-1)."""
        found = {p for p, row in rows.items() if self._sizes.get(p, -1) < row.size}
        if found:
            # A writer may have made it longer, and said so, after it was looked at.
            with translated("list", self._files.shown("packs")):
                self._sizes.update(self._files.pack_sizes())
        return {
            pack: self._sizes.get(pack, -1)
            for pack in found
            if self._sizes.get(pack, -1) < rows[pack].size
        }

    def _is_behind(self, pack: str, rows: dict[str, PackRow]) -> bool:
        own = self._own().get(pack)
        known = rows[pack].size if pack in rows else PACK_HEADER_BYTES
        return own is None or own.committed > known

    def _bring_up(self, behind: list[tuple[str, PackRow | None]], shrunk: dict[str, int]) -> None:
        before = self.index
        self._ensure_index()
        if self.index is not before:
            self._refresh(held=True)
            return
        try:
            if shrunk:
                self.index.shrunk(shrunk)
        except (HostFull, HostRefused):
            return
        for pack, row in behind:
            # What cannot be noted down now is read without.
            with contextlib.suppress(HostFull, HostRefused, FileNotFoundError):
                self._catch_up(pack, row)

    def _catch_up(self, pack: str, row: PackRow | None) -> None:
        found = self._settled(pack, max(row.size if row else 0, PACK_HEADER_BYTES))
        if found is not None:
            frames, size, end = found
            # What others have noted down since is more than we saw.
            self.index.catch_up(pack, row, frames, size, end)

    def _settled(self, pack: str, start: int) -> tuple[list[Frame], int, int] | None:
        """Give the frames of a pack that are whole and on disk, its size, and where they end.

        None if a writer that lives has it, or it cannot be read.
        """
        own = self._own().get(pack)
        with translated_but_missing("sync", self._files.shown_pack(pack)):
            try:
                file = self._files.open_pack(pack)
            except Corrupt:
                return None
            with file:
                if own is not None:
                    size = own.committed
                else:
                    if not self._read_only:
                        if not self._files.lock_pack(file):
                            return None
                        disk.sync_data(file.fileno())
                        if start == PACK_HEADER_BYTES:
                            # Its name may be as new as what is in it.
                            self._files.sync_packs()
                    size = os.fstat(file.fileno()).st_size
                frames = [
                    self._believed(pack, found)
                    for found in scan(file.fileno(), pack, start, size)
                    if isinstance(found, Frame)
                ]
        return frames, size, _end_of_whole(frames, start)

    def _believed(self, pack: str, frame: Frame) -> Frame:
        if not self._refused:
            return frame
        items = tuple(
            item for item in frame.items if (item.digest, pack, frame.offset) not in self._refused
        )
        return frame._replace(items=items)

    # --- Looking up -------------------------------------------------------------------------------

    def locate(self, digests: Iterable[bytes]) -> dict[bytes, Place]:
        """Give the place of each object that is stored."""
        wanted = list(digests)
        with self._guard:
            places = self.answered(lambda: self.index.find(wanted))
            if any(not self._is_there(place) for place in places.values()):
                with translated("list", self._files.shown("packs")):
                    self._sizes = self._files.pack_sizes()
            return {digest: place for digest, place in places.items() if self._is_there(place)}

    def _is_there(self, place: Place) -> bool:
        return self._sizes.get(place.pack, -1) >= place.offset + place.size

    def peek(self, digests: Iterable[bytes]) -> dict[bytes, Place]:
        """Look for objects where nothing counts yet: in packs that are being written."""
        with self._guard:
            rows = self.answered(self.index.packs)
            for pack, size in self._sizes.items():
                row = rows.get(pack)
                start = max(row.size if row else 0, PACK_HEADER_BYTES)
                if size > max(start, self._peeked_to.get(pack, 0)):
                    self._peek_into(pack, start, size)
            return {digest: self._peeked[digest] for digest in digests if digest in self._peeked}

    def forget_peeks(self) -> None:
        """What was seen in packs that are being written may have been taken back."""
        with self._guard:
            self._peeked.clear()
            self._peeked_to.clear()

    def _peek_into(self, pack: str, start: int, size: int) -> None:
        self._peeked_to[pack] = size
        with contextlib.suppress(OSError, Corrupt), self._files.open_pack(pack) as file:
            for frame in scan(file.fileno(), pack, start, size):
                if isinstance(frame, Frame):
                    for item in self._believed(pack, frame).items:
                        self._peeked[item.digest] = Place(
                            pack, frame.offset, frame.size, item.start, item.length, item.kind
                        )

    # --- Losing faith -----------------------------------------------------------------------------

    def refuse(self, bad: Iterable[bytes], place: Place) -> None:
        """Do not believe a segment again that it holds these objects."""
        with self._guard:
            for digest in bad:
                self._refused.add((digest, place.pack, place.offset))

    def rebuild(self, *, held: bool = False, always: bool = False) -> bool:
        """Make the index anew from all whole frames; False if that was done for this state before.

        Args:
            held: the caller holds the store.
            always: do it in any case.
        """
        with self._guard:
            state = (tuple(sorted(self._sizes.items())), len(self._refused))
            if not always and (state == self._rebuilt_at or self._rebuilds >= _REBUILDS_MAX):
                return False
            self._rebuilds += 1
            self._rebuilt_at = state
            if self._read_only:
                if self.index.path:
                    self._change_index(Index(None))
                    self._local = new_id()
                    self.refresh()
                    return True
                self.answered(self._rebuild)
                return True
            if not self.index.is_sound():
                # Its pages are damaged: what is written into them now may be missed again.
                self._lost()
                self.refresh(held=held)
            with self._files.hold(wait=False) if not held else contextlib.nullcontext(True) as had:
                if had:
                    self._ensure_index()
                    self.answered(self._rebuild)
            return had

    def _rebuild(self) -> None:
        with translated("list", self._files.shown("packs")):
            self._sizes = self._files.pack_sizes()
        waiting = set(self._sizes)
        for _ in range(_LOOKS_MAX):
            # Others commit meanwhile. What they have noted down must not get lost.
            waiting = self._rebuild_these(waiting)
            if not waiting:
                return

    def _rebuild_these(self, packs: set[str]) -> set[str]:
        """Make the rows of packs anew; gives those that have changed meanwhile."""
        rows = self.index.packs()
        contents = []
        for pack in sorted(packs):
            with contextlib.suppress(HostFull, HostRefused, FileNotFoundError):
                found = self._settled(pack, PACK_HEADER_BYTES)
                if found is None and pack in rows:
                    found = self._confirmed(pack, rows[pack])
                if found is not None:
                    contents.append((pack, *found))
        return self.index.rebuild(contents, rows)

    def repair(self) -> None:
        """Under a hold: make the index anew from whole frames, and forget packs that are gone."""
        with self._guard:
            try:
                self.rebuild(held=True, always=True)
                gone = [pack for pack, row in self.index.packs().items() if row.size < 0]
                if gone:
                    self.index.drop_packs(gone)
            except Corrupt:
                self._lost()
                self.refresh(held=True)

    def _confirmed(self, pack: str, row: PackRow) -> tuple[list[Frame], int, int]:
        """Of a pack that is being written: the frames that the index names and that are whole."""
        known = {(segment.offset, segment.size) for segment in self.index.segments(pack)}
        frames: list[Frame] = []
        with contextlib.suppress(Corrupt), self._files.open_pack(pack) as file:
            frames = [
                self._believed(pack, found)
                for found in scan(file.fileno(), pack, PACK_HEADER_BYTES, row.size)
                if isinstance(found, Frame) and (found.offset, found.size) in known
            ]
        return frames, row.size, row.end

    # --- For the writer ---------------------------------------------------------------------------

    def note(self, pack: OpenPack, before: int, frames: list[Frame]) -> None:
        """Note down what a pack of ours has committed. That it cannot be noted down is no failure:
        it is on disk, and is found there.
        """
        with self._guard, contextlib.suppress(HostFull, HostRefused):
            try:
                self._note(pack, before, frames)
            except Corrupt:
                self._lost()

    def _note(self, pack: OpenPack, before: int, frames: list[Frame]) -> None:
        self._ensure_index()
        self._sizes[pack.pack] = pack.committed
        if before == PACK_HEADER_BYTES and pack.pack not in self.index.packs():
            self.index.register(pack.pack, before)
        if not self.index.add(pack.pack, before, frames, pack.committed):
            self._refresh(held=True)


def _end_of_whole(frames: Iterable[Frame], start: int) -> int:
    """Give where the first gap between frames begins. A power cut may leave one before a whole
    frame, in what was never committed; what counts as damage lies before the end.
    """
    end = start
    for frame in frames:
        if frame.offset != end:
            break
        end += frame.size
    return end if end > start else PACK_HEADER_BYTES


@contextlib.contextmanager
def translated_but_missing(what: str, path: str) -> Iterator[None]:
    """As `translated`, but a file that is not there stays a FileNotFoundError."""
    try:
        with translated(what, path):
            yield
    except HostRefused as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise
