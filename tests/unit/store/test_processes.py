"""Several processes at once, and what remains of those that are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from sandboxsdk.store import BLOB, Store

# Each line of its journal is a digest that was acknowledged before the hold ended.
WRITER = """
    import os, sys
    from sandboxsdk.store import BLOB, Store

    path, journal, seed = sys.argv[1:]
    store = Store(path)
    with open(journal, "ab", buffering=0) as lines:
        for turn in range(1_000_000):
            with store.writing() as writer:
                for number in range(turn % 7):
                    writer.add(BLOB, f"{seed} {turn} {number}".encode() * 300)
                # The same in all writers, so that they find each other's.
                digest = writer.add(BLOB, b"shared %d" % (turn % 50) * 200)
                own = writer.add(BLOB, f"{seed} {turn}".encode() * 500)
                large = writer.add(BLOB, os.urandom(700_000)) if turn % 5 == 0 else own
                writer.commit()
                lines.write(f"{digest.hex()} {own.hex()} {large.hex()}\\n".encode())
"""
COLLECTOR = """
    import glob, sys
    from sandboxsdk.store import Store

    path, journals = sys.argv[1:]

    def live():
        found = set()
        for name in glob.glob(journals):
            with open(name) as lines:
                for line in lines:
                    if line.endswith("\\n"):
                        found |= {bytes.fromhex(word) for word in line.split()}
        return found

    store = Store(path)
    while True:
        store.gc(live, dry_run=False)
"""


def started(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def killed(process):
    """Kill it; it must not have ended by itself."""
    assert process.poll() is None, process.stderr.read().decode()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()


def test_what_was_acknowledged_survives_kills(tmp_path):
    """Two writers and a collector are killed again and again: all that was acknowledged is there,
    and the store needs no repair.
    """
    path = tmp_path / "store"
    Store(str(path)).close()
    chance = random.Random(7)
    journals = tmp_path / "*.journal"
    running = {}

    def start(name):
        if name == "collector":
            running[name] = started(COLLECTOR, path, journals)
        else:
            running[name] = started(WRITER, path, tmp_path / f"{name}.journal", name)

    try:
        for name in ("first", "second", "collector"):
            start(name)
        for _ in range(12):
            time.sleep(chance.uniform(0.1, 0.6))
            name = chance.choice(sorted(running))
            killed(running.pop(name))
            start(name)
        for name in sorted(running):
            killed(running.pop(name))
    finally:
        for process in running.values():
            process.kill()
            process.wait()
            process.stderr.close()
    acknowledged = set()
    for journal in tmp_path.glob("*.journal"):
        lines = journal.read_bytes().split(b"\n")[:-1]
        acknowledged |= {bytes.fromhex(word.decode()) for line in lines for word in line.split()}
    assert acknowledged
    store = Store(str(path))
    try:
        assert store.has(acknowledged) == acknowledged
        assert {digest for digest, _ in store.read_many(BLOB, acknowledged)} == acknowledged
        assert not store.verify("content").problems
        (path / "index.sqlite").unlink()
        store.close()
        store = Store(str(path))
        assert store.has(acknowledged) == acknowledged
        assert store.gc(lambda: acknowledged, dry_run=False).ok
        assert store.has(acknowledged) == acknowledged
        assert not store.verify("content").problems
        assert not store.verify("content").unfinished
    finally:
        store.close()


def test_a_killed_writer_leaves_its_lock_to_the_next(tmp_path):
    """Right after a writer was killed, others write, and collect what it left."""
    path = tmp_path / "store"
    Store(str(path)).close()
    process = started(WRITER, path, tmp_path / "one.journal", "one")
    while (
        not (tmp_path / "one.journal").exists() or os.stat(tmp_path / "one.journal").st_size < 200
    ):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    killed(process)
    store = Store(str(path))
    try:
        with store.writing() as writer:
            digest = writer.add(BLOB, b"next")
            writer.commit()
        assert store.gc(lambda: {digest}, dry_run=False).ok
        assert store.read(BLOB, digest) == b"next"
        assert not store.verify("content").problems
        assert len(list(Path(path, "packs").iterdir())) == 1
    finally:
        store.close()


@pytest.mark.parametrize("commits", [1, 5])
def test_what_is_committed_while_an_index_is_made_stays_known(tmp_path, monkeypatch, commits):
    """Another process makes the index anew, and looks at a pack just before more is committed."""
    path = str(tmp_path / "store")
    first, second = Store(path), Store(path)
    stored: set[bytes] = set()

    def commit() -> None:
        with first.writing() as writer:
            stored.add(writer.add(BLOB, b"number %d" % len(stored)))
            writer.commit()

    try:
        commit()
        confirmed, left = second._catalog._confirmed, iter(range(commits))

        def look(*arguments):
            found = confirmed(*arguments)
            if next(left, None) is not None:
                commit()
            return found

        monkeypatch.setattr(second._catalog, "_confirmed", look)
        assert second._catalog.rebuild(always=True)
        assert len(stored) > 1
        assert second.has(stored) == stored
        assert not second.verify("content").problems
    finally:
        first.close()
        second.close()


def test_what_is_committed_while_a_pack_is_caught_up_with_stays_known(tmp_path, monkeypatch):
    """A writer was killed before it noted down what it had committed. Somebody looks at its pack;
    before that is noted down, somebody else does it too, and goes on writing the pack.
    """
    path = str(tmp_path / "store")
    killed, slow, quick = Store(path), Store(path), Store(path)
    stored: set[bytes] = set()

    def commit(store: Store) -> None:
        with store.writing() as writer:
            stored.add(writer.add(BLOB, b"number %d" % len(stored)))
            writer.commit()

    try:
        commit(killed)
        with monkeypatch.context() as patch:
            patch.setattr(killed._catalog, "note", lambda *_: None)
            commit(killed)
        killed.close()
        settled = slow._catalog._settled

        def look(*arguments):
            found = settled(*arguments)
            monkeypatch.undo()
            commit(quick)
            return found

        monkeypatch.setattr(slow._catalog, "_settled", look)
        assert slow.has(()) == set()
        assert len(list(Path(path, "packs").iterdir())) == 1
        assert slow.has(stored) == quick.has(stored) == stored
        assert not slow.verify("content").problems
    finally:
        slow.close()
        quick.close()


def test_a_pack_that_grows_while_it_is_looked_at_has_not_shrunk(tmp_path, monkeypatch):
    """What is committed between a look at the packs and one at the index counts as no loss."""
    path = str(tmp_path / "store")
    first, second = Store(path), Store(path)

    def commit(data: bytes) -> None:
        with first.writing() as writer:
            writer.add(BLOB, data)
            writer.commit()

    try:
        commit(b"one")
        generation = second.generation
        packs = second._catalog.index.packs

        def ask():
            monkeypatch.undo()
            commit(b"two")
            return packs()

        monkeypatch.setattr(second._catalog.index, "packs", ask)
        assert second.generation == generation
    finally:
        first.close()
        second.close()
