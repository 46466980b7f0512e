"""What a damaged store takes away, told as checkpoints and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxsdk.model import Points
from sandboxsdk.model.points import Beginning, CheckpointRecord
from sandboxsdk.snapshot import name_victims
from sandboxsdk.store import Store, StoreCheck
from tests import trees


@pytest.fixture
def store(tmp_path):
    made = Store(str(tmp_path / "store"))
    yield made
    made.close()


def stored(store: Store, spec: trees.Spec) -> str:
    with store.writing() as writer:
        digest = trees.tree(writer, spec)
        writer.commit()
    return digest.hex()


def points(*roots: str, base: str | None = None) -> Points:
    """Give a history of checkpoints c0, c1, ... with these trees."""
    made = Points()
    for number, root in enumerate(roots):
        record = CheckpointRecord(id=f"c{number}", task="t", tree=root)
        made.records[record.id] = record
    if base is not None:
        made.base = Beginning(tree=base)
    return made


def test_a_whole_store_has_no_victims(store):
    """Where nothing is damaged or missing, nothing is told."""
    one = stored(store, {b"f": b"one", b"d": {b"g": b"two"}})
    tasks = {"/home/t": points(one, one, base=one)}
    assert name_victims(store, store.verify("content"), tasks) == []


def test_what_is_missing_is_told_by_checkpoint_and_file(store):
    """A checkpoint that needs what nobody has is named with its files, without any damage."""
    whole = stored(store, {b"f": b"one"})
    with store.writing() as writer:
        ghost = trees.file(trees.Memory(), b"ghost", b"never stored")
        lacking = trees.tree(writer, {b"d": {b"ghost": ghost}, b"f": b"one"}).hex()
        writer.commit()
    check = store.verify("content")
    assert check.problems == ()
    problems = name_victims(store, check, {"/home/t": points(whole, lacking, base=whole)})
    (problem,) = problems
    assert problem.path == "/home/t/journal.jsonl"
    assert problem.checkpoints == ("c1",)
    assert problem.files == ("d/ghost",)
    assert problem.lost
    assert "checkpoint c1 is not whole" in problem.reason


def test_a_missing_tree_is_told_as_the_directory(store):
    """Where a directory or the root itself is gone, that is what is told."""
    with store.writing() as writer:
        gone = trees.tree(trees.Memory(), {b"x": b"1"})
        lacking = trees.tree(writer, {b"d": trees.below(b"d", gone)}).hex()
        writer.commit()
    tasks = {"/home/t": points(lacking, gone.hex())}
    problems = name_victims(store, store.verify("index"), tasks)
    assert [(p.checkpoints, p.files) for p in problems] == [(("c0",), ("d",)), (("c1",), (".",))]


def test_a_beginning_that_is_not_whole_is_told(store):
    """What a workspace began with is needed too: it is told although no checkpoint has it."""
    whole = stored(store, {b"f": b"one"})
    gone = trees.tree(trees.Memory(), {b"x": b"1"}).hex()
    problems = name_victims(store, store.verify("index"), {"/home/t": points(whole, base=gone)})
    (problem,) = problems
    assert problem.checkpoints == ()
    assert "what the workspace began with is not whole" in problem.reason


def test_what_is_no_digest_is_not_whole(store):
    """A record whose tree is no digest is told like one whose tree is gone."""
    stored(store, {b"f": b"one"})
    problems = name_victims(store, store.verify("index"), {"/home/t": points("no digest")})
    (problem,) = problems
    assert problem.checkpoints == ("c0",)
    assert problem.files == ()


def test_damaged_bytes_are_told_with_their_files(store, tmp_path):
    """A byte of a pack that changed is told with the checkpoints and files it belongs to."""
    spared = stored(store, {b"other": b"in a pack that stays whole"})
    data = bytes(range(256)) * 40
    with store.writing() as writer:
        digest = trees.tree(writer, {b"d": {b"f": data}, b"other": b"in a pack that stays whole"})
        writer.commit()
    tasks = {"/home/a": points(spared), "/home/b": points(digest.hex())}
    assert name_victims(store, store.verify("content"), tasks) == []
    store.close()
    (pack,) = Path(store.path).rglob("*.pack")
    whole = pack.read_bytes()
    at = len(whole) // 2
    pack.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    again = Store(store.path)
    try:
        check = again.verify("content")
        assert isinstance(check, StoreCheck)
        assert check.problems
        problems = name_victims(again, check, tasks)
        assert any(problem.checkpoints for problem in problems)
        assert all(problem.path for problem in problems)
        assert {file for problem in problems for file in problem.files} <= {
            *(".", "d", "d/f", "other")
        }
    finally:
        again.close()
