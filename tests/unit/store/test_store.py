"""What a store promises, rule by rule."""

from __future__ import annotations

import _thread
import contextlib
import errno
import os
import threading
from pathlib import Path

import pytest

from sandboxsdk import disk
from sandboxsdk.codec import typed_digest
from sandboxsdk.errors import Corrupt, Denied, HostFull, HostRefused, NotFound, Unavailable
from sandboxsdk.store import BLOB, LIST, OBJECT_BYTES_MAX, TREE, Store

from .conftest import stored


def packs_of(path):
    return sorted(Path(path, "packs").glob("*.pack"))


def failing(monkeypatch, call, number, code):
    """Let the disk fail at the n-th of these calls, counted from 1, once."""
    left = [number]

    def watch(name, _):
        if name == call:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(code, os.strerror(code))

    monkeypatch.setattr(disk, "watcher", watch)


def test_what_was_committed_is_read_back(store, opened):
    """Objects of each kind come back, also from a store that is opened later, one or many."""
    contents = [os.urandom(size) for size in (0, 1, 1000, 300_000)] + [b"x" * 2_000_000]
    digests = stored(store, *contents)
    (tree,) = stored(store, b"tree", kind=TREE)
    (listed,) = stored(store, b"list", kind=LIST)
    for some in (store, opened(), opened(read_only=True)):
        assert [some.read(BLOB, digest) for digest in digests] == contents
        assert some.read(TREE, tree) == b"tree"
        assert some.read(LIST, listed) == b"list"
        assert dict(some.read_many(BLOB, digests * 2)) == dict(zip(digests, contents, strict=True))
        assert some.has([*digests, tree, bytes(32)]) == {*digests, tree}


def test_digests_are_typed(store):
    """The same bytes as another kind are another object."""
    (blob,) = stored(store, b"same")
    assert blob == typed_digest(BLOB, b"same") != typed_digest(TREE, b"same")
    with pytest.raises(Corrupt):
        store.read(TREE, blob)
    assert store.read(BLOB, blob) == b"same"


def test_the_largest_object_fits(store):
    """An object of the largest size is stored; a larger one is a mistake of the caller."""
    largest = bytes(OBJECT_BYTES_MAX)
    (digest,) = stored(store, largest)
    assert store.read(BLOB, digest) == largest
    with store.writing() as writer, pytest.raises(AssertionError):
        writer.add(BLOB, bytes(OBJECT_BYTES_MAX + 1))


def test_a_block_without_a_commit_leaves_nothing(store, opened, path):
    """Objects of a block that was left are not there, and the pack is as long as before."""
    (kept,) = stored(store, b"kept")
    before = [pack.stat().st_size for pack in packs_of(path)]
    with pytest.raises(ZeroDivisionError), store.writing() as writer:
        lost = [writer.add(BLOB, os.urandom(100_000)) for _ in range(40)]
        assert writer.knows(lost) == set(lost)
        raise ZeroDivisionError
    assert [pack.stat().st_size for pack in packs_of(path)] == before
    for some in (store, opened()):
        assert some.has([kept, *lost]) == {kept}


def test_commit_counts_its_syncs(store, calls):
    """A commit costs two syncs in a new pack, one in an open one, and none when nothing is new."""
    for content, syncs in ((b"first", 2), (b"second", 1), (b"second", 0)):
        calls.clear()
        stored(store, content, content + b"!")
        assert len([call for call in calls if call.startswith("sync")]) == syncs


def test_a_large_block_costs_no_more_syncs(store, calls):
    """What is written by threads is committed with the same two syncs."""
    calls.clear()
    stored(store, *(os.urandom(200_000) for _ in range(60)))
    assert [call for call in calls if call.startswith("sync")] == ["sync_data", "sync"]


def test_the_index_names_what_is_synced(store, opened, monkeypatch):
    """Nobody sees the objects before the pack is synced."""
    seen = []
    other = opened()

    def watch(call, _):
        if call == "sync_data":
            seen.append(other.has([typed_digest(BLOB, b"object")]))

    monkeypatch.setattr(disk, "watcher", watch)
    stored(store, b"object")
    assert seen == [set()]
    assert other.has([typed_digest(BLOB, b"object")])


def test_a_failed_sync_is_not_asked_for_again(store, opened, path, monkeypatch):
    """The block fails for good, its pack is not used again, and the next block gets another."""
    (kept,) = stored(store, b"kept")
    failing(monkeypatch, "sync_data", 1, errno.EIO)
    with store.writing() as writer:
        lost = writer.add(BLOB, b"lost")
        with pytest.raises(HostRefused):
            writer.commit()
        with pytest.raises(HostRefused):
            writer.commit()
        with pytest.raises(HostRefused):
            writer.add(BLOB, b"more")
    assert store.has([kept, lost]) == {kept}
    assert stored(store, b"lost") == [lost]
    assert len(packs_of(path)) == 2
    assert opened().has([kept, lost]) == {kept, lost}
    assert not store.verify("content").problems


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["create", "write", "sync_data", "sync"])
def test_every_failing_write_leaves_a_whole_store(opened, monkeypatch, call, code):
    """Whichever write fails, the error is typed, nothing half counts, and trying again succeeds."""
    store = opened()
    kinds = set()
    for number in range(1, 8):
        contents = [os.urandom(150_000) for _ in range(20)]
        failing(monkeypatch, call, number, code)
        try:
            digests = stored(store, *contents)
        except (HostFull, HostRefused) as error:
            kinds.add(type(error))
            assert store.has([typed_digest(BLOB, content) for content in contents]) == set()
            monkeypatch.setattr(disk, "watcher", None)
            digests = stored(store, *contents)
        assert store.has(digests) == set(digests)
        assert not store.verify("content").problems
    assert kinds <= {HostFull if code == errno.ENOSPC else HostRefused}
    assert kinds or call in {"create", "sync"}


def test_two_writers_at_once_have_a_pack_each(store, opened, path):
    """Blocks of two Store objects, and of two threads, do not touch each other's bytes."""
    other = opened()
    with store.writing() as first, other.writing() as second, store.writing() as third:
        digests = [
            writer.add(BLOB, content)
            for writer, content in ((first, b"1"), (second, b"2"), (third, b"3"))
        ]
        first.commit()
        third.commit()
    assert len(packs_of(path)) == 2
    assert store.has(digests) == other.has(digests) == {digests[0], digests[2]}


def test_the_pack_of_one_who_is_gone_is_adopted(opened, path):
    """A process that comes later appends to the pack that is there, if its end is whole."""
    first = opened()
    stored(first, b"1")
    first.close()
    second = opened()
    stored(second, b"2")
    assert len(packs_of(path)) == 1
    second.close()
    (pack,) = packs_of(path)
    whole = pack.read_bytes()
    pack.write_bytes(whole + b"rest of a crash")
    third = opened()
    stored(third, b"3")
    assert pack.read_bytes() == whole + b"rest of a crash"
    assert len(packs_of(path)) == 2
    assert len(third.has(typed_digest(BLOB, content) for content in (b"1", b"2", b"3"))) == 3


def test_frames_of_a_living_writer_are_read_and_do_not_count(store, opened):
    """What another process is writing can be read, and is stored again by who needs it."""
    other = opened()
    with store.writing() as writer:
        digest = writer.add(BLOB, b"early")
        content = os.urandom(3_000_000)
        large = writer.add(BLOB, content)
        writer.add(BLOB, os.urandom(2_000_000))
        writer.add(BLOB, os.urandom(2_000_000))
        while not other._catalog.peek([large]):
            other._refresh()
        assert other.has([digest, large]) == set()
        assert other.read(BLOB, large) == content
        assert stored(other, content) == [large]
        assert other.has([large]) == {large}
    assert store.read(BLOB, large) == content


def test_what_a_crash_left_is_found_and_synced(opened, path, calls):
    """Whole frames behind the index are noted down by the next one, after a sync of their pack."""
    store = opened()
    digests = stored(store, b"1")
    before = Path(path, "index.sqlite").read_bytes()
    digests += stored(store, b"2")
    store.close()
    Path(path, "index.sqlite").write_bytes(before)
    calls.clear()
    assert opened().has(digests) == set(digests)
    assert [call for call in calls if call.startswith("sync")] == ["sync_data"]
    calls.clear()
    assert opened().has(digests) == set(digests)
    assert calls == []


def test_a_vanished_pack_changes_the_generation(opened, path):
    """Objects of a deleted pack are not there any more, and who remembers them can notice."""
    store = opened()
    digests = stored(store, b"1", b"2")
    store.close()
    store = opened()
    generation = store.generation
    assert store.generation == generation
    (pack,) = packs_of(path)
    whole = pack.read_bytes()
    pack.unlink()
    assert store.generation != generation
    assert store.has(digests) == set()
    with pytest.raises(Corrupt):
        store.read(BLOB, digests[0])
    (found,) = store.verify("index").problems
    assert (found.path, found.digests, found.lost) == (str(pack), frozenset(digests), True)
    # Put back from a backup, it counts again.
    pack.write_bytes(whole)
    assert store.has(digests) == set(digests)
    assert not store.verify("content").problems


def test_what_is_lost_is_written_again(opened, path):
    """An object whose pack is gone or damaged is stored anew when it is added again."""
    store = opened()
    digests = stored(store, b"1", b"2" * 100)
    store.close()
    (pack,) = packs_of(path)
    data = bytearray(pack.read_bytes())
    data[-20] ^= 1
    pack.write_bytes(data)
    store = opened()
    assert store.has(digests) == set(digests)
    assert stored(store, b"1", b"2" * 100) == digests
    assert [store.read(BLOB, digest) for digest in digests] == [b"1", b"2" * 100]
    for pack in packs_of(path):
        pack.unlink()
    assert stored(store, b"1", b"2" * 100) == digests
    assert dict(store.read_many(BLOB, digests)) == dict(
        zip(digests, (b"1", b"2" * 100), strict=True)
    )


def test_a_wrong_index_is_made_anew(opened, path):
    """When the index points to other bytes, it is rebuilt from the packs and the object is read."""
    import sqlite3

    store = opened()
    digests = stored(store, b"1", b"22", b"333")
    stored(store, b"else")
    store.close()
    for change in (
        "UPDATE objects SET start = start + 1",
        "UPDATE objects SET segment = (SELECT id FROM segments ORDER BY start DESC)",
        "UPDATE segments SET start = start + 7",
        "UPDATE segments SET size = size - 1",
        "UPDATE objects SET length = 16000000",
        "DELETE FROM segments",
    ):
        with contextlib.closing(sqlite3.connect(f"{path}/index.sqlite")) as connection, connection:
            connection.execute(change)
        store = opened()
        generation = store.generation
        assert [store.read(BLOB, digest) for digest in digests] == [b"1", b"22", b"333"], change
        assert store.generation != generation
        assert not store.verify("content").problems
        store.close()


@pytest.mark.parametrize(
    "content", [b"", b"no database", bytes(20_000), b"SQLite format 3\0" * 500]
)
def test_a_foreign_index_is_replaced(opened, path, content):
    """Any other file in place of the index is replaced by a new one, silently."""
    store = opened()
    digests = stored(store, b"1")
    store.close()
    Path(path, "index.sqlite").write_bytes(content)
    assert opened(read_only=True).read(BLOB, digests[0]) == b"1"
    assert Path(path, "index.sqlite").read_bytes() == content
    assert opened().has(digests) == set(digests)
    assert Path(path, "index.sqlite").read_bytes() != content


def test_read_only_writes_nothing(opened, path):
    """A store that is read only needs no index and makes none, and refuses what changes it."""
    store = opened()
    digests = stored(store, b"1", b"2")
    store.close()
    for name in ("index.sqlite", "lock", "reserve"):
        Path(path, name).unlink()
    before = {file: file.stat().st_mtime_ns for file in Path(path).rglob("*")}
    only = opened(read_only=True)
    assert only.has(digests) == set(digests)
    assert only.generation
    assert not only.verify("content").problems
    assert only.gc(set, dry_run=True).deleted
    with pytest.raises(Denied), only.writing():
        pass
    with pytest.raises(Denied):
        only.gc(set, dry_run=False)
    with pytest.raises(Denied):
        only.verify("index", repair=True)
    assert {file: file.stat().st_mtime_ns for file in Path(path).rglob("*")} == before


def test_read_only_follows_who_writes(store, opened):
    """A read-only store sees what is committed and what is taken away after it was opened."""
    (first,) = stored(store, b"1")
    only = opened(read_only=True)
    generation = only.generation
    (second,) = stored(store, b"2")
    assert only.has([first, second]) == {first, second}
    store.gc(set, dry_run=False)
    assert only.generation != generation
    assert only.has([first, second]) == set()


def test_nothing_there_is_not_found(path):
    """Reading only, a store that does not exist is not found; its directory may be half-made."""
    with pytest.raises(NotFound):
        Store(path, read_only=True)
    os.mkdir(path)
    with pytest.raises(NotFound):
        Store(path, read_only=True)
    Store(path).close()
    Store(path, read_only=True).close()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"format":2}', Unavailable),
        ('{"format":0}', Corrupt),
        ('{"format":true}', Corrupt),
        ("", Corrupt),
        ('{"format":1', Corrupt),
    ],
)
def test_another_format_is_refused(opened, path, text, error):
    """A newer format asks for a newer version; anything else is damage."""
    opened()
    Path(path, "format").write_text(text)
    with pytest.raises(error):
        Store(path)


def test_many_threads_write_into_one_block(store):
    """Threads may add to one block; each object is stored once."""
    contents = [os.urandom(5_000) for _ in range(300)]
    with store.writing() as writer:
        threads = [
            threading.Thread(target=lambda: [writer.add(BLOB, content) for content in contents])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        total = writer.commit()
    assert total < 1.1 * sum(map(len, contents))
    digests = [typed_digest(BLOB, content) for content in contents]
    assert dict(store.read_many(BLOB, digests)) == dict(zip(digests, contents, strict=True))


def test_a_forked_child_opens_everything_anew(store):
    """A child uses nothing of its parent's: it reads and writes, and the parent goes on."""
    (first,) = stored(store, b"1")
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            (second,) = stored(store, b"of the child")
            code = 0 if store.has([first, second]) == {first, second} else 2
            store.close()
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    digests = [first, *stored(store, b"2"), typed_digest(BLOB, b"of the child")]
    assert store.has(digests) == set(digests)


def test_a_child_does_not_keep_the_holds_of_its_parent(store, opened):
    """While a child of a writer lives on, the store is free as soon as the writer is done."""
    with store.writing():
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                threading.Event().wait(60)
            os._exit(0)
    try:
        assert opened().gc(set, dry_run=False).ok
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_disk_bytes_counts_what_is_there(store):
    """The size of the store grows by what is stored."""
    before = store.disk_bytes()
    assert before >= 1024 * 1024
    stored(store, os.urandom(1_000_000))
    assert store.disk_bytes() - before >= 1_000_000


def test_a_writer_that_was_interrupted_commits_nothing(store, monkeypatch):
    """After an exception in the middle of adding, the block cannot be committed any more."""
    with store.writing() as writer:
        monkeypatch.setattr(
            store._catalog, "locate", lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            for number in range(600):
                writer.add(BLOB, b"%d" % number)
        monkeypatch.undo()
        with pytest.raises(KeyboardInterrupt):
            writer.commit()
    assert store.has([typed_digest(BLOB, b"0")]) == set()


@pytest.mark.parametrize("threads", [True, False])
def test_an_interrupt_of_a_segment_is_told_by_the_commit(store, monkeypatch, threads):
    """Whatever comes before a segment is written, in a thread or where none can be had: nothing of
    the block counts.
    """
    if not threads:

        def refuse(*_):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(_thread, "start_new_thread", refuse)
    content = [os.urandom(400_000) for _ in range(6)]
    with store.writing() as writer:

        def interrupted(_objects):
            raise KeyboardInterrupt

        monkeypatch.setattr(writer, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            for data in content:
                writer.add(BLOB, data)
            writer.commit()
        monkeypatch.undo()
        with pytest.raises(KeyboardInterrupt):
            writer.commit()
    digests = [typed_digest(BLOB, data) for data in content]
    assert not store.has(digests)
