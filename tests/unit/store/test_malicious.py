"""Hostile bytes in every file of a store: each row ends as the table says, soon, in bounded memory,
and without a write by who only reads.

The frames are made here from their description alone, so that their sums are right and only what
the row is about is wrong.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard
from blake3 import blake3

from sandboxsdk.codec import typed_digest
from sandboxsdk.errors import Corrupt, Denied, SandboxError, Unavailable
from sandboxsdk.store import BLOB, Store

from .conftest import stored

MIB = 1024 * 1024
SECONDS_MAX = 1.0
MEMORY_MAX = (64 + 16) * MIB
VICTIM = b"what was stored" * 20
WANTED = typed_digest(BLOB, VICTIM)
PLAIN = zstandard.ZstdCompressor(level=1).compress(VICTIM)


def b3(*parts: bytes, length: int) -> bytes:
    return blake3(b"".join(parts)).digest(length)


class Frame(NamedTuple):
    """The fields of a frame as a row wants them; what is None is as it should be."""

    payload: bytes = PLAIN
    codec: int = 1
    raw: int = len(VICTIM)
    version: int = 1
    zero: int = 0
    table: bytes = struct.pack("<BI32s", BLOB, len(VICTIM), WANTED)
    objects: int | None = None
    table_length: int | None = None
    stored: int | None = None

    def made(self, pack: str) -> bytes:
        head = b3(b"sandboxsdk frame mark\0", pack.encode(), length=8) + struct.pack(
            "<BBHIIII",
            self.version,
            self.codec,
            self.zero,
            len(self.table) // 37 if self.objects is None else self.objects,
            len(self.table) if self.table_length is None else self.table_length,
            len(self.payload) if self.stored is None else self.stored,
            self.raw,
        )
        head += b3(b"sandboxsdk frame header\0", pack.encode(), head, length=8)
        body = head + self.table + self.payload
        return body + b3(pack.encode(), body, length=16)


class Stand:
    """A closed store with one object, and what a row does to it."""

    def __init__(self, place: Path) -> None:
        self.path = place / "store"
        self.outside = place / "outside"
        self.outside.write_bytes(b"of somebody else")
        store = Store(str(self.path))
        stored(store, VICTIM)
        store.close()
        (self.pack,) = (self.path / "packs").iterdir()
        self.index = self.path / "index.sqlite"

    def forge(self, *frames: Frame, keep_index: bool = False) -> None:
        """Put these frames in place of the pack's own."""
        header = self.pack.read_bytes()[:44]
        self.pack.write_bytes(header + b"".join(frame.made(self.pack.stem) for frame in frames))
        if not keep_index:
            self.index.unlink()

    def sql(self, *statements: str) -> None:
        with contextlib.closing(sqlite3.connect(self.index)) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    def state(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for file in [self.outside, *self.path.rglob("*")]:
            entry = file.lstat()
            kept = file.read_bytes() if file.is_file() and not file.is_symlink() else None
            found[str(file)] = (entry.st_mode, entry.st_ino, entry.st_size, kept)
        return found


def opened(stand: Stand, *, read_only: bool) -> None:
    """Open it, read what was stored, and look at everything."""
    store = Store(str(stand.path), read_only=read_only)
    try:
        for level in ("index", "objects", "content"):
            store.verify(level)
        assert store.read(BLOB, WANTED) == VICTIM
        assert dict(store.read_many(BLOB, [WANTED])) == {WANTED: VICTIM}
    finally:
        store.close()


class Row(NamedTuple):
    """One attack, and how reading the object ends: an error, or None when it is read as it was."""

    id: str
    attack: str
    expected: type[SandboxError] | None
    prepare: Callable[[Stand], object]
    absent: str = ""


def header(descriptor: int, rest: bytes) -> bytes:
    """The beginning of a zstd frame made by hand, and one last empty block."""
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + rest + b"\x01\x00\x00"


def bomb() -> bytes:
    maker = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    return b"".join(maker.compress(bytes(MIB)) for _ in range(100)) + maker.flush()


def instead(name: str, make: Callable[[Path, Stand], object]) -> Callable[[Stand], None]:
    """Put something else in place of a file."""

    def prepare(stand: Stand) -> None:
        place = stand.pack if name == "pack" else stand.path / name
        if place.is_dir():
            place.rename(stand.path / "moved")
        elif place.exists():
            place.unlink()
        make(place, stand)

    return prepare


def link(place: Path, stand: Stand) -> None:
    moved = stand.path / "moved"
    place.symlink_to(moved if moved.exists() else stand.outside)


def fifo(place: Path, _: Stand) -> None:
    os.mkfifo(place)


def directory(place: Path, _: Stand) -> None:
    place.mkdir()


def device(place: Path, _: Stand) -> None:
    if os.geteuid():
        os.mkfifo(place)  # Only root can make devices.
    else:
        os.mknod(place, 0o020600, os.makedev(1, 5))


def hard_link(place: Path, stand: Stand) -> None:
    os.link(stand.outside, place)


def junk(stand: Stand) -> None:
    for number in range(20_000):
        (stand.path / "packs" / f"{number:x}.tmp").touch()


def odd_names(stand: Stand) -> None:
    for name in ("A" * 16, "0" * 15, "0" * 17, "0" * 15 + "u", "..", "0\n" * 8, "\udcff" * 16):
        (stand.path / "packs" / f"{name}.pack").write_bytes(b"junk")


def planted(stand: Stand) -> None:
    """A frame that claims to hold what will be stored later, beside the true one."""
    junk_frame = Frame(payload=bytes(len(VICTIM)), codec=0)
    other = stand.pack.with_name("0" * 16 + ".pack")
    head = b"\x93SBXPACK" + struct.pack("<I16s", 1, b"0" * 16)
    other.write_bytes(head + b3(head, length=16) + junk_frame.made("0" * 16))
    stand.index.unlink()


def foreign(stand: Stand) -> None:
    if os.geteuid():
        (stand.path / "packs").chmod(0o777)  # Only root can give it away.
    else:
        os.chown(stand.path, 65534, -1)


def forging(*frames: Frame, keep_index: bool = False) -> Callable[[Stand], object]:
    return lambda stand: stand.forge(*frames, keep_index=keep_index)


def saying(*statements: str) -> Callable[[Stand], object]:
    return lambda stand: stand.sql(*statements)


def format_file(text: str) -> Callable[[Stand], object]:
    return lambda stand: (stand.path / "format").write_text(text)


TIB = struct.pack("<Q", 1 << 40)
SIZE = struct.pack("<Q", len(VICTIM))
SKIPPED = b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"skip"
LONG = struct.pack("<BI32s", BLOB, 0xFFFFFFFF, WANTED)
HALF = struct.pack("<BI32s", BLOB, len(VICTIM) - 1, WANTED)
ENTRY = Frame().table

ROWS = (
    Row("D01", "zstd header claims 1 TiB", Corrupt, forging(Frame(header(0xE0, TIB)))),
    Row("D02", "zstd without a size, a bomb", Corrupt, forging(Frame(bomb(), raw=16 * MIB))),
    Row("D02", "zstd bomb, true size not in the header", Corrupt, forging(Frame(bomb()))),
    Row("D03", "window of 2^31", Corrupt, forging(Frame(header(0xC0, b"\xa8" + SIZE)))),
    Row("D04", "bytes behind the zstd frame", Corrupt, forging(Frame(PLAIN + b"x"))),
    Row("D04", "a second zstd frame", Corrupt, forging(Frame(PLAIN + PLAIN))),
    Row("D04", "a skippable frame behind", Corrupt, forging(Frame(PLAIN + SKIPPED))),
    Row("D04", "a skippable frame before", Corrupt, forging(Frame(SKIPPED + PLAIN))),
    Row("D05", "raw length too small", Corrupt, forging(Frame(raw=len(VICTIM) - 1, table=HALF))),
    Row("D05", "raw length too large", Corrupt, forging(Frame(raw=len(VICTIM) + 1))),
    Row("D06", "zstd frame cut", Corrupt, forging(Frame(PLAIN[:-1]))),
    Row("D06", "zstd frame empty", Corrupt, forging(Frame(b""))),
    Row("D06", "pack cut", Corrupt, lambda s: s.pack.write_bytes(s.pack.read_bytes()[:-1])),
    Row("D06", "pack empty", Corrupt, lambda s: s.pack.write_bytes(b"")),
    Row("D07", "unknown dictionary", Corrupt, forging(Frame(header(0x61, b"\x07" + SIZE[:2])))),
    Row("D08", "object of 4 GiB", Corrupt, forging(Frame(table=LONG))),
    Row("D08", "segment of 4 GiB", Corrupt, forging(Frame(table=LONG, raw=0xFFFFFFFF))),
    Row("D08", "payload of 4 GiB", Corrupt, forging(Frame(stored=0xFFFFFFF0))),
    Row("D09", "format nested 200,000 deep", Corrupt, format_file("[" * 200_000)),
    Row("D13", "format 2^31", Unavailable, format_file('{"format":2147483648}')),
    Row("D13", "version of a frame", Corrupt, forging(Frame(version=255))),
    Row(
        "D13", "version, index believes it", Unavailable, forging(Frame(version=2), keep_index=True)
    ),
    Row(
        "D13",
        "unknown codec, index believes it",
        Unavailable,
        forging(Frame(codec=7), keep_index=True),
    ),
    Row("D14", "2^32 - 1 objects", Corrupt, forging(Frame(objects=0xFFFFFFFF))),
    Row("D14", "table of 4 GiB", Corrupt, forging(Frame(table_length=0xFFFFFFFF))),
    Row("D14", "no object at all", Corrupt, forging(Frame(table=b"", raw=0, payload=b"", codec=0))),
    Row("D15", "missing pack", Corrupt, lambda stand: stand.pack.unlink()),
    Row("D16", "index: offset past the end", None, saying("UPDATE segments SET start = 1 << 39")),
    Row("D16", "index: offset overflows", None, saying(f"UPDATE segments SET start = {2**63 - 1}")),
    Row("D16", "index: start past the segment", None, saying("UPDATE objects SET start = 99999")),
    Row(
        "D17", "index: negative numbers", None, saying("UPDATE objects SET start = -1, length = -1")
    ),
    Row("D17", "index: 2^64", None, saying("UPDATE segments SET size = 18446744073709551616")),
    Row("D17", "index: text for a number", None, saying("UPDATE objects SET length = 'x'")),
    Row("D17", "index: pack is longer than it is", None, saying("UPDATE packs SET size = 1 << 50")),
    Row(
        "D17", "index: ends before it begins", None, saying("UPDATE packs SET end = -5, size = -5")
    ),
    Row("D18", "objects overlap", Corrupt, forging(Frame(table=ENTRY + ENTRY))),
    Row(
        "D18",
        "frames overlap",
        None,
        saying("INSERT INTO segments SELECT 1, pack, start + 1, size FROM segments"),
    ),
    Row(
        "D19", "other bytes under this digest", Corrupt, forging(Frame(bytes(len(VICTIM)), codec=0))
    ),
    Row(
        "D19",
        "other bytes, index believes it",
        Corrupt,
        forging(Frame(bytes(len(VICTIM)), codec=0), keep_index=True),
    ),
    Row("D19", "another kind", None, forging(Frame(table=b"t" + ENTRY[1:]))),
    Row("D19", "unknown kind", Corrupt, forging(Frame(table=b"x" + ENTRY[1:]))),
    Row("D20", "names of packs that are none", None, odd_names),
    Row(
        "D20",
        "index: a path as the name of a pack",
        None,
        saying("UPDATE packs SET name = '../../outside'"),
    ),
    Row(
        "D21",
        "index: short digest",
        None,
        saying("UPDATE objects SET digest = substr(digest, 1, 16)"),
    ),
    Row("D21", "unknown bits in a header", Corrupt, forging(Frame(zero=1))),
    *(
        Row(number, f"{name} is a {kind}", expected, instead(name, make))
        for number, kind, make in (
            ("D22", "link", link),
            ("D23", "FIFO", fifo),
            ("D23", "directory", directory),
            ("D23", "device", device),
            ("D24", "hard link", hard_link),
        )
        for name, expected in (
            ("pack", Corrupt),
            ("index.sqlite", Corrupt),
            ("index.sqlite-journal", Corrupt),
            ("lock", Corrupt),
            ("format", Corrupt),
            ("reserve", None),
        )
    ),
    Row("D22", "packs is a link", Corrupt, instead("packs", link)),
    Row("D23", "packs is a FIFO", Corrupt, instead("packs", fifo)),
    Row("D25", "junk planted at a future digest", None, planted),
    Row("D28", "20,000 junk files", None, junk),
    Row("D29", "store writable by others", Denied, lambda stand: stand.path.chmod(0o777)),
    Row("D29", "packs writable by the group", Denied, lambda s: (s.path / "packs").chmod(0o770)),
    Row("D29", "store of somebody else", Denied, foreign),
    Row(
        "D30",
        "pack is cut to half",
        Corrupt,
        lambda s: os.truncate(s.pack, s.pack.stat().st_size // 2),
    ),
    *(
        Row(number, attack, None, lambda _: None, absent=reason)
        for number, attack, reason in (
            ("D10", "duplicate keys, extra fields", "trees: the codec and the snapshot"),
            ("D11", "NaN, bool as int, str as bytes", "trees: the codec and the snapshot"),
            ("D12", "invalid UTF-8 in labels", "the journal and the model"),
            ("D26", "head of another task", "the journal"),
            ("D27", "head rolled back", "the journal"),
        )
    ),
)


@pytest.fixture(scope="module")
def table(request):
    """Collect what was seen, and print it when all rows of this process are done."""
    lines: list[str] = []
    yield lines
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    if reporter is not None and capture is not None:
        with capture.global_and_fixture_disabled():
            reporter.write_line("")
            for line in sorted(lines):
                reporter.write_line(line)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.id} {row.attack}".replace(" ", "-"))
def test_hostile_bytes_end_as_the_table_says(row, tmp_path, table):
    """Opening and reading end with the row's error or the true bytes, in a second and in little
    memory; who only reads writes nothing.
    """
    if row.absent:
        table.append(f"{row.id}  {row.attack:<42} {'':<12} elsewhere: {row.absent}")
        return
    stand = Stand(tmp_path)
    verdict = "FAILED"
    expected = row.expected.__name__ if row.expected else "true bytes"
    # So that a link or a directory that is refused is refused to who only reads as well.
    try:
        row.prepare(stand)
        before = stand.state()
        used = resource.getrusage(resource.RUSAGE_SELF)
        for read_only in (True, False):
            ending = pytest.raises(row.expected) if row.expected else contextlib.nullcontext()
            with ending as caught:
                opened(stand, read_only=read_only)
            if row.expected:
                assert type(caught.value) is row.expected
            if read_only:
                assert stand.state() == before
        after = resource.getrusage(resource.RUSAGE_SELF)
        spent = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
        assert spent < 2 * SECONDS_MAX
        assert (after.ru_maxrss - used.ru_maxrss) * 1024 < MEMORY_MAX
        assert stand.outside.read_bytes() == b"of somebody else"
        verdict = f"held in {spent / 2 * 1000:.0f} ms"
    finally:
        table.append(f"{row.id}  {row.attack:<42} {expected:<12} {verdict}")


def test_what_is_planted_is_not_believed_when_it_is_added(tmp_path):
    """Content whose digest somebody planted junk under is stored, and read back as it is."""
    stand = Stand(tmp_path)
    planted(stand)
    stand.pack.unlink()
    store = Store(str(stand.path))
    try:
        assert store.has([WANTED]) == {WANTED}
        assert stored(store, VICTIM) == [WANTED]
        assert store.read(BLOB, WANTED) == VICTIM
        stand.index.unlink()
        store.close()
        store = Store(str(stand.path))
        assert store.read(BLOB, WANTED) == VICTIM
    finally:
        store.close()


def test_a_pack_that_changes_while_it_is_open_is_noticed(tmp_path):
    """A pack that changes or shrinks after it was opened gives the true bytes or an error."""
    stand = Stand(tmp_path)
    whole = stand.pack.read_bytes()
    store = Store(str(stand.path), read_only=True)
    try:
        assert store.read(BLOB, WANTED) == VICTIM
        for data in (whole[:-1], whole[:50], b"", whole + whole, bytes(len(whole))):
            store._reader.forget_segments()
            stand.pack.write_bytes(data)
            with contextlib.suppress(Corrupt):
                assert store.read(BLOB, WANTED) == VICTIM
                assert data.startswith(whole)
    finally:
        store.close()


def test_every_row_of_the_store_is_there():
    """The table has D01 to D30."""
    assert {row.id for row in ROWS} == {f"D{number:02}" for number in range(1, 31)}
