"""What a journal's entries say of checkpoints, folded."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxsdk.codec import to_builtins
from sandboxsdk.errors import Corrupt
from sandboxsdk.model import (
    BASE,
    CHECKPOINT,
    DELETED,
    RESTORED,
    RESTORING,
    TAGGED,
    Beginning,
    CheckpointRecord,
    CheckpointStats,
    Points,
    Restoring,
    fold_points,
)


class Fact(NamedTuple):
    kind: str
    data: dict[str, Any]


def made(name: str, parent: str | None = None, **more: Any) -> Fact:
    record = CheckpointRecord(id=name, task="t", tree=f"tree-{name}", parent=parent, **more)
    return Fact(CHECKPOINT, to_builtins(record))


def deleted(name: str) -> Fact:
    return Fact(DELETED, {"id": name})


def tagged(tag: str, name: str) -> Fact:
    return Fact(TAGGED, {"tag": tag, "checkpoint": name})


def restoring(name: str | None, **more: Any) -> Fact:
    return Fact(RESTORING, to_builtins(Restoring(tree=f"tree-{name}", checkpoint=name, **more)))


RESTORED_FACT = Fact(RESTORED, {"checkpoint": "ignored"})


def fold(*facts: Fact) -> Points:
    return fold_points(facts, path="journal")


def parents(points: Points) -> dict[str, str | None]:
    return {record.id: record.parent for record in points.records.values()}


def test_nothing_is_the_beginning() -> None:
    """Without entries, or with those of other kinds only, there is nothing."""
    for points in (fold(), fold(Fact("created", {}), Fact("attached", {"x": 1}))):
        assert (points.records, points.tags, points.head, points.base) == ({}, {}, None, None)
        assert points.restoring is None
        assert points.roots() == set()


def test_a_record_comes_back_whole() -> None:
    """Every field of a checkpoint survives."""
    record = CheckpointRecord(
        id="a",
        task="t",
        tree="ff",
        name="n\udcff",
        parent="p",
        created_at=5,
        description="words",
        labels={"k": "v"},
        stats=CheckpointStats(files=1, bytes=2, new_bytes=3, seconds=0.5),
        uid=7,
        skipped=("s\udcff",),
        changed=("c",),
    )
    points = fold(Fact(CHECKPOINT, to_builtins(record)))
    assert points.records == {"a": record}
    assert points.head == "a"


def test_the_newest_checkpoint_is_where_the_files_are() -> None:
    """Records keep their order, and the head is the last one made."""
    points = fold(made("a"), made("b", "a"), made("c", "b"))
    assert list(points.records) == ["a", "b", "c"]
    assert points.head == "c"
    assert points.roots() == {"tree-a", "tree-b", "tree-c"}


def test_the_base_must_be_kept() -> None:
    """What it began with is needed as long as the task is."""
    base = Beginning(tree="base", files=3, bytes=4)
    points = fold(Fact(BASE, to_builtins(base)), made("a"), deleted("a"))
    assert points.base == base
    assert points.roots() == {"base"}


def test_children_of_what_is_deleted_become_its_parents() -> None:
    """Any number of them, also several times in a row, and at the beginning."""
    tree = (made("a"), made("b", "a"), made("c", "b"), made("d", "b"), made("e", "d"))
    assert parents(fold(*tree, deleted("b"))) == {"a": None, "c": "a", "d": "a", "e": "d"}
    assert parents(fold(*tree, deleted("b"), deleted("a"))) == {"c": None, "d": None, "e": "d"}
    assert parents(fold(*tree, deleted("d"), deleted("b"), deleted("a"))) == {"c": None, "e": None}


def test_the_head_moves_up_when_it_is_deleted() -> None:
    """The next checkpoint's parent is one that is there."""
    tree = (made("a"), made("b", "a"))
    assert fold(*tree, deleted("b")).head == "a"
    assert fold(*tree, deleted("a")).head == "b"
    assert fold(*tree, deleted("b"), deleted("a")).head is None
    assert fold(*tree, deleted("unknown"), Fact(DELETED, {})).head == "b"


def test_a_tag_is_unique_and_moves() -> None:
    """Another checkpoint takes it; one checkpoint may have several; deleting takes them away."""
    tree = (made("a"), made("b", "a"))
    assert fold(*tree, tagged("x", "a"), tagged("x", "b")).tags == {"x": "b"}
    both = (*tree, tagged("x", "a"), tagged("y", "a"))
    assert fold(*both).tags == {"x": "a", "y": "a"}
    assert fold(*both, deleted("a")).tags == {}
    assert fold(*tree, tagged("x", "gone")).tags == {}


def test_a_restore_is_open_until_it_ended() -> None:
    """What it needs is kept meanwhile, also when the checkpoint is deleted; then the head moves."""
    tree = (made("a"), made("b", "a"))
    points = fold(*tree, restoring("a", saved="b", uid=3))
    assert points.restoring == Restoring(tree="tree-a", checkpoint="a", saved="b", uid=3)
    assert points.head == "b"
    assert "tree-a" in fold(*tree, restoring("a"), deleted("a")).roots()
    done = fold(*tree, restoring("a"), RESTORED_FACT)
    assert (done.restoring, done.head) == (None, "a")
    assert fold(*tree, restoring("a"), restoring("b"), RESTORED_FACT).head == "b"


def test_a_restore_of_what_is_not_there_leads_to_the_beginning() -> None:
    """Also to the beginning itself; an end without a begin changes nothing."""
    tree = (made("a"), made("b", "a"))
    assert fold(*tree, restoring(None), RESTORED_FACT).head is None
    assert fold(*tree, restoring("a"), deleted("a"), RESTORED_FACT).head is None
    assert fold(*tree, RESTORED_FACT).head == "b"


@pytest.mark.parametrize(
    "fact",
    [
        Fact(CHECKPOINT, {}),
        Fact(CHECKPOINT, {"id": 5, "task": "t", "tree": "x"}),
        Fact(CHECKPOINT, {"id": "a", "task": "t", "tree": "x", "labels": [1]}),
        Fact(TAGGED, {"tag": "x"}),
        Fact(TAGGED, {"tag": 1, "checkpoint": "a"}),
        Fact(BASE, {"files": 1}),
        Fact(RESTORING, {"checkpoint": "a"}),
    ],
)
def test_entries_of_another_shape_are_told(fact: Fact) -> None:
    """Corrupt names the journal."""
    with pytest.raises(Corrupt, match="journal"):
        fold(made("a"), fact)


@given(st.lists(st.tuples(st.sampled_from("cdtrR"), st.integers(0, 9), st.integers(0, 9))))
def test_whatever_happens_the_history_is_a_forest(steps: list[tuple[str, int, int]]) -> None:
    """Parents, tags and the head name checkpoints that are there, and nothing is its own parent."""
    facts: list[Fact] = []
    number = 0
    for what, one, two in steps:
        points = fold(*facts)
        ids = list(points.records)
        chosen = ids[one % len(ids)] if ids else "none"
        if what == "c":
            facts.append(made(f"c{number}", points.head))
            number += 1
        elif what == "d":
            facts.append(deleted(chosen))
        elif what == "t":
            facts.append(tagged(f"t{two}", chosen))
        elif what == "r":
            facts.append(restoring(chosen))
        else:
            facts.append(RESTORED_FACT)
    points = fold(*facts)
    known = {None, *points.records}
    assert points.head in known
    assert set(points.tags.values()) <= known
    order = list(points.records)
    for record in points.records.values():
        assert record.parent in known
        if record.parent is not None:
            assert order.index(record.parent) < order.index(record.id)
