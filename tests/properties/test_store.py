"""The store against a dict, whatever is done to it in whatever order."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from sandboxsdk.codec import typed_digest
from sandboxsdk.errors import Corrupt
from sandboxsdk.store import BLOB, LIST, TREE, Store

# Few and small, so that the same objects come again and again.
KINDS = st.sampled_from((BLOB, TREE, LIST))
OBJECTS = st.lists(st.tuples(KINDS, st.binary(max_size=3)), max_size=4)
# Thousands of commits: on a disk their syncs would be all there is.
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
STORES = st.sampled_from((0, 1))


class StoreMachine(RuleBasedStateMachine):
    """Two Store objects on one directory; `kept` are the objects that must be there."""

    @initialize()
    def make(self):
        self.place = Path(tempfile.mkdtemp(dir=FAST))
        self.path = str(self.place / "store")
        self.stores = [Store(self.path), Store(self.path)]
        self.kept = {}
        self.gone = set()

    def teardown(self):
        for store in self.stores:
            store.close()
        shutil.rmtree(self.place)

    @rule(which=STORES, objects=OBJECTS)
    def add(self, which, objects):
        """What was committed is there for both."""
        with self.stores[which].writing() as writer:
            for kind, data in objects:
                digest = writer.add(kind, data)
                assert digest == typed_digest(kind, data)
                assert writer.read(kind, digest) == data
                assert digest in writer.knows([digest])
            writer.commit()
            for kind, data in objects:
                assert writer.read(kind, typed_digest(kind, data)) == data
        self.kept |= {typed_digest(kind, data): (kind, data) for kind, data in objects}

    @rule(which=STORES, first=OBJECTS, then=OBJECTS)
    def add_twice_and_give_up(self, which, first, then):
        """A block keeps what it committed and nothing of what came after."""
        with self.stores[which].writing() as writer:
            for kind, data in first:
                writer.add(kind, data)
            writer.commit()
            for kind, data in then:
                writer.add(kind, data)
        self.kept |= {typed_digest(kind, data): (kind, data) for kind, data in first}

    @rule(which=STORES)
    def reopen(self, which):
        """A store that is opened again has everything."""
        self.stores[which].close()
        self.stores[which] = Store(self.path)

    @rule(which=STORES, data=st.data(), dry_run=st.booleans())
    def collect(self, which, data, dry_run):
        """What is needed stays."""
        chosen = data.draw(st.sets(st.sampled_from(sorted(self.kept)))) if self.kept else set()
        report = self.stores[which].gc(lambda: chosen, dry_run=dry_run)
        assert report.dry_run == dry_run
        if not dry_run:
            self.gone |= self.kept.keys() - chosen
            self.kept = {digest: self.kept[digest] for digest in chosen}

    @rule(which=STORES)
    def lose_the_index(self, which):
        """An index that is deleted costs nothing; the other store goes on with what it had."""
        for name in ("index.sqlite", "index.sqlite-journal"):
            (self.place / "store" / name).unlink(missing_ok=True)
        self.reopen(which)

    @rule(which=STORES, junk=st.binary(max_size=40), at=st.integers(0, 8192))
    def damage_the_index(self, which, junk, at):
        """An index with wrong bytes in it costs nothing."""
        for store in self.stores:
            store.close()
        index = self.place / "store" / "index.sqlite"
        if index.exists():
            with index.open("r+b") as file:
                file.seek(min(at, index.stat().st_size))
                file.write(junk)
        self.stores = [Store(self.path), Store(self.path)]

    @rule(kind=KINDS, data=st.binary(min_size=4, max_size=5))
    def ask_for_what_is_not_there(self, kind, data):
        """What was never stored is missing, and says so."""
        digest = typed_digest(kind, data)
        assert self.stores[0].has([digest]) == set()
        with pytest.raises(Corrupt) as caught:
            self.stores[1].read(kind, digest)
        assert caught.value.fields["digest"] == digest.hex()

    @rule(which=STORES, level=st.sampled_from(("index", "objects", "content")))
    def verify(self, which, level):
        """Nothing that is needed is lost at any time.

        An index that another one has taken the place of may name packs that gc took since.
        """
        found = self.stores[which].verify(level)
        lost = [problem for problem in found.problems if problem.lost]
        assert all(p.digests and not p.digests & self.kept.keys() for p in lost)

    @precondition(lambda self: self.kept)
    @rule(which=STORES)
    def look_without_writing(self, which):
        """Who may only read finds the same, and changes nothing."""
        before = sorted(os.listdir(self.path))
        store = Store(self.path, read_only=True)
        try:
            assert store.has(self.kept) == set(self.kept)
            for digest, (kind, data) in self.kept.items():
                assert store.read(kind, digest) == data
        finally:
            store.close()
        assert sorted(os.listdir(self.path)) == before

    @invariant()
    def has_what_it_has(self):
        """The stores, in turn, give exactly what was stored."""
        if not hasattr(self, "kept"):
            return
        self.stores.reverse()
        for wanted in (BLOB, TREE, LIST):
            some = {digest for digest, (kind, _) in self.kept.items() if kind == wanted}
            if some:
                found = dict(self.stores[0].read_many(wanted, [*some, *some]))
                assert found == {digest: self.kept[digest][1] for digest in some}


StoreMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=50)
TestStore = pytest.mark.timeout(900)(StoreMachine.TestCase)
