"""Where each object lies: a cache in SQLite, rebuilt from the packs when it is lost.

Invariants: a row is inserted only when its frame is on disk, synced. Rows are facts that stay true
while their pack is there: numbers of packs and segments are never used twice. So an index that lost
writes in a power cut misses objects, and names none that are not there.

Every number in it is bounded when it is read, and what it leads to is checked again by the reader.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from sandboxsdk.errors import Corrupt
from sandboxsdk.host import Database
from sandboxsdk.ids import is_id, new_id

from .frame import DIGEST_BYTES, FRAME_BYTES_MAX, FRAME_BYTES_MIN, KINDS, OBJECT_BYTES_MAX
from .pack import Frame

VERSION = 1
_SCHEMA = {
    "meta": "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "objects": (
        "CREATE TABLE objects (digest BLOB PRIMARY KEY, segment INTEGER NOT NULL,"
        " start INTEGER NOT NULL, length INTEGER NOT NULL, kind INTEGER NOT NULL) WITHOUT ROWID"
    ),
    "packs": (
        "CREATE TABLE packs (number INTEGER PRIMARY KEY, name TEXT NOT NULL,"
        " size INTEGER NOT NULL, end INTEGER NOT NULL)"
    ),
    "segments": (
        "CREATE TABLE segments (id INTEGER PRIMARY KEY, pack INTEGER NOT NULL,"
        " start INTEGER NOT NULL, size INTEGER NOT NULL)"
    ),
    "segments_by_pack": "CREATE INDEX segments_by_pack ON segments (pack, start)",
}
_BATCH = 500
_PAGE = 5_000
_OFFSET_MAX = 1 << 40
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

_FIND = (
    "SELECT o.digest, p.name, s.start, s.size, o.start, o.length, o.kind FROM objects o"
    " JOIN segments s ON s.id = o.segment JOIN packs p ON p.number = s.pack"
)
_PUT = "INSERT INTO objects (digest, segment, start, length, kind) VALUES (?, ?, ?, ?, ?)"
_REPLACE = (
    " ON CONFLICT (digest) DO UPDATE SET segment = excluded.segment, start = excluded.start,"
    " length = excluded.length, kind = excluded.kind"
)
# Where the place that was known is gone.
_IF_GONE = (
    " WHERE NOT EXISTS (SELECT 1 FROM segments s JOIN packs p ON p.number = s.pack"
    " WHERE s.id = objects.segment AND s.start + s.size <= p.size)"
)


class Place(NamedTuple):
    """Where an object lies: the frame at `offset` of a pack, `size` long; there from `start` on."""

    pack: str
    offset: int
    size: int
    start: int
    length: int
    kind: int


class PackRow(NamedTuple):
    """What the index knows of a pack.

    Attributes:
        size: its length when it was last looked at; -1 when it was gone.
        end: behind the last frame that was ever known to be whole and on disk.
    """

    size: int
    end: int


class SegmentRow(NamedTuple):
    """A frame that the index knows."""

    number: int
    pack: str
    offset: int
    size: int


class Index:
    """One index; may be used from several threads.

    Args:
        path: of the database; None keeps it in memory.
        read_only: write nothing.

    Raises:
        Corrupt: it is damaged, or not an index of this version.
        HostFull, HostRefused: it cannot be opened.
    """

    def __init__(self, path: str | None, *, read_only: bool = False) -> None:
        self.path = path
        self._guard = threading.RLock()
        self._database = Database(path, read_only=read_only)
        try:
            if not read_only:
                self._make()
            self._check_schema()
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        with self._guard:
            self._database.close()

    def abandon(self) -> None:
        """In a forked child, where another thread of the parent may seem to be at work in it."""
        self._database.close()

    def _make(self) -> None:
        if self._database.query("SELECT count(*) FROM sqlite_master") != [(0,)]:
            return
        with self._database.transaction():
            # Somebody else may have been first.
            if self._database.query("SELECT count(*) FROM sqlite_master") == [(0,)]:
                for statement in _SCHEMA.values():
                    self._database.query(statement)
                self._database.query(f"PRAGMA user_version = {VERSION}")
                self._renew()

    def _check_schema(self) -> None:
        found = self._database.query("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        version = self._database.query("PRAGMA user_version")
        if dict(found) != _SCHEMA or version != [(VERSION,)] or not self.generation:
            raise self._corrupt("is not an index of this version")

    def _corrupt(self, reason: str) -> Corrupt:
        return Corrupt(path=self._database.path, reason=reason)

    def _renew(self) -> None:
        values = ("generation", new_id())
        self._database.query("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", values)

    @property
    def generation(self) -> str:
        """Another one whenever objects may have gone."""
        with self._guard:
            rows = self._database.query("SELECT value FROM meta WHERE name = 'generation'")
        if len(rows) != 1 or not isinstance(rows[0][0], str) or not is_id(rows[0][0]):
            raise self._corrupt("has no generation")
        return rows[0][0]

    def is_sound(self) -> bool:
        """Have SQLite look through all pages: a damaged one may miss rows without saying so."""
        try:
            with self._guard:
                return self._database.query("PRAGMA integrity_check(1)") == [("ok",)]
        except Corrupt:
            return False

    # --- Looking up -------------------------------------------------------------------------------

    def find(self, digests: Iterable[bytes]) -> dict[bytes, Place]:
        """Give the place of each object that is known.

        Raises:
            Corrupt: the index is damaged.
        """
        places: dict[bytes, Place] = {}
        for batch in batches(digests):
            marks = ",".join("?" * len(batch))
            with self._guard:
                rows = self._database.query(f"{_FIND} WHERE o.digest IN ({marks})", batch)
            asked = set(batch)
            for row in rows:
                place = self._place(row)
                if row[0] not in asked:
                    # The key of a row is not what its place in the tree says.
                    raise self._corrupt("answers what was not asked")
                places[row[0]] = place
        return places

    def _place(self, row: Sequence[Any]) -> Place:
        digest, pack, *numbers = row
        if not (
            isinstance(digest, bytes)
            and len(digest) == DIGEST_BYTES
            and isinstance(pack, str)
            and is_id(pack)
            and all(isinstance(number, int) for number in numbers)
        ):
            raise self._corrupt("holds values of another type")
        place = Place(pack, *numbers)
        if not (
            0 < place.offset <= _OFFSET_MAX
            and FRAME_BYTES_MIN <= place.size <= FRAME_BYTES_MAX
            and 0 <= place.start <= OBJECT_BYTES_MAX
            and 0 <= place.length <= OBJECT_BYTES_MAX - place.start
            and place.kind in KINDS
        ):
            raise self._corrupt("holds numbers that cannot be")
        return place

    def packs(self) -> dict[str, PackRow]:
        """Give what is known of each pack."""
        with self._guard:
            rows = self._database.query("SELECT name, size, end FROM packs")
        found: dict[str, PackRow] = {}
        for name, size, end in rows:
            if not (isinstance(name, str) and is_id(name)):
                raise self._corrupt("holds names that are none")
            if not (isinstance(size, int) and isinstance(end, int) and 0 <= end <= _OFFSET_MAX):
                raise self._corrupt("holds numbers that cannot be")
            found[name] = PackRow(size, end)
        return found

    def _row(self, pack: str) -> PackRow | None:
        rows = self._database.query(
            "SELECT size, end FROM packs WHERE number = ?", (_number(pack),)
        )
        return PackRow(*rows[0]) if rows else None

    def segments(self, pack: str) -> list[SegmentRow]:
        """Give the known frames of a pack, by offset."""
        with self._guard:
            rows = self._database.query(
                "SELECT id, start, size FROM segments WHERE pack = ? ORDER BY start",
                (_number(pack),),
            )
        return [
            SegmentRow(number, pack, *self._bounded(offset, size)) for number, offset, size in rows
        ]

    def _bounded(self, offset: Any, size: Any) -> tuple[int, int]:
        whole = isinstance(offset, int) and isinstance(size, int)
        if not whole or not (0 < offset <= _OFFSET_MAX and 0 < size <= FRAME_BYTES_MAX):
            raise self._corrupt("holds numbers that cannot be")
        return offset, size

    def objects(self) -> Iterator[tuple[bytes, int, int]]:
        """Give digest, segment and length of every object that is known, sorted by digest."""
        last = b""
        while True:
            with self._guard:
                rows = self._database.query(
                    "SELECT digest, segment, length FROM objects WHERE digest > ?"
                    " ORDER BY digest LIMIT ?",
                    (last, _PAGE),
                )
            for digest, segment, length in rows:
                if not (isinstance(digest, bytes) and isinstance(length, int)):
                    raise self._corrupt("holds values of another type")
                yield digest, segment, length
            if len(rows) < _PAGE:
                return
            last = rows[-1][0]

    # --- Changing ---------------------------------------------------------------------------------

    def add(self, pack: str, before: int, frames: Iterable[Frame], end: int) -> bool:
        """Note down frames that their writer has committed, behind the `before` bytes that were.

        Returns:
            False, and nothing is changed, if it does not know the pack up to there.
        """
        with self._guard, self._database.transaction():
            rows = self._database.query("SELECT size FROM packs WHERE number = ?", (_number(pack),))
            if rows != [(before,)]:
                return False
            self._insert(pack, frames, _PUT + _REPLACE)
            self._note(pack, end, end)
        return True

    def catch_up(
        self, pack: str, seen: PackRow | None, frames: Iterable[Frame], size: int, end: int
    ) -> bool:
        """Note down what lies in a pack behind what was known, and is on disk; known places stay.

        Args:
            seen: what was known of the pack before it was looked at.

        Returns:
            False, and nothing is changed, if more is known of it by now: somebody else has looked
            at it too, and may have gone on writing it.
        """
        with self._guard, self._database.transaction():
            if self._row(pack) != seen:
                return False
            start = seen.size if seen else 0
            self._database.query(
                "DELETE FROM segments WHERE pack = ? AND start >= ?", (_number(pack), start)
            )
            self._insert(pack, frames, _PUT + _REPLACE + _IF_GONE)
            self._note(pack, size, end)
        return True

    def register(self, pack: str, size: int) -> None:
        """Note down a new pack, of which nothing is known yet."""
        with self._guard, self._database.transaction():
            self._note(pack, size, size)

    def shrunk(self, sizes: dict[str, int]) -> None:
        """Note down packs that are shorter than they were, or gone (-1)."""
        with self._guard, self._database.transaction():
            self._database.run_for_each(
                "UPDATE packs SET size = ? WHERE number = ?",
                [(size, _number(pack)) for pack, size in sizes.items()],
            )
            self._renew()

    def drop_packs(self, packs: Iterable[str]) -> None:
        """Forget packs, and all that lies in them."""
        numbers = [(_number(pack),) for pack in packs]
        with self._guard, self._database.transaction():
            self._renew()
            self._drop(numbers)

    def drop_objects(self, digests: Iterable[bytes]) -> None:
        """Forget objects, so that they are written anew."""
        with self._guard, self._database.transaction():
            self._renew()
            self._database.run_for_each(
                "DELETE FROM objects WHERE digest = ?", [(digest,) for digest in digests]
            )

    def rebuild(
        self, contents: Iterable[tuple[str, list[Frame], int, int]], seen: dict[str, PackRow]
    ) -> set[str]:
        """Replace all that is known of these packs: each with its frames, its size and its end.

        Args:
            seen: what was known of each pack before it was looked at.

        Returns:
            Those of which more is known by now: somebody has committed to them, or looked at them
            too. They stay as they are.
        """
        with self._guard, self._database.transaction():
            self._renew()
            rows = self.packs()
            taken, passed = [], set()
            for content in contents:
                if rows.get(content[0]) == seen.get(content[0]):
                    taken.append(content)
                else:
                    passed.add(content[0])
            self._drop([(_number(pack),) for pack, *_ in taken])
            for pack, frames, size, end in taken:
                self._insert(pack, frames, _PUT + _REPLACE + _IF_GONE)
                # What was committed once stays so, or damage would pass for what a crash left.
                self._note(pack, size, max(end, rows[pack].end if pack in rows else 0))
        return passed

    def _drop(self, numbers: list[tuple[int]]) -> None:
        gone = "CREATE TEMP TABLE IF NOT EXISTS gone (number INTEGER PRIMARY KEY)"
        self._database.query(gone)
        self._database.query("DELETE FROM gone")
        self._database.run_for_each("INSERT OR IGNORE INTO gone VALUES (?)", numbers)
        self._database.query(
            "DELETE FROM objects WHERE segment IN"
            " (SELECT id FROM segments WHERE pack IN (SELECT number FROM gone))"
        )
        self._database.query("DELETE FROM segments WHERE pack IN (SELECT number FROM gone)")
        self._database.query("DELETE FROM packs WHERE number IN (SELECT number FROM gone)")

    def _insert(self, pack: str, frames: Iterable[Frame], put: str) -> None:
        for frame in frames:
            number = secrets.randbits(62)
            values = (number, _number(pack), frame.offset, frame.size)
            self._database.query(
                "INSERT INTO segments (id, pack, start, size) VALUES (?, ?, ?, ?)", values
            )
            # In the order of the table, so that each page of it is changed once.
            rows = sorted(
                (item.digest, number, item.start, item.length, item.kind) for item in frame.items
            )
            self._database.run_for_each(put, rows)

    def _note(self, pack: str, size: int, end: int) -> None:
        self._database.query(
            "INSERT INTO packs (number, name, size, end) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (number) DO UPDATE SET size = excluded.size,"
            " end = max(end, excluded.end)",
            (_number(pack), pack, size, end),
        )


def _number(pack: str) -> int:
    """Give the number of a pack: the first 60 bits of its id."""
    number = 0
    for character in pack[:12]:
        number = number << 5 | _ALPHABET.index(character)
    return number


def batches(digests: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Give digests in lists of some hundred."""
    source = iter(digests)
    while batch := list(islice(source, _BATCH)):
        yield batch
