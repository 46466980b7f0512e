"""A task is made whole or not at all, is found again, and goes without a trace."""

from __future__ import annotations

import collections
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandboxsdk.errors import (
    AmbiguousId,
    CapabilityError,
    Corrupt,
    Denied,
    TaskNotFound,
    UsageError,
    WorkspaceInvalid,
)
from sandboxsdk.home import Home
from sandboxsdk.ids import is_id
from sandboxsdk.journal import Journal
from sandboxsdk.model import Limits, Mount, Network, Secret, Workspace
from sandboxsdk.task import Task

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])}
CREATE = """
import sys
from sandboxsdk.home import Home
from sandboxsdk.task import Task
Task.create("killed", home=Home(sys.argv[1]))
"""


def journal_of(task):
    return Path(task.directory, "journal.jsonl")


def listing(path):
    return sorted(
        os.path.join(base, name) for base, dirs, names in os.walk(path) for name in [*dirs, *names]
    )


class TestCreate:
    def test_task_is_what_was_asked_for(self, home, tmp_path):
        """Everything that was said is in the record, and comes back when it is opened."""
        base = tmp_path / "base"
        base.mkdir()
        made = Task.create(
            "fix the bug",
            workspace=base,
            name="fix",
            labels={"team": "web"},
            env={"A": "ü\udc80"},
            limits=Limits(memory="1GiB"),
            network=Network.allow("a.example.com"),
            mounts=[Mount("/usr/share", "/data")],
            runtime="bubblewrap",
            home=home,
        )
        again = Task.open(made.id, home=home)
        assert is_id(made.id)
        assert again.record == made.record
        assert (again.name, again.description, again.status) == ("fix", "fix the bug", "pending")
        assert (dict(again.labels), again.parent) == ({"team": "web"}, None)
        assert again.spec == made.spec
        assert again.spec.env == {"A": "ü\udc80"}
        assert again.record.workspace.path == str(base)
        assert again.created_at <= time.time_ns()

    def test_workspace_of_any_name(self, home, tmp_path):
        """A directory whose name is not UTF-8 or holds odd characters is kept exactly."""
        for name in (b"\xff\xfe", "Größe 😀".encode(), b"a\nb", b"-rf *"):
            path = os.path.join(os.fsencode(tmp_path), name)
            os.mkdir(path)
            task = Task.create("odd", workspace=path, home=home)
            again = Task.open(task.id, home=home)
            assert os.fsencode(again.record.workspace.path) == path
            assert again.diff() == []

    def test_parent_is_a_task_or_its_id(self, home):
        """A child names its parent; one that is not there is not found."""
        parent = Task.create("p", home=home)
        assert Task.create("c", parent=parent, home=home).parent == parent.id
        assert Task.create("c", parent=parent.id, home=home).parent == parent.id
        with pytest.raises(TaskNotFound):
            Task.create("c", parent="0" * 16, home=home)

    def test_files_are_for_the_owner_alone(self, home):
        """Nobody else can look into a task."""
        task = Task.create("t", home=home)
        assert os.stat(task.directory).st_mode & 0o777 == 0o700
        for name in os.listdir(task.directory):
            assert os.stat(f"{task.directory}/{name}").st_mode & 0o077 == 0

    def test_secret_values_are_nowhere_in_the_home(self, home):
        """Names and hosts are kept; the value is in no file, only with who gave it."""
        secret = Secret("TOKEN", "canary-7341", hosts=["a.example.com"])
        task = Task.create("t", secrets=[secret], home=home)
        with task.attach(agent="coder"):
            pass
        assert task.spec.secrets == (secret,)
        for path in listing(home.path):
            if os.path.isfile(path):
                assert b"canary-7341" not in Path(path).read_bytes()
        assert "canary" not in repr(task)
        again = Task.open(task.id, home=home)
        assert again.spec.secrets == (Secret("TOKEN", None, ("a.example.com",)),)

    def test_what_this_version_lacks_is_said(self, home):
        """Templates and collaborative tasks are refused before anything is made."""
        before = listing(home.path)
        for more in ({"template": "x"}, {"lock": "collaborative"}):
            with pytest.raises(CapabilityError) as caught:
                Task.create("t", home=home, **more)
            assert caught.value.hint
        assert listing(home.path) == before

    def test_missing_places_of_the_home_are_typed(self, home):
        """A home that somebody took apart gives a typed error, and works when opened again."""
        shutil.rmtree(f"{home.path}/tasks")
        with pytest.raises(Exception, match="create task") as caught:
            Task.create("t", home=home)
        assert caught.value.code == "host_refused"
        assert Task.list(home=home) == []
        Task.create("t", home=Home(home.path))

    def test_read_only_home_takes_no_task(self, home):
        """In a home that is only read, a diff is told, and nothing is created or changed."""
        task = Task.create("t", home=home)
        lease = Path(task.directory, "lease")
        reader = Home(home.path, read_only=True)
        before = listing(home.path), os.stat(lease).st_mtime_ns
        seen = Task.open(task.id, home=reader)
        assert [record.id for record in Task.list(home=reader)] == [task.id]
        assert seen.diff() == []
        for call in (lambda: Task.create("u", home=reader), seen.attach, seen.delete):
            with pytest.raises(Denied, match="read only") as caught:
                call()
            assert caught.value.hint
        assert (listing(home.path), os.stat(lease).st_mtime_ns) == before


class TestOpen:
    def test_by_id_name_and_prefix(self, home):
        """A task is found by its whole id, its name, or the beginning of its id."""
        task = Task.create("t", name="fix the bug", home=home)
        Task.create("u", home=home)
        for wanted in (task.id, "fix the bug", task.id[:12]):
            assert Task.open(wanted, home=home).id == task.id

    def test_several_fits_are_ambiguous(self, home):
        """Two tasks of one name, or of one prefix, are named in the error."""
        one, two = (Task.create("t", name="same", home=home) for _ in range(2))
        with pytest.raises(AmbiguousId) as caught:
            Task.open("same", home=home)
        assert one.id in str(caught.value)
        assert two.id in caught.value.matches
        firsts = {}
        while not any(len(ids) > 1 for ids in firsts.values()):
            task = Task.create("t", home=home)
            firsts.setdefault(task.id[0], []).append(task.id)
        prefix = next(first for first, ids in firsts.items() if len(ids) > 1)
        with pytest.raises(AmbiguousId):
            Task.open(prefix, home=home)

    def test_id_wins_over_name(self, home):
        """A task that is named like another's id does not hide that one."""
        one = Task.create("one", home=home)
        two = Task.create("two", name=one.id, home=home)
        assert Task.open(one.id, home=home).id == one.id
        assert Task.open(two.id, home=home).name == one.id

    @pytest.mark.parametrize("wanted", ["0" * 16, "nothing", "..", "/", "../tasks", "\x1b[2J", "*"])
    def test_unknown_is_not_found(self, home, wanted):
        """What fits nothing is TaskNotFound with a hint, and a LookupError."""
        Task.create("t", home=home)
        with pytest.raises(TaskNotFound) as caught:
            Task.open(wanted, home=home)
        assert caught.value.hint
        assert isinstance(caught.value, LookupError)
        assert "\x1b" not in str(caught.value)

    @pytest.mark.parametrize("wanted", [None, "", b"x", 5, True, object(), ["x"]])
    def test_wrong_type_is_refused(self, home, wanted):
        """What is no text is UsageError."""
        with pytest.raises(UsageError):
            Task.open(wanted, home=home)


class TestDamage:
    @pytest.fixture(
        params=["flipped", "empty", "directory", "fifo", "link", "newer", "renamed", "unreadable"]
    )
    def damaged(self, home, request):
        task = Task.create("broken", home=home)
        path = journal_of(task)
        data = path.read_bytes()
        path.unlink()
        identity = task.id
        if request.param == "flipped":
            path.write_bytes(data.replace(b"broken", b"brokem"))
        elif request.param == "empty":
            path.write_bytes(b"")
        elif request.param == "directory":
            path.mkdir()
        elif request.param == "fifo":
            os.mkfifo(path)
        elif request.param == "link":
            path.symlink_to("/etc/passwd")
        elif request.param == "newer":
            Journal(str(path)).begin("created", {"record": {"schema": 2}})
        elif request.param == "unreadable":
            if os.geteuid() == 0:
                pytest.skip("root may read everything")
            path.write_bytes(data)
            path.chmod(0)
        else:
            path.write_bytes(data)
            identity = "0" * 16
            os.rename(task.directory, home.directory(identity))
        return identity

    def test_damaged_task_is_not_opened(self, home, damaged):
        """Opening says Corrupt (Denied, where it may not be read), by id and by prefix."""
        for wanted in (damaged, damaged[:10]):
            with pytest.raises((Corrupt, Denied)) as caught:
                Task.open(wanted, home=home)
            assert caught.value.hint

    def test_others_are_listed_and_opened(self, home, damaged):
        """One damaged task is in nobody's way."""
        good = Task.create("good", name="good", home=home)
        assert [record.id for record in Task.list(home=home)] == [good.id]
        assert Task.open("good", home=home).id == good.id
        good.delete()


class TestList:
    def test_newest_first_page_by_page(self, home):
        """Records come newest first; limit and offset cut pages."""
        made = [Task.create(f"task {n}", home=home).id for n in range(5)]
        assert [record.id for record in Task.list(home=home)] == made[::-1]
        assert [record.id for record in Task.list(home=home, limit=2, offset=1)] == made[::-1][1:3]
        assert Task.list(home=home, limit=0) == []
        assert Task.list(home=home, offset=99) == []

    def test_each_filter_that_is_given_must_fit(self, home):
        """Status, labels, parent and text narrow the list together."""
        one = Task.create("Fix LOGIN", labels={"a": "1", "b": "2"}, home=home)
        two = Task.create("other", name="Login-2", labels={"a": "1"}, parent=one, home=home)
        with two.attach():
            pass

        def ids(**how):
            return {record.id for record in Task.list(home=home, **how)}

        assert ids(text="login") == {one.id, two.id}
        assert ids(labels={"a": "1"}) == {one.id, two.id}
        assert ids(labels={"a": "1", "b": "2"}) == {one.id}
        assert ids(parent=one.id) == {two.id}
        assert ids(status="pending") == {one.id}
        assert ids(status="active", text="login", labels={"a": "1"}) == {two.id}
        assert ids(status="failed") == set()

    @pytest.mark.parametrize(
        "how",
        [
            *({"status": value} for value in ("odd", 5, b"active", ["active"])),
            *({"labels": value} for value in (5, "a=b", ["a"], {5: "x"}, {"a": 5}, {"": "x"})),
            *({"parent": value} for value in (5, b"x", object())),
            *({"text": value} for value in (5, b"x", ["x"])),
            *({"limit": value} for value in (-1, "5", None, True, 1.5)),
            *({"offset": value} for value in (-1, "5", None, True, 1.5)),
            *({"home": value} for value in (5, "", "/tmp", object(), False)),
        ],
    )
    def test_filter_that_cannot_be_is_refused(self, home, how):
        """A misspelled filter is an error and no empty list."""
        with pytest.raises(UsageError) as caught:
            Task.list(**{"home": home, **how})
        assert caught.value.hint


class TestDelete:
    def test_deleted_task_leaves_nothing(self, home, tmp_path):
        """The home is as it was before, and so is the user's directory."""
        base = tmp_path / "base"
        base.mkdir()
        (base / "file").write_text("mine")
        Task.create("t", workspace=base, home=home).delete()  # An overlay was tried then.
        before = listing(home.path)
        Task.create("t", workspace=base, home=home).delete()
        assert listing(home.path) == before
        assert listing(base) == [str(base / "file")]

    def test_task_in_use_here_is_not_deleted(self, home):
        """Deleting under a session of this process is refused, and the session goes on."""
        task = Task.create("t", home=home)
        with task.attach():
            with pytest.raises(Denied, match="in use") as caught:
                task.delete()
            assert caught.value.hint
            assert os.path.isdir(task.directory)
        task.delete()

    def test_hostile_content_goes_too(self, home, tmp_path):
        """Closed directories, 4,000 levels, odd names, links, FIFOs: all goes, no link followed."""
        task = Task.create("t", home=home)
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").write_text("mine")
        upper = Path(task.directory, "upper")
        upper.mkdir()
        for name in (b"\xff\xfe", b"a\nb", b"-rf", b" ", b"\x1b[2J", b"x" * 255):
            with open(os.path.join(os.fsencode(upper), name), "wb"):
                pass
        (upper / "link").symlink_to(outside)
        os.mkfifo(upper / "fifo")
        (upper / "readonly").mkdir()
        (upper / "readonly" / "file").touch()
        (upper / "readonly").chmod(0o500)
        (upper / "closed" / "inner").mkdir(parents=True)
        (upper / "closed" / "inner").chmod(0)
        (upper / "closed").chmod(0)
        at = os.open(upper, os.O_RDONLY)
        for _ in range(4000):
            os.mkdir("d", dir_fd=at)
            below = os.open("d", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        os.close(at)
        task.delete()
        assert os.listdir(f"{home.path}/tasks") == os.listdir(f"{home.path}/trash") == []
        assert (outside / "file").read_text() == "mine"

    def test_home_without_trash_still_deletes(self, home):
        """A place that is missing is made again; nothing is reported done that is not."""
        task = Task.create("t", home=home)
        os.rmdir(f"{home.path}/trash")
        task.delete()
        assert not os.path.exists(task.directory)


needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace is not installed: system calls are not counted"
)


def traced(*arguments, options):
    return subprocess.run(
        ["strace", "-f", "-qq", *options, sys.executable, "-B", "-c", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT,
    )


@pytest.fixture
def can_trace():
    done = subprocess.run(["strace", "-qq", "true"], capture_output=True, check=False, timeout=20)
    if done.returncode:
        pytest.skip("this system does not permit tracing")


@needs_strace
def test_created_task_is_on_disk_when_create_returns(home, tmp_path, can_trace):
    """Journal, its directory and tasks/ are synced once each, in this order."""
    Task.create("so that an overlay was tried", home=home)
    log = tmp_path / "log"
    options = ["-y", "-o", str(log), "-e", "trace=fsync,fdatasync,rename,renameat,renameat2"]
    done = traced(CREATE, home.path, options=options)
    assert done.returncode == 0, done.stderr
    calls = [
        line.split(maxsplit=1)[1] for line in log.read_text().splitlines() if home.path in line
    ]
    names = [re.match(r"\w+", call)[0] for call in calls]
    assert names == ["fdatasync", "fsync", "rename", "fsync"]
    assert "journal.jsonl>" in calls[0]
    assert ".new>" in calls[1]
    assert f"{home.path}/tasks>" in calls[3]


def own_calls(lines, path):
    """Give (name, turn) of the calls on our path: strace counts the turns of each call apart."""
    turns = collections.Counter()
    for line in lines:
        name = re.search(r"(\w+)\(", line)[1]
        turns[name] += 1
        if path in line:
            yield name, turns[name]


KILLED_AT = {
    "openat": ("openat",),
    "write": ("write", "pwrite64", "ftruncate", "flock"),
    "sync": ("fsync", "fdatasync"),
    "name": ("mkdir", "mkdirat", "rename", "renameat", "renameat2"),
}


@needs_strace
@pytest.mark.parametrize("group", KILLED_AT)
def test_kill_at_every_step_leaves_the_whole_task_or_none(tmp_path, group, can_trace):
    """Killed at any call that writes, a creation leaves a task that opens, or litter that goes."""
    home = Home(tmp_path / "home")
    Task.create("next", home=home)  # An overlay was tried then.
    log = tmp_path / "log"
    options = ["-y", "-o", str(log), "-e", f"trace={','.join(KILLED_AT[group])}"]
    done = traced(CREATE, home.path, options=options)
    assert done.returncode == 0, done.stderr
    steps = list(own_calls(log.read_text().splitlines(), home.path))
    assert steps
    for name, number in steps:
        inject = f"inject={name}:signal=SIGKILL:when={number}"
        done = traced(CREATE, home.path, options=["-o", "/dev/null", "-e", inject])
        assert done.returncode != 0, (name, number)
        records = Task.list(home=home)
        for record in records:
            assert Task.open(record.id, home=home).description in {"killed", "next"}
        assert sorted(record.id for record in records) == home.task_ids()
        Task.create("next", home=home)
    tasks = Path(home.path, "tasks")
    litter = [name for name in os.listdir(tasks) if name.endswith(".new")]
    assert litter
    assert home.sweep() == 0
    for name in litter:
        os.utime(tasks / name, (time.time() - 61, time.time() - 61))
    assert home.sweep() == len(litter)
    assert all(is_id(name) for name in os.listdir(tasks))
    assert os.listdir(f"{home.path}/trash") == []


def test_bare_workspace_names_mean_private(home, tmp_path):
    """A path means a private view of it; a Workspace is taken as it is."""
    base = tmp_path / "base"
    base.mkdir()
    private = Task.create("t", workspace=f"{tmp_path}/./base/../base", home=home)
    assert private.record.workspace == Workspace(path=str(base), kind="overlay")
    direct = Task.create("t", workspace=Workspace.direct("/usr/share"), home=home)
    assert direct.record.workspace.mode == "direct"
    with pytest.raises(WorkspaceInvalid):
        Task.create("t", workspace=home.path, home=home)
