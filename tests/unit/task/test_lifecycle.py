"""What a task can become: one table, and nothing outside of it."""

from __future__ import annotations

import pytest

from sandboxsdk.errors import Denied, TransitionRefused, UsageError
from sandboxsdk.home import Home
from sandboxsdk.model import TRANSITIONS
from sandboxsdk.task import Task

ENDINGS = {"completed": "complete", "failed": "fail", "cancelled": "cancel"}


@pytest.fixture
def task(home):
    return Task.create("work", home=home)


@pytest.mark.parametrize("status", ENDINGS)
@pytest.mark.parametrize("attached", [False, True])
def test_a_task_ends_once(task, status, attached):
    """It ends from pending and from active, says why, and every further end is refused."""
    if attached:
        with task.attach():
            assert task.status == "active"
    getattr(task, ENDINGS[status])("because")
    assert task.status == status
    assert task.history()[-1].data == {"why": "because"}
    for again in ENDINGS.values():
        with pytest.raises(TransitionRefused, match=status):
            getattr(task, again)()
    assert task.status == status
    with task.attach():
        assert task.status == status
    assert len([e for e in task.history() if e.kind in ENDINGS]) == 1


def test_the_table_leads_only_where_it_says():
    """Every transition has sources and a target that is none of them."""
    for sources, target in TRANSITIONS.values():
        assert sources
        assert target not in sources


def test_wrong_words_and_homes_are_refused(task, home):
    """A reason that is no text, a home that is open to be read."""
    with pytest.raises(UsageError):
        task.complete(3)
    with pytest.raises(Denied):
        Task.open(task.id, home=Home(home.path, read_only=True)).complete()
    assert task.status == "pending"
