"""A task is what its journal adds up to."""

from __future__ import annotations

import os

import pytest

from sandboxsdk.errors import Corrupt, TaskNotFound
from sandboxsdk.ids import new_id
from sandboxsdk.journal import Entry, Journal
from sandboxsdk.model import TaskRecord
from sandboxsdk.task import history

RECORD = TaskRecord(id="0" * 16, description="d", name="n", labels={"a": "b"}, created_at=5)


def entry(seq, kind, data=None):
    return Entry(seq=seq, at=seq, kind=kind, data=data or {}, prev="")


def test_first_entry_makes_the_record():
    """What was created is what is read."""
    assert history.fold([entry(0, "created", history.created(RECORD))], path="p") == RECORD


def test_attaching_makes_a_pending_task_active():
    """The status follows from what happened; unknown kinds of entries change nothing."""
    entries = [entry(0, "created", history.created(RECORD)), entry(1, "from the future")]
    assert history.fold(entries, path="p").status == "pending"
    entries += [entry(2, "attached", {"session": "s"}), entry(3, "detached")]
    assert history.fold(entries, path="p").status == "active"


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [entry(0, "attached")],
        [entry(0, "created")],
        [entry(0, "created", {"record": 5})],
        [entry(0, "created", {"record": {"id": 5, "description": "d"}})],
        [entry(0, "created", {"record": {"id": "x", "description": "d", "status": "odd"}})],
        [entry(0, "created", {"record": {"id": "x", "description": "d", "schema": "1"}})],
        [entry(0, "created", {"record": {"id": "x", "description": "d", "spec": {"env": []}}})],
    ],
    ids=range(8),
)
def test_what_does_not_begin_with_a_task_is_corrupt(entries):
    """An empty journal, another beginning, or a record of another shape make no task."""
    with pytest.raises(Corrupt, match="somewhere"):
        history.fold(entries, path="somewhere")


def test_newer_version_is_told_from_damage():
    """A record that a newer version wrote, in whatever shape, asks for an upgrade."""
    with pytest.raises(Corrupt, match="newer version") as caught:
        history.fold([entry(0, "created", {"record": {"schema": 99, "odd": 1}})], path="p")
    assert caught.value.hint == "upgrade sandboxsdk"


def test_fields_that_a_later_version_added_are_passed_over():
    """The same schema with more in it is still read."""
    data = history.created(RECORD)
    data["record"]["later"] = 5
    assert history.fold([entry(0, "created", data)], path="p") == RECORD


def test_directory_without_journal_is_no_task(tmp_path):
    """A missing directory and an empty one are both not found, by name and home."""
    for name in ("missing", "empty"):
        (tmp_path / "tasks" / "empty").mkdir(parents=True, exist_ok=True)
        with pytest.raises(TaskNotFound) as caught:
            history.read(str(tmp_path / "tasks" / name))
        assert (caught.value.wanted, caught.value.home) == (name, str(tmp_path))


def test_copy_of_a_task_under_another_name_is_corrupt(tmp_path):
    """Two directories never count as the same task."""
    for name in (RECORD.id, new_id()):
        (tmp_path / name).mkdir()
        journal = Journal(os.path.join(tmp_path, name, history.FILE))
        journal.begin("created", history.created(RECORD))
    assert history.read(str(tmp_path / RECORD.id)) == RECORD
    with pytest.raises(Corrupt, match=RECORD.id):
        history.read(str(tmp_path / name))
