"""A box that stands still for a moment, says whether something runs in it, and can be cleared."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sandboxsdk import Sandbox, Workspace
from sandboxsdk.errors import BoxLost, UsageError
from sandboxsdk.runtime.freezing import HolderFreezer

from .marks import alive, until

# By whatever the runtime has, and by signals where it would have a cgroup.
WAYS = ("bubblewrap", "bubblewrap by signals", "process")


@contextlib.contextmanager
def entered(home, way, **settings):
    """Give an entered box and its instance."""
    with Sandbox(home=home, runtime=way.partition(" ")[0], **settings) as box:
        instance = box._entered()
        if "signals" in way:
            instance._freezer = HolderFreezer(instance._asking)
        yield box, instance


@pytest.fixture(params=WAYS)
def way(request):
    return request.param


@pytest.fixture
def freezable(home, way):
    with entered(home, way) as both:
        yield both


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0]


def content(instance) -> dict[str, bytes]:
    """Give every file of the workspace, by way of the descriptor."""
    found = {}
    for name in os.listdir(instance.workspace):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=instance.workspace)
            with open(descriptor, "rb") as file:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    found[name] = file.read()
    return found


def stands(instance, seconds: float = 0.05) -> bool:
    before = content(instance)
    time.sleep(seconds)
    return content(instance) == before


THREADS = """
import mmap, os, sys, threading
with open(sys.argv[1], "wb") as file:
    file.write(bytes(64))
def count(place):
    with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 64) as shared:
        number = 0
        while True:
            number += 1
            shared[place:place + 8] = number.to_bytes(8, "little")
for place in (8, 16, 24):
    threading.Thread(target=count, args=(place,)).start()
count(0)
"""
# Each is the child of one that has ended: it has another number at every look.
RUNNER = """
import os
while True:
    with open("runner", "ab") as file:
        file.write(b"x")
    if os.fork():
        os._exit(0)
"""


def test_what_runs_stands_still_and_goes_on(freezable):
    """In fifty rounds neither loops of shells, nor threads that write to shared memory, nor what
    forks all the time change a file inside the block, and each goes on after it.
    """
    box, instance = freezable
    box.spawn("while :; do echo x > shell; rm shell; done")
    box.spawn("while :; do (echo x >> child); done")
    box.spawn(["python3", "-c", THREADS, "threads"])
    box.files.write("runner.py", RUNNER)
    box.spawn("python3 runner.py & while :; do sleep 1; done")
    names = {"child", "threads", "runner"}
    until(lambda: names <= content(instance).keys())
    for round_number in range(50):
        with instance.frozen():
            before = content(instance)
            assert stands(instance, 0.01 if round_number else 0.3)
        if round_number % 10 == 0:
            until(lambda old=before: all(content(instance)[name] != old[name] for name in names))
    instance.clear()
    assert not instance.busy()


def test_who_was_stopped_stays_so(freezable, mark):
    """A process that a signal had stopped before is still stopped after the block, and its parent
    did not take our stop for one of a job.
    """
    box, instance = freezable
    script = f"sleep {mark} & sleep 0.2; kill -STOP $!; while :; do echo x >> log; done"
    with box.spawn(script):
        (sleeper,) = until(lambda: [pid for pid in alive(mark) if state_of(pid) == "T"])
        until(lambda: "log" in content(instance))
        for _ in range(5):
            with instance.frozen():
                assert stands(instance)
                # The cgroup freezer calls everything uninterruptible.
                assert state_of(sleeper) in "TD"
        size = len(content(instance)["log"])
        until(lambda: len(content(instance)["log"]) > size)
        assert state_of(sleeper) == "T"


def test_job_control_notices_nothing(freezable, mark):
    """A shell on a terminal keeps its foreground job through the block, does not say that it was
    stopped, and a job that was suspended before stays suspended.
    """
    box, instance = freezable
    with box.spawn(["bash", "--norc", "-i"], pty=True) as shell:
        shell.write("PS1=; echo rea''dy\n")
        shell.wait_for(pattern="ready")
        shell.write(f"sleep {mark}1\n")
        (suspended,) = until(lambda: alive(f"{mark}1"))
        until(lambda: state_of(suspended) == "S")
        shell.write("\x1a")
        until(lambda: state_of(suspended) == "T")
        shell.write("echo no''ted\n")
        shell.wait_for(pattern="noted")
        shell.write(f"sleep {mark}\n")
        (sleeper,) = until(lambda: alive(mark))
        for _ in range(10):
            with instance.frozen():
                assert stands(instance, 0.01)
            time.sleep(0.01)
        assert alive(mark) == [sleeper]
        assert state_of(sleeper) == "S"
        assert state_of(suspended) == "T"
        shell.write("\x03")
        until(lambda: not alive(mark))
        shell.write("echo o''n; exit\n")
        shell.wait_for(pattern="on\r\n")
        shell.write("exit\n")
        said = shell.wait(20).stdout
    assert said.count("Stopped") == 1


def test_what_waits_for_a_child_with_its_memory(freezable):
    """A program that waits in the kernel for a child which has not run its own program yet does
    not keep the box from standing still, and goes on after it.
    """
    box, instance = freezable
    script = (
        "import os; os.mkfifo('fifo'); open('begun', 'w').close();"
        "pid = os.posix_spawn('/bin/cat', ['cat'], os.environ, file_actions="
        "[(os.POSIX_SPAWN_OPEN, 0, 'fifo', os.O_RDONLY, 0)]);"
        "os.waitpid(pid, 0)"
    )
    with box.spawn(["python3", "-c", script]) as process:
        until(lambda: "begun" in content(instance))
        time.sleep(0.1)
        for _ in range(3):
            with instance.frozen():
                assert stands(instance)
        box.exec("echo through > fifo", check=True, timeout=20)
        assert process.wait(20).stdout == "through\n"


def test_commands_of_other_threads_wait(freezable, mark):
    """What another thread starts inside the block begins after it; this thread, which would wait
    for itself, is refused.
    """
    box, instance = freezable
    with box.spawn(["sleep", mark]):
        results = []
        with instance.frozen():
            thread = threading.Thread(
                target=lambda: results.append(box.exec("echo x > made", timeout=20))
            )
            thread.start()
            assert stands(instance, 0.3)
            assert not results
            with pytest.raises(UsageError, match="frozen"):
                box.exec("true")
            with instance.frozen():
                pass
            assert "made" not in content(instance)
        thread.join()
        assert results[0].ok
        assert "made" in content(instance)


def test_starts_at_the_same_time_do_not_slip_through(freezable):
    """While another thread starts one command after the other, nothing ever moves inside a block,
    and no command is lost.
    """
    box, instance = freezable
    enough = threading.Event()
    codes = []

    def start():
        while not enough.is_set():
            codes.append(box.exec("echo x >> log", timeout=60).exit_code)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(40):
            time.sleep(number % 7 / 1000)
            with instance.frozen():
                assert stands(instance, 0.01)
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert set(codes) == {0}
    assert content(instance)["log"] == b"x\n" * len(codes)
    assert not instance.busy()


def test_paused_stays_paused(freezable):
    """A box that was paused before stands after the block too, until unpause; one that is unpaused
    inside goes on after it.
    """
    box, instance = freezable
    with box.spawn("while :; do echo x >> log; done"):
        until(lambda: "log" in content(instance))
        box.pause()
        with instance.frozen():
            assert stands(instance)
        assert stands(instance)
        with pytest.raises(UsageError, match="paused"):
            box.exec("true")
        with instance.frozen():
            box.unpause()
            assert stands(instance)
        size = len(content(instance)["log"])
        until(lambda: len(content(instance)["log"]) > size)
        with instance.frozen():
            box.pause()
        assert stands(instance)
        box.unpause()
        assert box.exec("echo on").stdout == "on\n"


def test_a_kill_inside(freezable, mark):
    """What is killed inside the block is dead soon after it at the latest, and the others stand
    until then.
    """
    box, instance = freezable
    with box.spawn("while :; do echo x >> log; done"), box.spawn(["sleep", mark]) as process:
        until(lambda: "log" in content(instance) and alive(mark))
        with instance.frozen():
            process.kill()
            assert stands(instance)
        assert process.wait(20).reason == "killed"
        assert not alive(mark)
        size = len(content(instance)["log"])
        until(lambda: len(content(instance)["log"]) > size)


def test_an_error_inside_lets_go(freezable):
    """The box goes on, and takes commands again, when the block is left by an exception."""
    box, instance = freezable
    with box.spawn("while :; do echo x >> log; done"):
        until(lambda: "log" in content(instance))
        with pytest.raises(KeyError), instance.frozen():
            raise KeyError
        size = len(content(instance)["log"])
        until(lambda: len(content(instance)["log"]) > size)
        assert box.exec("echo on").stdout == "on\n"


def test_busy(freezable, mark):
    """A box is busy while a command runs, and not before the first one, nor as soon as the last
    one is known to be over.
    """
    box, instance = freezable
    assert not instance.busy()
    for _ in range(20):
        box.exec("(setsid true &); true", check=True)
        assert not instance.busy()
    with box.spawn(["sleep", mark]) as process:
        assert instance.busy()
        box.exec("true")
        assert instance.busy()
        with instance.frozen():
            assert instance.busy()
    assert process.over
    assert not instance.busy()
    with pytest.raises(Exception, match="no-such"):
        box.exec(["no-such-program"])
    assert not instance.busy()


def test_busy_with_what_was_left(home, way, mark):
    """In a session box, what a command left makes it busy until it ends; bubblewrap's own
    processes do not.
    """
    with entered(home, way, session=True) as (box, instance):
        for _ in range(20):
            box.exec("true", check=True)
            assert not instance.busy()
        box.exec(f"setsid sleep {mark} > /dev/null & true", check=True)
        (left,) = until(lambda: alive(mark))
        assert instance.busy()
        with instance.frozen():
            assert instance.busy()
        box.exec("true", check=True)
        assert instance.busy()
        os.kill(left, signal.SIGKILL)
        until(lambda: not instance.busy())
        with instance.frozen():
            pass
        assert box.exec("echo on").stdout == "on\n"


def test_clear(home, way, mark):
    """All that runs is dead when clear returns, whatever it was, and ends as after a kill; the box
    takes the next command.
    """
    with entered(home, way, session=True) as (box, instance):
        instance.clear()
        box.exec(f"(setsid sh -c 'trap \"\" TERM; sleep {mark}; sleep {mark}' &)", check=True)
        processes = [
            box.spawn(f"sleep {mark} & sleep {mark} & sleep 0.2; kill -STOP $!; sleep {mark}"),
            box.spawn(f"sleep {mark}; true", pty=True),
            box.spawn("while :; do (echo x >> log); done"),
        ]
        until(lambda: len(alive(mark)) == 5)
        instance.clear()
        assert not alive(mark)
        assert stands(instance)
        assert not instance.busy()
        assert [process.wait(20).reason for process in processes] == ["killed"] * 3
        assert box.exec("echo on").stdout == "on\n"
        box.spawn(["sleep", mark])
        until(lambda: alive(mark))
        with instance.frozen(), pytest.raises(UsageError):
            instance.clear()
        box.pause()
        instance.clear()
        assert not alive(mark)
        assert box.exec("echo on").stdout == "on\n"


OWNER = """
import os, signal, sys
from sandboxsdk import Home, Sandbox
from sandboxsdk.runtime.freezing import HolderFreezer
with Sandbox(home=Home(sys.argv[1]), runtime=sys.argv[2].partition(" ")[0]) as box:
    instance = box._entered()
    if "signals" in sys.argv[2]:
        instance._freezer = HolderFreezer(instance._asking)
    mark = sys.stdin.readline().strip()
    process = box.spawn(f"setsid sleep {mark} & sleep {mark}; true")
    sys.stdin.readline()
    with instance.frozen():
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_dead_owner(home, way, mark):
    """When the caller is killed with -9 inside the block, soon no process of the box is left."""
    command = [sys.executable, "-c", OWNER, home.path, way]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as owner:
        owner.stdin.write(f"{mark}\n".encode())
        owner.stdin.flush()
        until(lambda: len(alive(mark)) == 2)
        owner.stdin.write(b"\n")
        owner.stdin.flush()
        assert owner.wait(20) == -signal.SIGKILL
    until(lambda: not alive(mark))


def test_a_closed_box(home, way, mark):
    """A box that is left from inside the block ends as always, and nothing of it is left; what was
    closed runs nothing, and has no workspace.
    """
    with entered(home, way) as (box, instance):
        box.spawn(["sleep", mark])
        until(lambda: alive(mark))
        with instance.frozen():
            instance.close()
        assert not alive(mark)
        assert not instance.busy()
        with pytest.raises(BoxLost):
            instance.workspace  # noqa: B018 - asking for it is the test


def owners_on_disk(instance, directory: str, ids: tuple[int, int]) -> tuple[int, int]:
    """Make a file through the descriptor, give it these owners, and tell what the disk has."""
    name = f"file-{ids[0]}-{ids[1]}"
    descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, dir_fd=instance.workspace)
    try:
        os.fchown(descriptor, *instance.seen_ids(*ids))
        seen = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    assert instance.seen_ids(seen.st_uid, seen.st_gid) == ids
    (path,) = Path(directory).rglob(name)
    found = path.stat()
    return found.st_uid, found.st_gid


@pytest.mark.parametrize("owner", [(0, 0), (1234, 4321), (60700, 60700), (1234, 60700)])
@pytest.mark.parametrize("direct", [False, True], ids=["private", "direct"])
def test_owners_on_disk(home, tmp_path, owner, direct):
    """As root, who fchowns a file below the descriptor to the seen ids decides who owns it on
    disk, whoever owns the directory and however it is viewed.
    """
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    project = tmp_path / "project"
    project.mkdir()
    os.chown(project, *owner)
    given = Workspace.direct(project) if direct else Workspace.private(project)
    with Sandbox(given, home=home) as box:
        box.exec("echo x > boxs", check=True)
        instance = box._entered()
        place = str(project) if direct else box.task.directory
        for ids in ((0, 0), (1234, 1234), (1234, 4321), (60700, 60700), (1000, 0)):
            assert owners_on_disk(instance, place, ids) == ids
        (made,) = Path(place).rglob("boxs")
        assert (made.stat().st_uid, made.stat().st_gid) == owner


def test_owners_without_a_map(home, way):
    """Where files have the same owners in the box and on disk, ids stay what they are."""
    with entered(home, way) as (_box, instance):
        if os.geteuid() != 0 or way == "process":
            assert instance.seen_ids(0, 1234) == (0, 1234)
        mine = (os.geteuid(), os.getegid())
        descriptor = os.open("mine", os.O_CREAT | os.O_WRONLY, dir_fd=instance.workspace)
        os.fchown(descriptor, *instance.seen_ids(*mine))
        os.close(descriptor)
        (path,) = Path(_box.task.directory).rglob("mine")
        assert (path.stat().st_uid, path.stat().st_gid) == mine
