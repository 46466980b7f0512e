"""What is needed stays, the rest goes, and a kill at any point leaves a valid store."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

import pytest

from sandboxsdk import disk
from sandboxsdk.errors import SandboxError
from sandboxsdk.store import BLOB, Store
from sandboxsdk.store.collection import PackFacts, plan_gc

from .conftest import stored


def packs_of(path):
    return sorted(Path(path, "packs").glob("*.pack"))


def fact(name, size, live, *, busy=False, clean=True):
    return PackFacts(name, size, live, busy, clean)


@pytest.mark.parametrize("complete", [True, False])
def test_the_plan_follows_the_facts(complete):
    """Dead packs are deleted, sparse ones moved; busy ones stay, and so do those that may hide what
    is missing.
    """
    facts = [
        fact("dead", 100, 0),
        fact("sparse", 100, 49),
        fact("dense", 100, 50),
        fact("busy", 100, 0, busy=True),
        fact("unclean and dead", 100, 0, clean=False),
        fact("unclean and dense", 100, 99, clean=False),
    ]
    plan = plan_gc(facts, complete=complete)
    unclean = ({"unclean and dead"}, {"unclean and dense"}) if complete else (set(), set())
    assert {found.pack for found in plan.delete} == {"dead"} | unclean[0]
    assert {found.pack for found in plan.rewrite} == {"sparse"} | unclean[1]
    assert len(plan.delete) + len(plan.rewrite) + len(plan.keep) == len(facts)


def filled(path, *, packs=3):
    """A closed store of several packs of one committed block each; gives contents by digest."""
    contents, stores = {}, []
    for _ in range(packs):
        # All open at once, so that nobody adopts another's pack.
        stores.append(Store(path))
        some = [os.urandom(3_000) for _ in range(6)]
        contents |= dict(zip(stored(stores[-1], *some), some, strict=True))
    for store in stores:
        store.close()
    assert len(packs_of(path)) == packs
    return contents


def test_dry_run_changes_nothing(path):
    """A dry run tells what would go."""
    contents = filled(path)
    store = Store(path)
    try:
        before = {pack: pack.read_bytes() for pack in packs_of(path)}
        report = store.gc(set, dry_run=True)
        assert report.dry_run
        assert len(report.deleted) == len(before)
        assert report.freed_bytes == sum(map(len, before.values()))
        assert {pack: pack.read_bytes() for pack in packs_of(path)} == before
        assert store.has(contents) == set(contents)
    finally:
        store.close()


def test_what_is_needed_is_moved_and_kept(path):
    """Sparse packs go, what is needed of them lies in a new one, and the space is freed."""
    contents = filled(path)
    needed = set(list(contents)[::5])
    store = Store(path)
    try:
        generation, before = store.generation, {pack.name for pack in packs_of(path)}
        size = sum(pack.stat().st_size for pack in packs_of(path))
        report = store.gc(lambda: needed, dry_run=False)
        after = sum(pack.stat().st_size for pack in packs_of(path))
        assert report.freed_bytes == pytest.approx(size - after, abs=44)
        assert report.kept_bytes == after
        assert len(report.deleted) + len(report.rewritten) == len(before)
        assert before.isdisjoint(pack.name for pack in packs_of(path))
        assert store.has(contents) == needed
        assert store.generation != generation
        assert dict(store.read_many(BLOB, needed)) == {d: contents[d] for d in needed}
        assert not store.verify("content").problems
        again = store.gc(lambda: needed, dry_run=False)
        assert not again.deleted
        assert not again.rewritten
    finally:
        store.close()


def test_what_becomes_needed_in_between_stays(path):
    """What is needed only when writers are excluded is kept too."""
    contents = filled(path)
    answers = [set(), set(list(contents)[:1])]
    store = Store(path)
    try:
        report = store.gc(lambda: answers.pop(0) if len(answers) > 1 else answers[0], dry_run=False)
        assert len(report.deleted) == 2
        assert store.has(contents) >= answers[0]
        for digest in answers[0]:
            assert store.read(BLOB, digest) == contents[digest]
    finally:
        store.close()


def test_a_pack_in_use_is_left_alone(path, opened):
    """The open pack of another process stays, whatever is in it."""
    other = opened()
    (digest,) = stored(other, b"not needed")
    assert not opened().gc(set, dry_run=False).deleted
    assert other.read(BLOB, digest) == b"not needed"
    assert other.gc(set, dry_run=False).deleted
    assert other.has([digest]) == set()
    assert stored(other, b"not needed") == [digest]


def test_damaged_packs_stay_while_something_is_missing(path):
    """A pack that cannot be read fully is not deleted when it could hold what is needed."""
    contents = filled(path, packs=1)
    (pack,) = packs_of(path)
    data = bytearray(pack.read_bytes())
    data[2_000] ^= 1
    pack.write_bytes(data)
    os.unlink(f"{path}/index.sqlite")
    store = Store(path)
    try:
        store.gc(lambda: set(contents), dry_run=False)
        assert pack.read_bytes() == data
        left = store.has(contents)
        assert left < set(contents)
        store.gc(lambda: left, dry_run=False)
        assert not pack.exists()
        assert {d: store.read(BLOB, d) for d in left} == {d: contents[d] for d in left}
    finally:
        store.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_any_call_leaves_what_is_needed(tmp_path, monkeypatch, code):
    """Whichever call of a collection fails, what is needed is there, and the next one succeeds."""
    contents = filled(str(tmp_path / "whole"))
    needed = set(list(contents)[::5])
    calls, number = [0], 0
    while calls[0] >= number:
        number += 1
        calls[0] = 0

        def watch(name, _):
            calls[0] += 1
            if calls[0] == number:  # noqa: B023 - called within this turn
                raise OSError(code, os.strerror(code))

        shutil.copytree(tmp_path / "whole", tmp_path / str(number))
        store = Store(str(tmp_path / str(number)))
        try:
            with monkeypatch.context() as patch:
                patch.setattr(disk, "watcher", watch)
                with contextlib.suppress(SandboxError):
                    store.gc(lambda: needed, dry_run=False)
            assert dict(store.read_many(BLOB, needed)) == {d: contents[d] for d in needed}
            assert not [p for p in store.verify("content").problems if p.lost]
            store.gc(lambda: needed, dry_run=False)
            assert store.has(contents) == needed
            assert not store.verify("content").problems
        finally:
            store.close()
    assert number > 5


def test_a_full_disk_gets_free(path, monkeypatch):
    """With no space at all, dead packs go, the reserve is used, and nothing needed is lost."""
    contents = filled(path)
    needed = set(list(contents)[:1])
    store = Store(path)
    free = [0]

    def watch(name, arguments):
        if name == "remove":
            if str(arguments[0]) == "reserve":
                free[0] += 1024 * 1024
            return
        if name in {"write", "create"}:
            if free[0] <= 0:
                raise OSError(errno.ENOSPC, "full")
            free[0] -= 4096

    try:
        with monkeypatch.context() as patch:
            patch.setattr(disk, "watcher", watch)
            report = store.gc(lambda: needed, dry_run=False)
        assert report.freed_bytes > 0
        assert store.has(contents) == needed
        assert not store.verify("content").problems
    finally:
        store.close()


def test_two_copies_do_not_both_go(path, opened):
    """A pack is not deleted on the strength of a copy elsewhere that is damaged."""
    first = opened()
    (digest,) = stored(first, b"twice" * 50)
    first.close()
    (pack,) = packs_of(path)
    copy = pack.read_bytes()
    other = Store(path)
    other._catalog.index.drop_objects([digest])
    (digest,) = stored(other, b"twice" * 50)
    size = pack.stat().st_size
    other.close()
    assert size > len(copy)
    store = opened()
    report = store.gc(lambda: {digest}, dry_run=False)
    assert store.read(BLOB, digest) == b"twice" * 50
    assert report.ok
