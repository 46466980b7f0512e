"""Traps that were measured while the runtime was designed: each is tried here for real."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from sandboxsdk import Home, Mount, Sandbox, Task, Workspace
from sandboxsdk.errors import BoxLost, Conflict
from sandboxsdk.runtime import forkserver
from sandboxsdk.runtime.running import pid_of

from .marks import until

as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can make files of other owners on the host"
)


def processes(name: str) -> dict[int, bytes]:
    """Give a file of every process on the host, as far as we may read it."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                found[int(pid)] = file.read()
        except OSError:
            continue
    return found


def alive(mark: str) -> list[int]:
    """Give the processes of the host that have this argument."""
    return [pid for pid, line in processes("cmdline").items() if mark.encode() in line.split(b"\0")]


@contextlib.contextmanager
def caller(body: str, *arguments: str):
    """Run a program that uses the library; it does not outlive the block."""
    script = (
        "import os, sys, threading, time\n"
        "from sandboxsdk import Home, Sandbox, Task\n"
        "from sandboxsdk.errors import SandboxError\n" + body
    )
    path = os.pathsep.join(part for part in sys.path if part)
    with subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            yield program
        finally:
            program.kill()


def holder_of(box: Sandbox) -> int:
    return pid_of(box._entered()._pidfd)


def cgroups_of(box_id: str) -> list[str]:
    return glob.glob(f"/sys/fs/cgroup/**/*{box_id}*", recursive=True)


def nothing_mounted(home: Home) -> bool:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return not any("sandboxsdk " in line or home.path in line for line in file)


# --- Commands and their ends ------------------------------------------------------------------


def test_exec_does_not_return_too_early(home, tmp_path):
    """When exec has returned, no byte of the workspace changes any more, whatever the command left
    writing: bubblewrap itself returns some milliseconds before that.
    """
    (tmp_path / "work").mkdir()
    with Sandbox(Workspace.direct(tmp_path / "work"), home=home) as box:
        sizes = {}
        writer = "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done >> {0}"
        for turn in range(60):
            file = tmp_path / "work" / str(turn)
            box.exec(f"({writer.format(turn)}) & while [ ! -s {turn} ]; do :; done", check=True)
            sizes[file] = file.stat().st_size
        assert {file: file.stat().st_size for file in sizes} == sizes
        assert all(sizes.values())


def test_a_thread_that_ends_takes_nothing_with_it(box):
    """What a thread has spawned lives on when the thread has ended, and so does the box that it
    entered.
    """
    started = []
    thread = threading.Thread(target=lambda: started.append(box.spawn(["cat"])))
    thread.start()
    thread.join()
    (process,) = started
    assert box.exec("echo a; sleep 0.05").stdout == "a\n"
    assert process.poll() is None
    process.write("still here\n")
    process.close_stdin()
    assert process.wait(20).stdout == "still here\n"


def test_values_are_in_no_argument_list(home, mark):
    """The value of a variable stands in no argument list on the host, and in the environment of the
    command's own processes only.
    """
    canary = f"canary{mark}"
    with Sandbox(home=home, env={"A": f"{canary}.box"}) as box:
        for pty in (False, True):
            with box.spawn(["sleep", mark], env={"B": f"{canary}.call"}, pty=pty):
                until(lambda: alive(mark))
                lines = processes("cmdline")
                assert not [line for line in lines.values() if canary.encode() in line]
                for pid, environment in processes("environ").items():
                    if canary.encode() in environment:
                        assert lines[pid] == b"sleep\0" + mark.encode() + b"\0"
                # The holder's and the box's own processes were among what was looked at.
                assert holder_of(box) in lines


def test_nothing_of_ours_is_open_inside(box):
    """A command has its three streams and no other descriptor of the host or of bubblewrap."""
    assert box.exec(["ls", "/proc/self/fd"]).stdout.split() == ["0", "1", "2", "3"]
    with box.spawn(["ls", "-1", "/proc/self/fd"], pty=True) as process:
        assert process.wait(20).stdout.split() == ["0", "1", "2", "3"]


# --- Owners, rights, places -------------------------------------------------------------------

LOOK = """
for f in *; do
  printf '%s ' $f; cat $f 2>&1 >/dev/null | grep -o 'Permission denied\\|too large' || echo readable
done
"""


@pytest.fixture(params=[0, 4321])
def owners(request, tmp_path):
    """Give a directory of one owner with files of several, and the owner."""
    place = tmp_path / "owners"
    place.mkdir()
    for owner in (0, 1000, 4321, 60700):
        for mode in (0o600, 0o644):
            file = place / f"{owner}-{mode:o}"
            file.write_text("content")
            file.chmod(mode)
            os.chown(file, owner, owner)
    os.chown(place, request.param, request.param)
    return place, request.param


@as_root
@pytest.mark.parametrize("kind", ["direct", "private"])
def test_files_of_other_owners(home, owners, kind):
    """As root, a box owns what the workspace's owner owns; files of others are readable as far as
    their mode says, and none gives EOVERFLOW or more rights than that.
    """
    place, owner = owners
    with Sandbox(getattr(Workspace, kind)(place), home=home) as box:
        seen = dict(line.split(" ", 1) for line in box.exec(LOOK).stdout.splitlines())
        for name, how in seen.items():
            mine = name.startswith(f"{owner}-")
            assert how == ("readable" if mine or name.endswith("644") else "Permission denied")
        assert box.exec(f"echo new > {owner}-600; echo new > fresh; rm {owner}-644").ok
        other = 1000
        assert not box.exec(f"echo new >> {other}-644").ok
        assert not box.exec(f"chmod 666 {other}-644").ok
        assert box.exec(f"stat -c %u {owner}-600 fresh").stdout == "1000\n1000\n"
        assert box.exec(f"echo new >> {owner}-600", user="root").ok
        assert not box.exec(f"cat {other}-600", user="root").ok
        if kind == "private":
            changed = {change.path: change.kind for change in box.diff()}
            kinds = {f"{owner}-600": "modified", f"{owner}-644": "removed", "fresh": "added"}
            assert changed == kinds
            upper = glob.glob(f"{home.path}/throwaway/*/upper/fresh")
            assert [os.stat(path).st_uid for path in upper] == [owner]
    if kind == "direct":
        found = {name: (place / name).stat().st_uid for name in (f"{owner}-600", "fresh")}
        assert set(found.values()) == {owner}
    else:
        assert (place / f"{owner}-644").read_text() == "content"


@as_root
def test_a_file_of_the_dropped_uid_is_not_the_boxes(home, tmp_path):
    """The uid under which a box runs owns nothing on the host by that: what happens to have it is a
    stranger's in the box.
    """
    (tmp_path / "secret").write_text("x")
    os.chown(tmp_path / "secret", 60700, 60700)
    (tmp_path / "secret").chmod(0o600)
    with Sandbox(mounts=[Mount(tmp_path / "secret", "/mnt/secret")], home=home) as box:
        # Its own owner is the box's owner here; what lies in /usr and /etc is not mapped.
        assert box.exec("cat /mnt/secret").stdout == "x"
        assert not box.exec("cat /etc/shadow").ok


def test_the_owner_on_disk_is_kept(home, tmp_path):
    """What the box writes into a direct workspace belongs to whoever owns the workspace."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "old").write_text("x")
    with Sandbox(Workspace.direct(work), home=home) as box:
        box.exec("echo y >> old; mkdir -p a/b; echo z > a/b/new; ln -s new a/b/link", check=True)
    mine = os.stat(work).st_uid
    names = ("old", "a", "a/b", "a/b/new", "a/b/link")
    assert {(work / name).lstat().st_uid for name in names} == {mine}


def test_below_a_closed_directory(tmp_path):
    """A home and a workspace below a directory that only its owner may enter work, for root's
    dropped uid too.
    """
    closed = tmp_path / "closed"
    (closed / "work").mkdir(parents=True)
    (closed / "work" / "file").write_text("content\n")
    closed.chmod(0o700)
    home = Home(closed / "home")
    for workspace in (Workspace.private(closed / "work"), Workspace.direct(closed / "work")):
        with Sandbox(workspace, home=home) as box:
            assert box.exec("cat file && echo more >> file").stdout.startswith("content\n")
            assert box.exec("cat file", user="root").ok
    mounts = [Mount(closed / "work", "/mnt/work"), Mount.cache("below")]
    with Sandbox(mounts=mounts, home=home) as box:
        assert box.exec("cat /mnt/work/file; echo x > ~/.cache/below/x").ok
        assert not box.exec("echo x >> /mnt/work/file").ok


SET_ID = """
import os, stat
def tried(what):
    try:
        what()
    except OSError as error:
        print(error.errno, end=" ")
    else:
        print("done", end=" ")
os.chdir(os.environ["PLACE"])
open("program", "w").close()
tried(lambda: os.chmod("program", 0o4755))
tried(lambda: os.chmod("program", 0o2755))
tried(lambda: os.close(os.open("opened", os.O_CREAT | os.O_WRONLY, 0o4755)))
tried(lambda: os.mknod("made", stat.S_IFREG | 0o4755))
tried(lambda: os.mkdir("directory", 0o2755))
descriptor = os.open("program", os.O_WRONLY)
tried(lambda: os.fchmod(descriptor, 0o6755))
"""


@pytest.mark.parametrize("user", ["sandbox", "root"])
def test_no_set_id_bit_reaches_the_host(home, tmp_path, user):
    """Through a writable mount and a direct workspace no file of the host gets a set-id bit, by
    whatever call, for neither user of the box.
    """
    work, shared = tmp_path / "work", tmp_path / "shared"
    work.mkdir()
    shared.mkdir()
    mounts = [Mount(shared, "/mnt/shared", write=True)]
    with Sandbox(Workspace.direct(work), mounts=mounts, home=home) as box:
        for place in ("/workspace", "/mnt/shared"):
            done = box.exec(["python3", "-c", SET_ID], env={"PLACE": place}, user=user)
            assert done.ok, done.stderr
            assert done.stdout.split()[:2] == [str(errno.EPERM)] * 2
            copy = f"cp /bin/true {place}/true; chmod u+s {place}/true"
            assert not box.exec(copy, user=user).ok
            assert not box.exec(f"install -m 4755 /bin/true {place}/it", user=user).ok
    found = [path for top in (work, shared) for path in top.rglob("*")]
    assert len(found) >= 4
    assert not [path for path in found if path.lstat().st_mode & (stat.S_ISUID | stat.S_ISGID)]


# --- Violent ends -----------------------------------------------------------------------------


def test_a_killed_holder(home, mark):
    """When a box's holder is killed, everything in the box is dead with it, what runs is told as
    lost, later calls raise BoxLost, nothing is left on the host, and the next block goes on with
    the files.
    """
    task = Task.create("holder", home=home)
    with Sandbox(task) as box:
        box.exec("echo kept > file", check=True)
        process = box.spawn(f"echo before; setsid sleep {mark} & sleep {mark}")
        process.wait_for(pattern="before")
        until(lambda: alive(mark))
        killed_from_inside: list[str] = []

        def kill_holder(_stream: str, _data: bytes) -> None:
            os.kill(holder_of(box), signal.SIGKILL)
            killed_from_inside.append("once")

        result = box.exec(f"echo partial; sleep {mark}", on_output=kill_holder)
        assert (result.reason, result.exit_code, result.stdout) == ("lost", None, "partial\n")
        assert not result.ok
        assert killed_from_inside == ["once"]
        assert process.wait(20).reason == "lost"
        assert alive(mark) == []
        for call in (lambda: box.exec("true"), lambda: box.spawn("true"), box.stats):
            with pytest.raises(BoxLost) as caught:
                call()
            assert caught.value.retryable
        lost = box.id
    until(lambda: not cgroups_of(lost))
    assert nothing_mounted(home)
    with Sandbox(task) as box:
        assert box.exec("cat file").stdout == "kept\n"


def test_lost_is_told_once_and_leaves_the_block(home):
    """A throwaway box whose holder died can be left like any other, and its directory is gone."""
    with Sandbox(home=home) as box:
        box.exec("true", check=True)
        os.kill(holder_of(box), signal.SIGKILL)
        until(lambda: not box._opening._instance.alive())
        with pytest.raises(BoxLost):
            box.exec("true")
    assert os.listdir(f"{home.path}/throwaway") == []
    with Sandbox(home=home) as box:
        assert box.exec("true").ok


def test_a_killed_fork_server(home, mark):
    """When the fork server is killed, boxes that are open go on and end cleanly, and the next one
    gets a new server.
    """
    with Sandbox(home=home) as box:
        process = box.spawn(["cat"])
        server = forkserver._server
        assert server is not None
        os.kill(server._program._process.pid, signal.SIGKILL)
        until(lambda: not server.alive())
        process.write("answer\n")
        process.wait_for(pattern="answer")
        assert box.exec("echo on").stdout == "on\n"
        with Sandbox(home=home) as other:
            assert other.exec("echo new").stdout == "new\n"
        assert forkserver._server is not server
        box.spawn(["sleep", mark])
        until(lambda: alive(mark))
        first = box.id
    assert alive(mark) == []
    assert cgroups_of(first) == []
    assert nothing_mounted(home)


BUSY = """
home = Home(sys.argv[1])
mark = sys.stdin.readline().strip()
task = Task.open("busy", home=home)
with Sandbox(task) as one, Sandbox(home=home) as two:
    for box in (one, two):
        box.exec("echo kept > file", check=True)
        box.spawn(f"(setsid sh -c 'trap \\"\\" TERM; sleep {mark} & sleep {mark}' &); sleep {mark}")
        box.spawn(["sleep", mark], pty=True)
    threading.Thread(target=one.exec, args=(f"sleep {mark}",), daemon=True).start()
    if sys.argv[2] == "paused":
        sys.stdin.readline()
        for box in (one, two):
            box.pause()
    print(one.id, two.id, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("how", ["running", "paused"])
def test_a_killed_caller(home, mark, how):
    """When the caller of busy boxes is killed with -9, soon no process of theirs is alive, nothing
    is mounted, their cgroups are gone, the task's lease is free with its files kept, and throwaway
    directories go with the next use.
    """
    task = Task.create("busy", name="busy", home=home)
    with caller(BUSY, home.path, how) as program:
        program.stdin.write(f"{mark}\n")
        program.stdin.flush()
        until(lambda: len(alive(mark)) >= 9)
        if how == "paused":
            program.stdin.write("\n")
            program.stdin.flush()
        ids = program.stdout.readline().split()
        assert len(ids) == 2
        assert len(os.listdir(f"{home.path}/throwaway")) == 1
        program.kill()
        program.wait()
    until(lambda: not alive(mark), 10)
    with task.attach(timeout=10):
        pass
    assert nothing_mounted(home)
    until(lambda: not [path for one in ids for path in cgroups_of(one)], 10)
    with Sandbox(task) as box:
        assert box.exec("cat file").stdout == "kept\n"
    with Sandbox(home=home) as box:
        assert os.listdir(f"{home.path}/throwaway") == [os.path.basename(box.task.directory)]


CHILD = """
home = Home(sys.argv[1])
task = Task.open("forked", home=home)
with Sandbox(task) as box:
    box.exec("echo parent > file", check=True)
    running = box.spawn(["cat"])
    child = os.fork()
    if child == 0:
        for use in (lambda: box.exec("true"), lambda: box.files.read_text("file"), running.wait):
            try:
                use()
            except SandboxError as error:
                print(error.code, flush=True)
        with Sandbox(home=home) as own:
            print(own.exec("echo own").stdout.strip(), flush=True)
        try:
            task.attach(timeout=0).__enter__()
        except SandboxError as error:
            print(error.code, flush=True)
        if sys.argv[2] == "leave":
            sys.exit(0)  # Unwinds through the with block of the parent's box.
        sys.stdout.flush()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    running.write("alive\\n")
    running.wait_for(pattern="alive")
    print(box.exec("cat file").stdout.strip(), flush=True)
"""


@pytest.mark.parametrize("how", ["exit", "leave"])
def test_a_forked_child_holds_nothing(home, how):
    """A forked child cannot use its parent's box or task, opens boxes of its own, and does its
    parent's no harm, however it ends.
    """
    task = Task.create("forked", name="forked", home=home)
    with caller(CHILD, home.path, how) as program:
        said = program.stdout.read().split()
    assert said == ["usage", "usage", "usage", "own", "task_locked", "0", "parent"]
    with Sandbox(task) as box:
        assert box.exec("cat file").stdout == "parent\n"


THROWAWAY = """
with Sandbox(home=Home(sys.argv[1])) as box:
    box.exec("echo parent > file", check=True)
    if os.fork() == 0:
        sys.exit(0)
    os.wait()
    print(box.exec("cat file").stdout.strip(), len(os.listdir(sys.argv[1] + "/throwaway")))
print(len(os.listdir(sys.argv[1] + "/throwaway")))
"""


def test_a_forked_child_deletes_nothing(home):
    """A child that leaves the block of its parent's throwaway box does not delete its files."""
    with caller(THROWAWAY, home.path) as program:
        assert program.stdout.read().split() == ["parent", "1", "0"]


POOL = """
import multiprocessing

def work(number):
    with Sandbox(home=Home(sys.argv[1])) as own:
        return own.exec(f"echo {number}").stdout.strip()

with Sandbox(home=Home(sys.argv[1])) as box:
    box.exec("true", check=True)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        print(*pool.map(work, range(6)))
    print(box.exec("echo parent").stdout.strip())
"""


def test_a_pool_of_forked_workers(home):
    """Workers of a forked pool each open boxes of their own, and the parent's box goes on."""
    with caller(POOL, home.path) as program:
        assert program.stdout.read().split() == ["0", "1", "2", "3", "4", "5", "parent"]
    Home(home.path).sweep()
    assert os.listdir(f"{home.path}/throwaway") == []


SURVIVOR = """
task = Task.open("survived", home=Home(sys.argv[1]))
mark = sys.stdin.readline().strip()
with Sandbox(task) as box:
    box.spawn(["sleep", mark])
    box.exec("true", check=True)
    child = os.fork()
    if child == 0:
        time.sleep(1000)
        os._exit(0)
    print(child, flush=True)
    time.sleep(1000)
"""


def test_a_child_that_survives_keeps_nothing_alive(home, mark):
    """When a caller is killed, its box dies and its lease is free although a forked child of it
    lives on.
    """
    task = Task.create("survived", name="survived", home=home)
    with caller(SURVIVOR, home.path) as program:
        program.stdin.write(f"{mark}\n")
        program.stdin.flush()
        child = int(program.stdout.readline())
        try:
            program.kill()
            program.wait()
            until(lambda: not alive(mark), 10)
            with Sandbox(task) as box:
                assert box.exec("true").ok
            os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


def test_an_exit_without_leaving(home, mark):
    """A program that ends by sys.exit, or by an exception, within the block leaves nothing."""
    body = """
box = Sandbox(home=Home(sys.argv[1])).__enter__()
box.spawn(["sleep", sys.stdin.readline().strip()])
print(box.id, flush=True)
"""
    with caller(body, home.path) as program:
        program.stdin.write(f"{mark}\n")
        program.stdin.flush()
        box_id = program.stdout.readline().strip()
        assert program.wait(20) == 0
    until(lambda: not alive(mark), 10)
    until(lambda: not cgroups_of(box_id), 10)


def test_a_task_is_mounted_once(home):
    """Two Sandboxes of one task in one process do not mount its files twice: the second is refused
    while the first one runs, and works after it.
    """
    task = Task.create("twice", home=home)
    with Sandbox(task) as one, Sandbox(task) as two:
        one.exec("echo one > file", check=True)
        with pytest.raises(Conflict, match="another Sandbox"):
            two.exec("true")
        assert one.exec("cat file").stdout == "one\n"
    with Sandbox(task) as two:
        assert two.exec("cat file").stdout == "one\n"
