"""Garbage collection: what nothing needs goes, and what is needed of sparse packs moves together.

Invariants: what is decided without excluding writers is decided again when they are excluded, and a
pack goes only if everything in it that is needed lies elsewhere and was read there. The index
forgets a pack before its file goes: a kill in between leaves a pack that is found again. A pack
stays that somebody else appends to, or whose content is not fully known while something is missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import msgspec

from sandboxsdk import clock
from sandboxsdk.disk import translated
from sandboxsdk.errors import Corrupt, HostFull, SandboxError
from sandboxsdk.model import GcReport

from .catalog import Catalog
from .compression import Malformed
from .files import RESERVE_BYTES, StoreFiles, read_at
from .frame import PACK_HEADER_BYTES, Newer, check_pack_header
from .index import Place, batches
from .pack import Gap, scan
from .reading import Reader, Wrong
from .writer import Writer

Live = Callable[[], set[bytes]]
# So much is moved before its old packs go: on a disk that is nearly full it must fit beside them.
_MOVED_BYTES = 32 * 1024 * 1024
_LOW_BYTES = 8 * RESERVE_BYTES


class PackFacts(NamedTuple):
    """What a decision about a pack rests on.

    Attributes:
        size: bytes of its file.
        live: about how many of them are needed; 0 only if none is.
        busy: somebody else appends to it.
        clean: it is whole frames from end to end, and the index knows them all.
    """

    pack: str
    size: int
    live: int
    busy: bool
    clean: bool


class GcPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done: packs to delete, and packs to move out of and then delete."""

    delete: tuple[PackFacts, ...] = ()
    rewrite: tuple[PackFacts, ...] = ()
    keep: tuple[PackFacts, ...] = ()


def plan_gc(facts: Iterable[PackFacts], *, complete: bool) -> GcPlan:
    """Decide what becomes of each pack. (pure)

    Args:
        facts: of all packs.
        complete: everything that is needed is there. Else it might lie in what cannot be read.
    """
    delete: list[PackFacts] = []
    rewrite: list[PackFacts] = []
    keep: list[PackFacts] = []
    for fact in facts:
        if fact.busy or not (fact.clean or complete):
            keep.append(fact)
        elif fact.live == 0:
            delete.append(fact)
        elif fact.live < fact.size // 2 or not fact.clean:
            rewrite.append(fact)
        else:
            keep.append(fact)
    return GcPlan(delete=tuple(delete), rewrite=tuple(rewrite), keep=tuple(keep))


class Owner(Protocol):
    """What a collection needs of its store."""

    def writing(self) -> contextlib.AbstractContextManager[Writer]: ...

    def retiring(self, packs: Iterable[str]) -> contextlib.AbstractContextManager[set[str]]: ...

    def is_sound(self, digest: bytes, place: Place) -> bool: ...


class Collection:
    """One run of the garbage collection."""

    def __init__(
        self, owner: Owner, files: StoreFiles, catalog: Catalog, reader: Reader, live: Live
    ) -> None:
        self._owner, self._files, self._catalog, self._reader = owner, files, catalog, reader
        self._live = live
        self._moved = 0

    def run(self, own: Iterable[str], *, dry_run: bool) -> GcReport:
        """Collect; `own` are the packs that this process appends to.

        Raises:
            HostRefused: the store cannot be read or changed.
            What `live` raises.
        """
        began = clock.monotonic()
        plan = self._planned(set(own))
        if dry_run:
            deleted, rewritten = list(plan.delete), list(plan.rewrite)
            freed = sum(f.size for f in deleted) + sum(f.size - f.live for f in rewritten)
            kept = sum(f.size for f in plan.keep) + sum(f.live for f in rewritten)
        else:
            if self._files.free_bytes() < _LOW_BYTES:
                self._files.drop_reserve()
            deleted, rewritten = self._carried_out(plan)
            freed = sum(f.size for f in (*deleted, *rewritten)) - self._moved
            kept = sum(size for size in self._files.pack_sizes().values() if size > 0)
            self._files.make_reserve()
        return GcReport(
            dry_run=dry_run,
            deleted=tuple(fact.pack for fact in deleted),
            rewritten=tuple(fact.pack for fact in rewritten),
            freed_bytes=freed,
            kept_bytes=kept,
            seconds=clock.monotonic() - began,
        )

    # --- Deciding ---------------------------------------------------------------------------------

    def _planned(self, own: set[str]) -> GcPlan:
        with self._files.hold():
            self._catalog.refresh(held=True)
            needed = self._live()
            facts, complete = self._surveyed(needed, own)
            return plan_gc(facts, complete=complete)

    def _surveyed(self, needed: set[bytes], own: set[str]) -> tuple[list[PackFacts], bool]:
        index, sizes = self._catalog.index, self._catalog.sizes
        rows = index.packs()
        segments = {
            segment.number: segment
            for pack in sizes
            for segment in index.segments(pack)
            if segment.offset + segment.size <= sizes[pack]
        }
        # Empty objects weigh something too.
        total, live, found = dict.fromkeys(segments, 0), dict.fromkeys(segments, 0), 0
        for digest, number, length in index.objects():
            if number in segments:
                total[number] += length + 1
                if digest in needed:
                    live[number] += length + 1
                    found += 1
        covered, alive = dict.fromkeys(sizes, 0), dict.fromkeys(sizes, 0)
        for number, segment in segments.items():
            covered[segment.pack] += segment.size
            if live[number]:
                share = segment.size * live[number] // max(total[number], 1)
                alive[segment.pack] += max(share, 1)
        facts = [
            PackFacts(
                pack,
                max(size, 0),
                alive[pack],
                busy=size < 0 or (pack not in own and self._is_busy(pack)),
                clean=pack in rows
                and covered[pack] + PACK_HEADER_BYTES == size
                and self._has_header(pack),
            )
            for pack, size in sorted(sizes.items())
        ]
        return facts, found == len(needed)

    def _is_busy(self, pack: str) -> bool:
        try:
            with self._files.open_pack(pack) as file:
                return not self._files.lock_pack(file)
        except (OSError, SandboxError):
            return True

    def _has_header(self, pack: str) -> bool:
        try:
            with self._files.open_pack(pack) as file:
                check_pack_header(read_at(file.fileno(), PACK_HEADER_BYTES, 0), pack)
        except (OSError, SandboxError, Malformed, Newer):
            return False
        return True

    # --- Doing ------------------------------------------------------------------------------------

    def _carried_out(self, plan: GcPlan) -> tuple[list[PackFacts], list[PackFacts]]:
        """Delete first, so that there is room to move; give what went."""
        every = [fact.pack for fact in (*plan.delete, *plan.rewrite)]
        deleted: list[PackFacts] = []
        rewritten: list[PackFacts] = []
        with self._owner.retiring(every) as own:
            if plan.delete:
                deleted = self._removed(plan.delete, own)
            for group in _groups(plan.rewrite):
                try:
                    done = self._emptied(group)
                except HostFull:
                    if not self._files.drop_reserve():
                        break
                    try:
                        done = self._emptied(group)
                    except HostFull:
                        break
                rewritten += self._removed(done, own)
        return deleted, rewritten

    def _emptied(self, group: Iterable[PackFacts]) -> list[PackFacts]:
        """Move what is needed out of packs; give those for which that went well."""
        done: list[PackFacts] = []
        with self._owner.writing() as writer:
            needed = self._live()
            for fact in group:
                try:
                    self._empty(fact.pack, needed, writer)
                except (Wrong, SandboxError) as error:
                    if isinstance(error, HostFull):
                        raise
                    # Damaged, or about to be: it stays as it is.
                    continue
                done.append(fact)
            self._moved += writer.commit()
        return done

    def _empty(self, pack: str, needed: set[bytes], writer: Writer) -> None:
        for segment in self._catalog.index.segments(pack):
            content, good, bad = self._reader.examine(pack, segment.offset)
            here = {*good, *bad} & needed
            for digest, known in self._catalog.locate(here).items():
                if (known.pack, known.offset) != (pack, segment.offset):
                    continue
                if digest in bad:
                    raise Wrong(pack, "holds a damaged object")
                item = good[digest]
                data = content[item.start : item.start + item.length]
                writer.add(item.kind, data, anew=True)

    def _removed(self, facts: Iterable[PackFacts], own: set[str]) -> list[PackFacts]:
        """Remove packs that nothing needs, with writers excluded; give those that went."""
        with self._files.hold(exclusive=True):
            self._catalog.refresh(held=True)
            needed = self._live()
            candidates = {
                fact.pack: fact
                for fact in facts
                if fact.pack in own or not self._is_busy(fact.pack)
            }
            found = 0
            for batch in batches(needed):
                places = self._catalog.locate(batch)
                found += len(places)
                for place in places.values():
                    candidates.pop(place.pack, None)
            gone = [
                fact
                for pack, fact in candidates.items()
                if self._is_dispensable(pack, needed, complete=found == len(needed))
            ]
            if gone:
                self._forget([fact.pack for fact in gone])
                with translated("remove packs of", self._files.path):
                    for fact in gone:
                        own.discard(fact.pack)
                        self._files.remove_pack(fact.pack)
                    self._files.sync_packs()
                self._catalog.refresh(held=True)
                self._reader.keep(self._catalog.sizes)
        return gone

    def _is_dispensable(self, pack: str, needed: set[bytes], *, complete: bool) -> bool:
        """Tell whether all that is needed of a pack's real content can be read elsewhere."""
        size = self._catalog.sizes.get(pack, -1)
        try:
            with self._files.open_pack(pack) as file:
                for found in scan(file.fileno(), pack, PACK_HEADER_BYTES, size, sums=False):
                    wanted = {item.digest for item in found.items} & needed
                    places = self._catalog.locate(wanted)
                    if isinstance(found, Gap) and not complete:
                        return False
                    if len(places) < len(wanted):
                        return False
                    if not all(self._owner.is_sound(*known) for known in places.items()):
                        return False
        except (OSError, Corrupt):
            return False
        return True

    def _forget(self, packs: list[str]) -> None:
        try:
            self._catalog.forget(packs)
        except HostFull:
            if self._files.drop_reserve():
                with contextlib.suppress(HostFull):
                    self._catalog.forget(packs)
                    return
            # It can be made again when there is room.
            self._catalog.discard_index()


def _groups(facts: Iterable[PackFacts]) -> Iterator[list[PackFacts]]:
    group: list[PackFacts] = []
    for fact in facts:
        group.append(fact)
        if sum(member.live for member in group) >= _MOVED_BYTES:
            yield group
            group = []
    if group:
        yield group
