"""Threads of one process that append to one journal at once."""

from __future__ import annotations

import os
import threading

from sandboxsdk.journal import Journal


def test_threads_take_turns(tmp_path):
    """Every entry of every thread is there, once, in an unbroken chain."""
    path = str(tmp_path / "journal.jsonl")
    Journal(path).begin("created", {})

    def append(number: int) -> None:
        for turn in range(25):
            Journal(path).append("note", {"text": f"{number} {turn} {'x' * (number * 50)}"})

    threads = [threading.Thread(target=append, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = Journal(path).entries()
    assert [entry.seq for entry in entries] == list(range(151))
    assert len({entry.data["text"] for entry in entries[1:]}) == 150


def test_a_block_keeps_others_out(tmp_path):
    """What is read in a block is still so when something is appended in it; blocks nest."""
    journal = Journal(str(tmp_path / "journal.jsonl"))
    journal.begin("created", {})
    with journal.alone(), journal.alone():
        other = threading.Thread(target=lambda: Journal(journal.path).append("other", {}))
        other.start()
        other.join(0.1)
        assert other.is_alive()
        assert journal.append("mine", {}).seq == 1
    other.join()
    assert [entry.kind for entry in journal.entries()] == ["created", "mine", "other"]


def test_a_forked_child_waits_for_no_thread_of_its_parent(tmp_path):
    """The lock that a thread held when the process was forked does not exist in the child."""
    journal = Journal(str(tmp_path / "journal.jsonl"))
    journal.begin("created", {})
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with journal.alone():
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    child = os.fork()
    if child == 0:
        journal.append("child", {})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    done.set()
    thread.join()
    assert journal.entries()[-1].kind == "child"
