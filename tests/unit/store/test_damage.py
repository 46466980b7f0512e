"""Damage of every kind: found by verify, and never read as other bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from sandboxsdk.errors import Corrupt
from sandboxsdk.store import BLOB, TREE, Store

from .conftest import stored

CONTENTS = (b"a" * 60, bytes(range(24)), b"", b"end")


@pytest.fixture
def sample(path):
    """A small closed store: its pack, the pack's bytes, and the objects in it by digest."""
    store = Store(path)
    objects = dict(zip(stored(store, *CONTENTS[:2]), CONTENTS, strict=False))
    objects |= dict(zip(stored(store, *CONTENTS[2:]), CONTENTS[2:], strict=True))
    store.close()
    (pack,) = Path(path, "packs").iterdir()
    return pack, pack.read_bytes(), objects


def read_or_corrupt(store, objects):
    """Every object comes back exactly, or as `Corrupt`; gives those that came back."""
    whole, named = set(), set()
    for digest, content in objects.items():
        try:
            assert store.read(BLOB, digest) == content
            whole.add(digest)
        except Corrupt as error:
            named.add(error.fields["digest"])
    assert named == {digest.hex() for digest in objects.keys() - whole}
    return whole


def test_every_flipped_bit_is_found(path, sample):
    """A bit that is flipped anywhere in a pack is found at both deep levels, with what it hit; what
    is read is exact or an error.
    """
    pack, whole, objects = sample
    store = Store(path)
    # Not its index, so that each flip meets the same one.
    kept = Path(path, "index.sqlite").read_bytes()
    try:
        for position in range(len(whole) * 8):
            data = bytearray(whole)
            data[position // 8] ^= 1 << position % 8
            pack.write_bytes(data)
            found = store.verify("content" if position % 2 else "objects")
            assert found.problems, position
            lost = set().union(*(problem.digests for problem in found.problems if problem.lost))
            store._reader.forget_segments()
            if position % 5 == 0:
                assert read_or_corrupt(store, objects) >= objects.keys() - lost
                store.close()
                Path(path, "index.sqlite").write_bytes(kept)
                store = Store(path)
    finally:
        store.close()


def test_every_flipped_bit_is_survived_without_an_index(path, sample):
    """The same while the index is made from the damaged pack."""
    pack, whole, objects = sample
    for position in range(0, len(whole) * 8, 3):
        data = bytearray(whole)
        data[position // 8] ^= 1 << position % 8
        pack.write_bytes(data)
        store = Store(path, read_only=True)
        store._catalog.rebuild(always=True)
        try:
            found = store.verify("content")
            assert found.problems or found.unfinished, position
            read_or_corrupt(store, objects)
        finally:
            store.close()


def test_every_truncation_is_survived(path, sample):
    """A pack that is cut at any length gives what is whole in it, and verify names what is not."""
    pack, whole, objects = sample
    kept = Path(path, "index.sqlite").read_bytes()
    for length in range(len(whole)):
        pack.write_bytes(whole[:length])
        Path(path, "index.sqlite").write_bytes(kept)
        store = Store(path)
        try:
            found = store.verify("objects")
            lost = set().union(*(problem.digests for problem in found.problems if problem.lost))
            left = read_or_corrupt(store, objects)
            assert store.has(objects) == left
            assert lost == objects.keys() - left
            # What was looked for in vain is still known to have been there.
            assert any(problem.lost for problem in store.verify("objects").problems)
        finally:
            store.close()


def test_a_cut_pack_without_an_index_is_a_crash(path, sample):
    """Without an index, an unfinished last frame is what a crash leaves: no damage."""
    pack, whole, objects = sample
    pack.write_bytes(whole[:-7])
    os.unlink(f"{path}/index.sqlite")
    store = Store(path)
    try:
        found = store.verify("content")
        assert not found.problems
        (left,) = found.unfinished
        assert left.digests == objects.keys() - store.has(objects)
        assert stored(store, *CONTENTS) == list(objects)
        assert pack.read_bytes() == whole[:-7]
    finally:
        store.close()


def test_what_lies_behind_damage_is_saved(path, sample):
    """Frames behind a damaged one are found again by their mark, wherever they begin."""
    pack, whole, objects = sample
    later = list(objects)[2:]
    for data in (
        whole[:60] + b"inserted" + whole[60:],
        whole[:60] + whole[70:],
        whole[:44] + bytes(40) + whole[84:],
        os.urandom(3_000_000) + whole,
    ):
        pack.write_bytes(data)
        store = Store(path)
        try:
            store.verify("objects", repair=True)
            assert store.has(objects) >= set(later)
            assert read_or_corrupt(store, objects) >= set(later)
        finally:
            store.close()


def test_repair_forgets_what_is_damaged(path, sample):
    """After a repair, damaged objects are missing, are written anew, and packs are as before."""
    pack, whole, objects = sample
    data = bytearray(whole)
    data[160] ^= 8
    pack.write_bytes(data)
    store = Store(path)
    try:
        generation = store.generation
        found = store.verify("content", repair=True)
        (problem,) = found.problems
        assert problem.lost
        assert problem.path == str(pack)
        assert store.has(objects) == objects.keys() - problem.digests
        assert store.generation != generation
        assert pack.read_bytes() == data
        assert stored(store, *CONTENTS) == list(objects)
        assert read_or_corrupt(store, objects) == set(objects)
        (problem,) = store.verify("content").problems
        assert not problem.lost
        store.gc(lambda: set(objects), dry_run=False)
        assert not store.verify("content").problems
        assert read_or_corrupt(store, objects) == set(objects)
        assert not pack.exists()
    finally:
        store.close()


def test_the_index_is_compared(path, sample):
    """At the first level, rows that do not agree with the tables are found and repaired."""
    import contextlib
    import sqlite3

    _, _, objects = sample
    kept = Path(path, "index.sqlite").read_bytes()
    for change in (
        "DELETE FROM objects WHERE length = 60",
        "UPDATE objects SET start = 1 WHERE length = 24",
        "UPDATE objects SET kind = 116 WHERE length = 3",
        "UPDATE segments SET start = start + 1",
        "INSERT INTO objects SELECT zeroblob(32), segment, 0, 1, 98 FROM objects LIMIT 1",
    ):
        Path(path, "index.sqlite").write_bytes(kept)
        with contextlib.closing(sqlite3.connect(f"{path}/index.sqlite")) as connection, connection:
            connection.execute(change)
        store = Store(path)
        try:
            assert store.verify("index", repair=True).problems, change
            assert not store.verify("content").problems, change
            assert read_or_corrupt(store, objects) == set(objects)
        finally:
            store.close()


def test_junk_is_named_and_left_alone(store, path):
    """Names that are no packs are told by verify; a link in place of a pack is damage."""
    stored(store, b"1")
    Path(path, "packs", "README").write_text("hello")
    (problem,) = store.verify("index").problems
    assert "README" in problem.reason
    assert not problem.lost
    assert Path(path, "packs", "README").exists()


def test_a_pack_with_another_name_is_damage(path, sample):
    """A pack that was renamed is not believed."""
    pack, _, objects = sample
    shutil.move(pack, pack.with_name("0" * 16 + ".pack"))
    os.unlink(f"{path}/index.sqlite")
    store = Store(path)
    try:
        assert store.has(objects) == set()
        assert store.verify("index").problems
    finally:
        store.close()


def test_an_object_in_two_packs_is_lost_in_neither(path, opened):
    """When one of two copies is damaged, the other one is read."""
    first, second = opened(), opened()
    with first.writing() as one, second.writing() as other:
        digest = one.add(BLOB, b"twice" * 20)
        one.commit()
        other.add(BLOB, b"twice" * 20, anew=True)
        other.commit()
    first.close()
    second.close()
    packs = list(Path(path, "packs").iterdir())
    assert len(packs) == 2
    for pack in packs:
        whole = pack.read_bytes()
        pack.write_bytes(whole[:-30] + bytes(30))
        store = Store(path)
        try:
            assert store.read(BLOB, digest) == b"twice" * 20
            assert not [found for found in store.verify("content").problems if found.lost]
        finally:
            store.close()
        pack.write_bytes(whole)


def test_a_flipped_bit_of_the_index_costs_nothing(tmp_path):
    """Whichever bit of the index is wrong: everything is read exactly, nothing counts as gone."""
    path = str(tmp_path / "store")
    kept: dict[bytes, tuple[int, bytes]] = {}
    with contextlib.closing(Store(path)) as store:
        for turn in range(3):
            with store.writing() as writer:
                for number in range(10):
                    kind, data = (BLOB, TREE)[number % 2], b"%d %d" % (turn, number) * (number + 1)
                    kept[writer.add(kind, data)] = kind, data
                writer.commit()
    index = tmp_path / "store" / "index.sqlite"
    whole = index.read_bytes()
    used = [at for at, byte in enumerate(whole) if byte]
    for turn, at in enumerate(used[::3]):
        for left in tmp_path.glob("store/index.sqlite*"):
            left.unlink()
        damaged = bytearray(whole)
        damaged[at] ^= 1 << turn % 8
        index.write_bytes(damaged)
        with contextlib.closing(Store(path)) as store:
            for wanted in (BLOB, TREE):
                some = {digest: data for digest, (kind, data) in kept.items() if kind == wanted}
                assert dict(store.read_many(wanted, some)) == some, at
            assert store.has(kept, certain=True) == kept.keys(), at
