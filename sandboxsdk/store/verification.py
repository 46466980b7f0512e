"""Looking at everything that is stored, and saying what is not as it was stored.

Three depths: "index" compares headers and tables with the index, "objects" also every byte with its
frame's sum, "content" also every object with its digest. Packs are never changed.

What lies behind the last frame that was ever known to be committed is no damage: a crash leaves a
frame unfinished, and nobody was told that it is stored. It is given apart, as `unfinished`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from sandboxsdk.disk import translated
from sandboxsdk.errors import Corrupt, SandboxError
from sandboxsdk.model import Level

from .catalog import Catalog
from .compression import Malformed
from .files import StoreFiles, read_at
from .frame import PACK_HEADER_BYTES, Newer, check_pack_header, content, holds, pack_header
from .index import PackRow, Place, SegmentRow
from .pack import Frame, Gap, read_frame, scan

_SHOWN_NAMES = 5


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as it was stored.

    Attributes:
        path: where it lies.
        digests: the objects that it touches, as far as known.
        lost: whether objects cannot be read any more; else a rebuilt index finds all.
    """

    path: str
    reason: str
    digests: frozenset[bytes] = frozenset()
    lost: bool = False


class StoreCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What a check found.

    Attributes:
        unfinished: what crashes left behind the last commit of a pack; no damage.
        objects: looked at.
        bytes: of packs, looked at.
    """

    problems: tuple[Damage, ...] = ()
    unfinished: tuple[Damage, ...] = ()
    packs: int = 0
    objects: int = 0
    bytes: int = 0


class _Suspect(NamedTuple):
    """Bytes of a pack that are not what the index, or the pack itself, says."""

    pack: str
    offset: int
    end: int
    reason: str
    digests: frozenset[bytes]


class Verification:
    """One check of a store; the caller holds it."""

    def __init__(self, files: StoreFiles, catalog: Catalog, level: Level) -> None:
        self._files, self._catalog, self._level = files, catalog, level
        self._problems: list[Damage] = []
        self._unfinished: list[Damage] = []
        self._suspects: list[_Suspect] = []
        # Frames that are whole, and how many rows of the index agree with each.
        self._agreeing: dict[tuple[str, int, int], int] = {}
        self._disagreeing: set[bytes] = set()
        # Objects that are not what their digests say, in frames that are whole.
        self.lies: list[tuple[frozenset[bytes], Place]] = []
        self._objects = self._bytes = 0

    def run(self) -> StoreCheck:
        """Look at everything.

        Raises:
            HostRefused: the store cannot be read.
        """
        sizes, rows = self._catalog.sizes, self._catalog.index.packs()
        for pack in sorted(sizes.keys() | rows.keys()):
            self._look_at(pack, sizes.get(pack, -1), rows.get(pack))
        self._compare_with_index(rows)
        self._settle()
        self._name_junk()
        return StoreCheck(
            problems=tuple(self._problems),
            unfinished=tuple(self._unfinished),
            packs=len(sizes),
            objects=self._objects,
            bytes=self._bytes,
        )

    # --- One pack ---------------------------------------------------------------------------------

    def _look_at(self, pack: str, size: int, row: PackRow | None) -> None:
        end = row.end if row else 0
        try:
            file = self._files.open_pack(pack)
        except FileNotFoundError:
            self._suspect(pack, 0, end, "is gone")
            return
        except Corrupt as error:
            self._suspect(pack, 0, end, str(error.fields["reason"]))
            return
        with file, translated("read", self._files.shown_pack(pack)):
            # A writer may have made it longer since.
            size = os.fstat(file.fileno()).st_size
            if not self._has_header(file.fileno(), pack, end):
                return
            for found in scan(
                file.fileno(), pack, PACK_HEADER_BYTES, size, sums=self._level != "index"
            ):
                self._bytes += found.size
                if isinstance(found, Gap):
                    self._take_gap(pack, found, end)
                    continue
                self._objects += len(found.items)
                if self._is_whole(file.fileno(), pack, found):
                    self._agreeing[pack, found.offset, found.size] = 0
                    self._compare(pack, found, row)
        if size < end:
            self._suspect(pack, max(size, 0), end, "is shorter than what was committed to it")

    def _has_header(self, fd: int, pack: str, end: int) -> bool:
        """Look at the header; False if a crash came while it was written, before anything else."""
        data = read_at(fd, PACK_HEADER_BYTES, 0)
        try:
            check_pack_header(data, pack)
        except (Malformed, Newer) as error:
            damage = Damage(path=self._files.shown_pack(pack), reason=str(error))
            begun = pack_header(pack).startswith(data.rstrip(b"\0"))
            if begun and end <= PACK_HEADER_BYTES:
                self._unfinished.append(damage)
                return False
            self._problems.append(damage)
        return True

    def _take_gap(self, pack: str, gap: Gap, end: int) -> None:
        digests = frozenset(item.digest for item in gap.items)
        if gap.offset < end:
            self._suspect(pack, gap.offset, gap.offset + gap.size, gap.reason, digests)
            return
        path, reason = self._files.shown_pack(pack), f"ends unfinished: {gap.reason}"
        self._unfinished.append(Damage(path=path, reason=reason, digests=digests))

    def _is_whole(self, fd: int, pack: str, frame: Frame) -> bool:
        if self._level != "content":
            return True
        reason, bad = "", frozenset(item.digest for item in frame.items)
        try:
            header, data = read_frame(fd, pack, frame.offset, frame.size)
            segment = content(data, header)
        except (Malformed, Newer) as error:
            reason = str(error)
        else:
            bad = frozenset(item.digest for item in frame.items if not holds(segment, item))
            if not bad:
                return True
            reason = "holds other bytes than were stored"
        self.lies.append((bad, Place(pack, frame.offset, frame.size, 0, 0, 0)))
        self._suspect(pack, frame.offset, frame.offset + frame.size, reason, bad)
        return False

    def _suspect(
        self, pack: str, offset: int, end: int, reason: str, digests: Iterable[bytes] = ()
    ) -> None:
        self._suspects.append(_Suspect(pack, offset, end, reason, frozenset(digests)))

    # --- The index --------------------------------------------------------------------------------

    def _compare(self, pack: str, frame: Frame, row: PackRow | None) -> None:
        """Compare the table of a frame with what the index says of its objects."""
        places = self._catalog.index.find(item.digest for item in frame.items)
        for item in frame.items:
            place = places.get(item.digest)
            if place is None:
                # A frame that is not committed is not in the index.
                if row is not None and frame.offset < row.end:
                    self._disagreeing.add(item.digest)
            elif place[:3] == (pack, frame.offset, frame.size):
                if place[3:] == (item.start, item.length, item.kind):
                    self._agreeing[pack, frame.offset, frame.size] += 1
                else:
                    self._disagreeing.add(item.digest)

    def _compare_with_index(self, rows: dict[str, PackRow]) -> None:
        """Find the objects that the index sees in frames that are not whole, or not there."""
        index = self._catalog.index
        # Writers may be at work: what they have committed since does not count.
        segments = {
            segment.number: segment
            for pack in rows
            for segment in index.segments(pack)
            if segment.offset + segment.size <= rows[pack].end
        }
        agreeing = {
            number: self._agreeing.get((segment.pack, segment.offset, segment.size), -1)
            for number, segment in segments.items()
        }
        counted = dict.fromkeys(segments, 0)
        touched: dict[int, set[bytes]] = {}
        for digest, number, _ in index.objects():
            if number in segments:
                counted[number] += 1
                if agreeing[number] < 0:
                    touched.setdefault(number, set()).add(digest)
        for number, digests in touched.items():
            self._blame(segments[number], digests)
        # Fewer than agreed a moment ago were moved elsewhere meanwhile.
        if any(counted[number] > agreeing[number] >= 0 for number in segments):
            reason = "does not agree with the packs"
            self._problems.append(Damage(path=str(index.path), reason=reason))

    def _blame(self, segment: SegmentRow, digests: set[bytes]) -> None:
        """Put objects to the damage that they lie in; else the index is wrong about them."""
        for position, suspect in enumerate(self._suspects):
            inside = suspect.offset < segment.offset + segment.size and segment.offset < suspect.end
            if suspect.pack == segment.pack and inside:
                self._suspects[position] = suspect._replace(digests=suspect.digests | digests)
                return
        self._disagreeing |= digests

    # --- What it adds up to -----------------------------------------------------------------------

    def _settle(self) -> None:
        """Tell what is lost from what lies elsewhere too."""
        touched = frozenset().union(self._disagreeing, *(s.digests for s in self._suspects))
        elsewhere = self._elsewhere(touched) if touched else frozenset()
        for suspect in self._suspects:
            lost = suspect.digests - elsewhere
            self._problems.append(
                Damage(
                    path=self._files.shown_pack(suspect.pack),
                    reason=suspect.reason,
                    digests=lost or suspect.digests,
                    # Nobody knows what was in bytes that nothing names.
                    lost=bool(lost) or not suspect.digests,
                )
            )
        if self._disagreeing:
            lost = frozenset(self._disagreeing) - elsewhere
            self._problems.append(
                Damage(
                    path=str(self._catalog.index.path),
                    reason="does not agree with the packs",
                    digests=lost or frozenset(self._disagreeing),
                    lost=bool(lost),
                )
            )

    def _elsewhere(self, wanted: frozenset[bytes]) -> frozenset[bytes]:
        """Give those objects that some whole frame holds."""
        found: set[bytes] = set()
        whole: dict[str, set[int]] = {}
        for pack, offset, _ in self._agreeing:
            whole.setdefault(pack, set()).add(offset)
        for pack, offsets in whole.items():
            try:
                file = self._files.open_pack(pack)
            except (OSError, SandboxError):
                continue
            with file:
                size = self._catalog.sizes.get(pack, -1)
                for frame in scan(file.fileno(), pack, PACK_HEADER_BYTES, size, sums=False):
                    if isinstance(frame, Frame) and frame.offset in offsets:
                        found |= {item.digest for item in frame.items} & wanted
        return frozenset(found)

    def _name_junk(self) -> None:
        names = self._files.junk(_SHOWN_NAMES + 1)
        if names:
            more = ", and more" if len(names) > _SHOWN_NAMES else ""
            reason = f"holds what is no pack: {', '.join(names[:_SHOWN_NAMES])}{more}"
            self._problems.append(Damage(path=self._files.shown("packs"), reason=reason))
