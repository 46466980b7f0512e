"""A journal keeps what was appended, in order, and notices what was not."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxsdk import disk
from sandboxsdk.codec import digest
from sandboxsdk.errors import Corrupt, Denied, HostFull, HostRefused, NotFound
from sandboxsdk.journal import Journal

ROOT = os.geteuid() == 0


@pytest.fixture
def journal(tmp_path):
    made = Journal(str(tmp_path / "journal.jsonl"))
    made.begin("created", {"n": 0})
    return made


def bytes_of(journal):
    return Path(journal.path).read_bytes()


def data_of(journal):
    return [entry.data["n"] for entry in journal.entries()]


def test_entries_come_back_in_order(journal):
    """What was appended is read back: counted from 0, chained, with its facts."""
    for number in range(1, 5):
        journal.append("noted", {"n": number, "text": "Größe \n \udc80 \0"}, sync=number % 2 == 0)
    entries = journal.entries()
    assert [entry.seq for entry in entries] == list(range(5))
    assert data_of(journal) == list(range(5))
    assert entries[3].data["text"] == "Größe \n \udc80 \0"
    assert entries[0].prev == "0" * 64
    assert all(entries[i].at <= entries[i + 1].at for i in range(4))


def test_lines_are_json_and_name_the_line_before(journal):
    """Anybody can read the file and check the chain with any BLAKE3."""
    journal.append("noted", {"n": 1})
    first, second, rest = bytes_of(journal).split(b"\n")
    assert rest == b""
    assert json.loads(second)["prev"] == digest(first)
    body, own = second[: -len(b',"sum":"0123456789abcdef"}')], json.loads(second)["sum"]
    assert own == digest(body)[:16]


def test_file_is_for_its_owner_alone(journal):
    """The journal has mode 0600."""
    assert stat.S_IMODE(os.stat(journal.path).st_mode) == 0o600


def test_no_journal_is_not_found(tmp_path):
    """Neither reading nor appending makes one."""
    missing = Journal(str(tmp_path / "no" / "journal"))
    for call in (missing.entries, lambda: missing.append("noted", {})):
        with pytest.raises(NotFound):
            call()
    missing = Journal(str(tmp_path / "journal"))
    with pytest.raises(NotFound):
        missing.append("noted", {})
    assert os.listdir(tmp_path) == []


def test_journal_begins_once(journal):
    """Beginning again changes nothing."""
    with pytest.raises(HostRefused):
        journal.begin("created", {"n": 5})
    assert data_of(journal) == [0]


def test_reader_sees_whole_entries_only(journal):
    """An unfinished last line is left out, and the next append takes its place."""
    journal.append("noted", {"n": 1})
    whole = bytes_of(journal)
    journal.append("noted", {"n": 2})
    os.truncate(journal.path, len(whole) + 30)
    assert data_of(journal) == [0, 1]
    assert journal.append("noted", {"n": 9}).seq == 2
    assert data_of(journal) == [0, 1, 9]


def test_damage_names_its_line(journal):
    """A changed, a missing, a doubled and a foreign line are each Corrupt, and nothing is added."""
    for number in range(1, 4):
        journal.append("noted", {"n": number})
    good = bytes_of(journal)
    lines = good.splitlines(keepends=True)
    changed = lines[1].replace(b'"n":1', b'"n":7')
    for damaged, line in (
        ([lines[0], changed, *lines[2:]], 2),
        ([*lines[:3], lines[3].replace(b'"n":3', b'"n":8')], 4),
        ([lines[0], *lines[2:]], 2),
        ([*lines[:2], *lines[1:]], 3),
        ([*lines[:2], b"{}\n", *lines[2:]], 3),
        ([b"\n", *lines], 1),
        (lines[1:], 1),
        ([*lines[:3], lines[3][:-1], b"X"], 4),
    ):
        bad = b"".join(damaged)
        Path(journal.path).write_bytes(bad)
        for call in (journal.entries, lambda: journal.append("noted", {"n": 4})):
            with pytest.raises(Corrupt) as caught:
                call()
            assert caught.value.line == line
            assert f"line {line}" in str(caught.value)
        assert bytes_of(journal) == bad


@pytest.mark.parametrize("kind", ["directory", "link", "fifo", "below a file"])
def test_something_else_in_its_place_is_corrupt(tmp_path, journal, kind):
    """What is no regular file is neither followed nor waited for."""
    path = tmp_path / "other"
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(journal.path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path = tmp_path / "journal.jsonl" / "x"
    for call in (Journal(str(path)).entries, lambda: Journal(str(path)).append("noted", {})):
        with pytest.raises(Corrupt):
            call()
    assert data_of(journal) == [0]


@pytest.mark.skipif(ROOT, reason="root may read everything")
def test_unreadable_journal_is_denied(journal):
    """What may not be read is told from what is damaged."""
    os.chmod(journal.path, 0)
    with pytest.raises(Denied):
        journal.entries()


def test_failed_append_leaves_nothing(tmp_path, journal):
    """A file that may not grow (as on a full disk) refuses the entry and keeps the others whole."""
    size = os.stat(journal.path).st_size
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from sandboxsdk.journal import Journal\n"
        "from sandboxsdk.errors import HostRefused, HostFull\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 20}, {size + 20}))\n"
        "try: Journal(sys.argv[1]).append('noted', {'n': 1}, sync=True)\n"
        "except (HostRefused, HostFull) as error: print(error.code)\n"
    )
    done = run_python(script, journal.path)
    assert done.stdout.strip() in {"host_refused", HostFull.code}, done.stderr
    assert os.stat(journal.path).st_size == size
    journal.append("noted", {"n": 2})
    assert data_of(journal) == [0, 2]


# Written by the first version.
GOLDEN = (
    b'{"seq":0,"at":1700000000000000001,"kind":"created","data":{"n":0},"prev":"0000'
    b'000000000000000000000000000000000000000000000000000000000000","sum":"9eb73ffe3'
    b'33e850a"}\n{"seq":1,"at":1700000000000000002,"kind":"noted","data":{"n":1,"text'
    b'":"\xc3\xbc\\u0000dcff"},"prev":"078d3ce017649a247ebc9f2c536f374b50ac81e48b910738dc35'
    b'436c334413fd","sum":"76a865de58c72c31"}\n'
)


def test_what_the_first_version_wrote_is_read(tmp_path):
    """The format does not change: old lines are read, and new ones chained to them."""
    (tmp_path / "golden").write_bytes(GOLDEN)
    journal = Journal(str(tmp_path / "golden"))
    first, second = journal.entries()
    assert (first.kind, first.at, first.data) == ("created", 1_700_000_000_000_000_001, {"n": 0})
    assert second.data == {"n": 1, "text": "ü\udcff"}
    journal.append("noted", {"n": 2})
    assert bytes_of(journal).startswith(GOLDEN)
    assert data_of(journal) == [0, 1, 2]


@pytest.mark.parametrize("call", ["write", "sync_data"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_what_the_disk_refuses_is_typed(journal, call, code):
    """Full disks are HostFull, all else HostRefused with the path; what was there stays."""
    before = bytes_of(journal)

    def refuse(told, _):
        if told == call:
            raise OSError(code, os.strerror(code))

    disk.watcher = refuse
    try:
        full = code in (errno.ENOSPC, errno.EDQUOT)
        with pytest.raises(HostFull if full else HostRefused, match=r"journal\.jsonl"):
            journal.append("noted", {"n": 1}, sync=True)
    finally:
        disk.watcher = None
    assert bytes_of(journal) == before
    journal.append("noted", {"n": 2}, sync=True)
    assert data_of(journal) == [0, 2]


def test_one_sync_makes_an_entry_last(journal):
    """An entry that is to survive a power cut costs one; others cost none."""
    told = []
    disk.watcher = lambda call, _: told.append(call)
    try:
        journal.append("noted", {"n": 1})
        journal.append("noted", {"n": 2}, sync=True)
    finally:
        disk.watcher = None
    assert told == ["write", "write", "sync_data"]


def run_python(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])},
    )
