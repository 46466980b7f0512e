"""The home is a directory of ours alone, made whole, and cleaned of what crashes left."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sandboxsdk.errors import (
    Corrupt,
    Denied,
    HostRefused,
    NotFound,
    Unavailable,
    UsageError,
)
from sandboxsdk.home import Home
from sandboxsdk.host import FileLock
from sandboxsdk.ids import new_id
from sandboxsdk.model import Spec, Workspace
from sandboxsdk.task import Task, make

ROOT = os.geteuid() == 0
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])}
OLD = (time.time() - 3600, time.time() - 3600)


def state(path):
    """Everything that a write would change."""
    found = {}
    for base, dirs, names in os.walk(path):
        for name in [".", *dirs, *names]:
            status = os.lstat(os.path.join(base, name))
            found[base, name] = (
                status.st_mode,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
            )
    return found


def refused(kind, *arguments, **how):
    with pytest.raises(kind) as caught:
        Home(*arguments, **how)
    assert caught.value.hint
    return caught.value


def python(script, *arguments, before=()):
    return subprocess.run(
        [*before, sys.executable, "-B", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT,
    )


class TestOpening:
    def test_new_home_is_private_and_whole(self, tmp_path):
        """It is made with its parents, 0700, with its format and places, whatever the umask."""
        mask = os.umask(0)
        try:
            home = Home(tmp_path / "a" / "b")
        finally:
            os.umask(mask)
        assert stat.S_IMODE(os.stat(home.path).st_mode) == 0o700
        places = ["caches", "scans", "store", "tasks", "throwaway", "trash"]
        assert sorted(os.listdir(home.path)) == sorted([*places, "format"])
        assert Path(home.path, "format").read_bytes() == b'{"format":1}'
        assert all(
            stat.S_IMODE(os.stat(f"{home.path}/{name}").st_mode) & 0o022 == 0
            for name in os.listdir(home.path)
        )

    def test_home_is_opened_again(self, home):
        """What is there stays; a mode that let others read is narrowed."""
        task = Task.create("t", home=home)
        os.chmod(home.path, 0o755)
        assert Home.open(home.path).task_ids() == [task.id]
        assert stat.S_IMODE(os.stat(home.path).st_mode) == 0o700

    def test_empty_directory_becomes_a_home(self, tmp_path):
        """Also one that others could write into, for nothing of theirs is in it."""
        os.chmod(tmp_path, 0o777)
        assert stat.S_IMODE(os.stat(Home(tmp_path).path).st_mode) == 0o700

    def test_home_that_a_crash_left_half_made_is_finished(self, tmp_path):
        """Wherever making it was interrupted, opening it again makes it whole."""
        places = ["tasks", "throwaway", "caches", "trash", "store", "scans", "format.abc.new"]
        for count in range(len(places) + 1):
            path = tmp_path / str(count)
            path.mkdir()
            for name in places[:count]:
                if name == "format.abc.new":
                    (path / name).write_bytes(b'{"for')
                else:
                    (path / name).mkdir()
            Task.create("t", home=Home(path))

    def test_link_to_a_home_is_followed(self, tmp_path, home):
        """A link names the same home; one that points nowhere yet names where it is made."""
        (tmp_path / "link").symlink_to(home.path)
        assert Home(tmp_path / "link").path == home.path
        (tmp_path / "new").symlink_to(tmp_path / "elsewhere")
        assert Home(tmp_path / "new").path == str(tmp_path / "elsewhere")
        Task.create("t", home=Home(tmp_path / "new"))

    def test_name_of_any_bytes(self, tmp_path):
        """A home may lie in a directory whose name is no text."""
        home = Home(os.path.join(os.fsencode(tmp_path), b"\xff"))
        task = Task.create("t", home=home)
        assert Task.open(task.id, home=Home(home.path)).id == task.id

    def test_many_open_it_at_once(self, tmp_path):
        """Processes that make the same home at the same time all get it."""
        script = "import sys; from sandboxsdk.home import Home; sys.stdin.read(); Home(sys.argv[1])"
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(tmp_path / "home")],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=ENVIRONMENT,
            )
            for _ in range(6)
        ]
        for process in processes:
            process.stdin.close()
        for process in processes:
            with process:
                assert process.wait(60) == 0, process.stderr.read()
        assert "format" in os.listdir(tmp_path / "home")
        assert len(os.listdir(tmp_path / "home")) == 7


class TestPlace:
    def test_variable_names_it(self, tmp_path, monkeypatch):
        """$SANDBOXSDK_HOME is the default; one object serves all who name none."""
        monkeypatch.setenv("SANDBOXSDK_HOME", str(tmp_path / "named"))
        assert Home().path == str(tmp_path / "named")
        assert Home.default() is Home.default()
        task = Task.create("t")
        assert Task.open(task.id).home is Home.default()
        assert [record.id for record in Task.list()] == [task.id]

    def test_default_that_was_removed_is_made_anew(self, tmp_path, monkeypatch):
        """A default home that is gone does not haunt the process."""
        monkeypatch.setenv("SANDBOXSDK_HOME", str(tmp_path / "named"))
        Home.default()
        shutil.rmtree(tmp_path / "named")
        Task.create("t")

    def test_data_directory_of_the_user_is_next(self, tmp_path, monkeypatch):
        """Without it, $XDG_DATA_HOME if it is absolute, else ~/.local/share."""
        monkeypatch.delenv("SANDBOXSDK_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
        assert Home().path == str(tmp_path / "data" / "sandboxsdk")
        for other in ("", "relative/data"):
            monkeypatch.setenv("XDG_DATA_HOME", other)
            assert Home().path == str(tmp_path / ".local/share/sandboxsdk")
        monkeypatch.setenv("SANDBOXSDK_HOME", "")
        assert Home().path == str(tmp_path / ".local/share/sandboxsdk")

    def test_tilde_is_the_users_directory(self, tmp_path, monkeypatch):
        """~ is expanded; that of an unknown user is refused and makes nothing."""
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        assert Home("~/boxes").path == str(tmp_path / "boxes")
        refused(UsageError, "~no-such-user/boxes")
        assert os.listdir(tmp_path) == ["boxes"]

    @pytest.mark.parametrize("path", ["", b"", "a\0b", 5, True, 1.5, object(), [], {}])
    def test_what_is_no_path_is_refused(self, path):
        """Wrong types, the empty path and NUL are UsageError."""
        refused(UsageError, path)


class TestRefusal:
    def test_home_of_somebody_else(self, tmp_path):
        """A directory of another user is Denied, also to be read, and stays as it is."""
        path = tmp_path / "theirs"
        if ROOT:
            path.mkdir()
            os.chown(path, 12345, 12345)
        else:
            path = Path("/usr/lib")
        before = os.stat(path)
        for read_only in (False, True):
            error = refused(Denied, path, read_only=read_only)
            assert "belongs to uid" in str(error)
        assert os.stat(path).st_mode == before.st_mode

    @pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
    def test_home_that_others_may_write_into(self, home, mode):
        """What others may have put there is not trusted; the remedy names the command."""
        os.chmod(home.path, mode)
        before = state(home.path)
        assert f"chmod 700 {home.path}" in refused(Denied, home.path).hint
        assert state(home.path) == before

    def test_directory_with_other_things(self, tmp_path):
        """A directory that is not empty and no home is not taken over."""
        (tmp_path / "thesis.tex").touch()
        (tmp_path / "tasks").mkdir()
        before = state(tmp_path)
        refused(UsageError, tmp_path)
        refused(UsageError, tmp_path / "thesis.tex")
        refused(HostRefused, tmp_path / "thesis.tex" / "home")
        assert state(tmp_path) == before

    @pytest.mark.parametrize(
        "path",
        [
            "/proc/home",
            "/dev/null",
            "/sys/x",
            "/" + "x" * 300,
            "/a" * 3000,
            "/dev/null" + "/a" * 1500,
        ],
    )
    def test_impossible_places(self, path):
        """What the kernel refuses is typed."""
        with pytest.raises((HostRefused, UsageError, Denied)):
            Home(path)

    def test_deep_path(self, tmp_path):
        """A path with more levels than Python has frames is made."""
        depth = 1_200
        home = Home(tmp_path / "/".join("d" * depth))
        try:
            assert home.stats().tasks == 0
        finally:
            remove_deep(tmp_path)

    def test_loop_of_links(self, tmp_path):
        """A link to itself is a typed error."""
        (tmp_path / "loop").symlink_to("loop")
        refused(HostRefused, tmp_path / "loop")

    def test_newer_format(self, home):
        """A home that a newer version wrote is not touched; the remedy is an upgrade."""
        Path(home.path, "format").write_bytes(b'{"format":2,"new":[]}')
        before = state(home.path)
        for read_only in (False, True):
            assert "upgrade" in refused(Unavailable, home.path, read_only=read_only).hint
        assert state(home.path) == before

    @pytest.mark.parametrize(
        "data", [b"", b"{", b"[]", b"1", b'{"format":"1"}', b'{"format":0}', b"x" * 9999]
    )
    def test_damaged_format(self, home, data):
        """What says no format is Corrupt and names the file."""
        Path(home.path, "format").write_bytes(data)
        before = state(home.path)
        assert refused(Corrupt, home.path).path == f"{home.path}/format"
        assert state(home.path) == before


class TestReadOnly:
    def test_reading_writes_nothing(self, home):
        """Opening, listing and counting change no byte, mode or time."""
        task = Task.create("t", home=home)
        os.rmdir(f"{home.path}/caches")
        os.chmod(home.path, 0o755)
        before = state(home.path)
        reader = Home(home.path, read_only=True)
        assert reader.task_ids() == [task.id]
        assert Task.open(task.id, home=reader).record.description == "t"
        assert reader.stats().tasks == 1
        assert reader.sweep() == 0
        assert state(home.path) == before

    def test_no_home_is_not_found(self, tmp_path):
        """Where nothing may be written, nothing is made."""
        refused(NotFound, tmp_path / "home", read_only=True)
        assert os.listdir(tmp_path) == []


class TestTelling:
    def test_doctor_says_what_works(self, home):
        """The report has a line for the home, the interpreter and the runtime, with remedies."""
        report = home.doctor()
        names = [finding.name for finding in report.findings]
        assert names[:2] == ["home", "python"]
        assert len(names) > 2
        assert all(finding.ok or finding.remedy for finding in report.findings)
        assert home.path in str(report)

    def test_stats_count(self, home):
        """Tasks, throwaway ones and free space are told, in one line too."""
        Task.create("t", home=home)
        kept = throwaway(home)
        stats = home.stats()
        assert (stats.tasks, stats.throwaway) == (1, 1)
        assert stats.free_bytes > 0
        assert str(stats).startswith(f"{home.path}: 1 tasks, 1 throwaway, ")
        kept.discard()
        assert repr(home) == f"Home({home.path!r})"

    def test_vanished_home_is_typed(self, home):
        """Counting in a home that is gone is an error of ours."""
        shutil.rmtree(home.path)
        with pytest.raises(HostRefused):
            home.stats()


def remove_deep(path):
    """Remove what shutil.rmtree, which recurses, cannot."""
    from sandboxsdk.host import remove_tree

    descriptor = os.open(path, os.O_RDONLY)
    try:
        for name in os.listdir(descriptor):
            remove_tree(descriptor, name)
    finally:
        os.close(descriptor)


def throwaway(home):
    return make("t", home=home, workspace=Workspace(), spec=Spec(), throwaway=True)


def abandoned(home, *, place="throwaway", name=None, age=OLD):
    path = Path(home.path, place, name or new_id())
    path.mkdir()
    (path / "lease").touch()
    (path / "upper" / "sub").mkdir(parents=True)
    (path / "upper" / "file").write_text("x")
    os.utime(path, age)
    return path


class TestSweep:
    def test_leftovers_go_and_the_rest_stays(self, home):
        """What the dead left goes; lasting tasks, held throwaways and what is being made stay."""
        task = Task.create("t", home=home)
        held = throwaway(home)
        for _ in range(50):
            abandoned(home)
            abandoned(home, place="trash")
            abandoned(home, place="tasks", name=f"{new_id()}.new")
        fresh = abandoned(home, place="tasks", name=f"{new_id()}.new", age=None)
        fresh_throwaway = abandoned(home, name=f"{new_id()}.new", age=None)
        making = abandoned(home, place="tasks", name=f"{new_id()}.new")
        lock = FileLock(str(making / "lease"))
        assert lock.acquire(0)
        assert home.sweep() == 150
        assert home.sweep() == 0
        lock.release()
        assert home.task_ids() == [task.id]
        assert os.path.isdir(held.directory)
        assert fresh.is_dir()
        assert fresh_throwaway.is_dir()
        assert home.sweep() == 1
        held.discard()
        assert os.listdir(f"{home.path}/trash") == []

    def test_throwaway_of_a_killed_process_goes(self, home):
        """A throwaway task lives as long as the process that made it."""
        script = (
            "import sys, os; from sandboxsdk.home import Home; from sandboxsdk.task import make\n"
            "from sandboxsdk.model import Spec, Workspace\n"
            "home, spec = Home(sys.argv[1]), Spec()\n"
            "task = make('t', home=home, workspace=Workspace(), spec=spec, throwaway=True)\n"
            "print(task.id, flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script, home.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
        ) as process:
            try:
                assert process.stdout.readline()
                assert home.sweep() == 0
            finally:
                process.kill()
            process.wait()
        assert home.sweep() == 1
        assert home.stats().throwaway == 0

    def test_one_that_cannot_be_deleted_stops_nothing(self, home):
        """What stands in the way is left; the others go."""
        odd = abandoned(home, name="0" * 16)
        (odd / "lease").unlink()
        (odd / "lease").mkdir()
        for _ in range(3):
            abandoned(home)
        (Path(home.path) / "throwaway" / "file").touch()
        assert home.sweep() >= 3
        assert odd.is_dir()

    def test_only_one_sweeps(self, home):
        """Processes and threads that sweep at once delete each leftover once, and none fails."""
        for _ in range(30):
            abandoned(home)
        script = (
            "import sys; from sandboxsdk.home import Home\n"
            "home = Home(sys.argv[1]); sys.stdin.read()\n"
            "print(home.sweep())"
        )
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", script, home.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=ENVIRONMENT,
            )
            for _ in range(2)
        ]
        counts = []
        threads = [threading.Thread(target=lambda: counts.append(home.sweep())) for _ in range(3)]
        for process in processes:
            process.stdin.close()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for process in processes:
            with process:
                counts.append(int(process.stdout.read()))
        counts.append(home.sweep())
        assert sum(counts) == 30
        assert home.stats().throwaway == 0

    def test_sweep_that_is_not_possible_is_no_error(self, home):
        """It is for the next ones; nobody's own work fails for it."""
        abandoned(home)
        Path(home.path, "sweep.lock").mkdir()
        assert home.sweep() == 0
        os.rmdir(f"{home.path}/sweep.lock")
        assert home.sweep() == 1


FULL = """
import os, sys
from sandboxsdk.errors import HostFull, SandboxError
from sandboxsdk.home import Home
from sandboxsdk.task import Task

def listing():
    found = (os.path.join(b, n) for b, d, f in os.walk(home.path) for n in d + f)
    return sorted(path for path in found if not path.endswith("/sweep.lock"))

home = Home(sys.argv[1] + "/home")
kept = Task.create("kept", home=home)

def fill():
    filled = []
    try:
        while True:
            filled.append(f"{sys.argv[1]}/fill{len(filled)}")
            descriptor = os.open(filled[-1], os.O_CREAT | os.O_WRONLY)
            try:
                while sys.argv[2] == "bytes": os.write(descriptor, bytes(4096))
            finally:
                os.close(descriptor)
    except OSError as error:
        assert error.errno == 28, error
    return [path for path in filled if os.path.exists(path)]

before = listing()
for spare in range(4):
    filled = fill()
    for path in filled[:spare]:
        os.unlink(path)
    if sys.argv[2] == "bytes" and spare:
        break
    codes = []
    for call in (lambda: Task.create("full", home=home), lambda: Home(sys.argv[1] + "/other")):
        try:
            call()
            codes.append("made")
        except HostFull as error: codes.append(error.code + ("" if error.hint else " no hint"))
        except SandboxError as error: codes.append(repr(error))
    home.sweep()
    if codes[0] == "host_full": assert listing() == before, set(listing()) ^ set(before)
    print(spare, *codes)
    assert Task.open(kept.id, home=home).description == "kept"
    try:
        with kept.attach(timeout=0): pass
    except HostFull: pass
    for path in filled:
        if os.path.exists(path): os.unlink(path)
    for task in home.task_ids():
        if task != kept.id: Task.open(task, home=home).delete()
Task.create("again", home=home)
Task.create("other", home=Home(sys.argv[1] + "/other"))
with kept.attach(agent="a"): pass
kept.delete()
print("works again")
"""


@pytest.mark.parametrize(
    ("what", "options"), [("bytes", "size=96k"), ("names", "size=4m,nr_inodes=64")]
)
def test_full_disk_is_typed_and_leaves_nothing_half_made(tmp_path, what, options):
    """HostFull, the home as it was, what was there still readable; with space again all works."""
    mount = f'mount -t tmpfs -o mode=700,{options} tmpfs "$0" && exec "$@"'
    flags = ["-m"] if ROOT else ["-Urm"]
    tried = subprocess.run(["unshare", *flags, "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"this user may not mount a small file system: {tried.stderr!r}")
    before = ["unshare", *flags, "sh", "-c", mount, str(tmp_path)]
    done = python(FULL, str(tmp_path), what, before=before)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "0 host_full host_full"
    assert lines[-1] == "works again"
    assert not any("Error" in line or "no hint" in line for line in lines), lines
