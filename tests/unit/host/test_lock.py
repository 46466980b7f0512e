"""One holder at a time, and none that is dead."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sandboxsdk.clock import monotonic, pause
from sandboxsdk.errors import Corrupt, HostRefused, NotFound
from sandboxsdk.host import FileLock

ROOT = os.geteuid() == 0
HOLD = """
import sys
from sandboxsdk.host import FileLock
lock = FileLock(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(lock.acquire(60), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "lock"
    made.touch()
    return str(made)


@contextlib.contextmanager
def child(script, *arguments):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)]),
    }
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=environment,
    )
    with process:
        try:
            yield process
        finally:
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGCONT)
            process.kill()


def say(process, word="go"):
    process.stdin.write(f"{word}\n")
    process.stdin.flush()


def hear(process):
    return process.stdout.readline().strip()


def holding(process):
    assert hear(process) == "ready"
    say(process)
    assert hear(process) == "True"


def waiting(path):
    """How many wait for the lock, as the kernel tells."""
    inode = f":{os.stat(path).st_ino} "
    lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    return sum("->" in line and inode in line for line in lines)


def is_held(path):
    lock = FileLock(path)
    if lock.acquire(0):
        lock.release()
        return False
    return True


def until(condition):
    limit = monotonic() + 60
    while not condition():
        assert monotonic() < limit, "it never came to be"
        pause(0.005)


def threads():
    return set(os.listdir("/proc/self/task"))


def test_second_holder_waits_its_time_and_gives_up(path):
    """While one holds, another gets False, at once or after its time; then it may hold."""
    one, two = FileLock(path), FileLock(path)
    assert one.acquire(0)
    assert not two.acquire(0)
    assert not two.acquire(0.02)
    one.release()
    assert two.acquire(10)
    assert two.descriptor >= 0
    two.release()
    assert two.descriptor == -1


def test_released_lock_goes_to_the_waiter(path):
    """A waiter gets the lock as soon as it is let go."""
    one, two = FileLock(path), FileLock(path)
    assert one.acquire(0)
    got = []
    thread = threading.Thread(target=lambda: got.append(two.acquire(60)))
    thread.start()
    until(lambda: waiting(path) == 1)
    one.release()
    thread.join()
    assert got == [True]
    two.release()


def test_waits_that_were_given_up_hold_nothing_and_do_not_pile_up(path):
    """Twenty waits in vain leave one thread, which ends with the lock free."""
    one, two, three = FileLock(path), FileLock(path), FileLock(path)
    assert one.acquire(0)
    before = threads()
    for _ in range(20):
        assert not two.acquire(0.001)
    assert len(threads() - before) <= 1
    one.release()
    assert three.acquire(30)
    three.release()
    assert two.acquire(30)
    assert not three.acquire(0)
    two.release()
    until(lambda: threads() <= before)


def test_wait_that_was_given_up_is_joined_by_the_next(path):
    """Whoever tries again after its time was over gets the lock when it is let go."""
    one, two = FileLock(path), FileLock(path)
    assert one.acquire(0)
    assert not two.acquire(0.001)
    got = []
    thread = threading.Thread(target=lambda: got.append(two.acquire(60)))
    thread.start()
    assert waiting(path) == 1
    one.release()
    thread.join()
    assert got == [True]
    assert not one.acquire(0)
    two.release()


def test_forever_is_a_time_to_wait(path):
    """A timeout beyond what a thread can wait means as long as it takes."""
    one, two = FileLock(path), FileLock(path)
    assert one.acquire(0)
    timer = threading.Timer(0.05, one.release)
    timer.start()
    assert two.acquire(float("inf"))
    two.release()
    timer.join()


def test_killed_holder_frees_at_once(path):
    """SIGKILL ends the hold; nobody has to clean up."""
    with child(HOLD, path) as holder:
        holding(holder)
        assert not FileLock(path).acquire(0)
        holder.kill()
        lock = FileLock(path)
        assert lock.acquire(60)
        lock.release()


def test_stopped_holder_keeps_it(path):
    """A holder that does not run still holds, however long others wait."""
    with child(HOLD, path) as holder:
        holding(holder)
        os.kill(holder.pid, signal.SIGSTOP)
        assert not FileLock(path).acquire(0.2)
        os.kill(holder.pid, signal.SIGCONT)
        say(holder)
        lock = FileLock(path)
        assert lock.acquire(60)
        lock.release()


def test_ten_waiters_are_served_in_the_order_they_came(tmp_path, path):
    """First come, first served, across processes."""
    script = HOLD + "open(sys.argv[2], 'a').write(sys.argv[3] + ' '); lock.release()\n"
    order = tmp_path / "order"
    lock = FileLock(path)
    assert lock.acquire(0)
    with contextlib.ExitStack() as stack:
        waiters = [stack.enter_context(child(script, path, str(order), str(n))) for n in range(10)]
        for number, waiter in enumerate(waiters, 1):
            assert hear(waiter) == "ready"
            say(waiter)
            until(lambda number=number: waiting(path) == number)
        lock.release()
        for waiter in waiters:
            assert hear(waiter) == "True"
            say(waiter)
            waiter.wait(60)
    assert order.read_text() == "0 1 2 3 4 5 6 7 8 9 "


FORK = """
import os, sys, threading
from sandboxsdk.host import FileLock
held, wanted = FileLock(sys.argv[1]), FileLock(sys.argv[2])
assert held.acquire(0)
thread = threading.Thread(target=lambda: wanted.acquire(60))
thread.start()
print("waiting", flush=True)
sys.stdin.readline()
if os.fork() == 0:
    mine = held.descriptor, FileLock(sys.argv[1]).acquire(0)
    numbers = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
    fds = {os.readlink(number) for number in numbers if os.path.lexists(number)}
    print(*mine, bool(fds & set(sys.argv[1:])), flush=True)
    while True:
        sys.stdin.readline() or os._exit(0)
thread.join()
import signal; signal.pause()
"""


def test_forked_child_holds_nothing(tmp_path, path):
    """A child has neither its parent's lock nor its place in the queue, and keeps neither alive."""
    other = tmp_path / "other"
    other.touch()
    mine = FileLock(str(other))
    assert mine.acquire(0)
    with child(FORK, path, str(other)) as process:
        assert hear(process) == "waiting"
        until(lambda: waiting(other) == 1)
        say(process)
        assert hear(process) == "-1 False False"
        mine.release()
        until(lambda: is_held(str(other)))
        process.kill()
        process.wait()
        for each in (path, str(other)):
            lock = FileLock(each)
            assert lock.acquire(60)
            lock.release()


INTERRUPTED = """
import sys
from sandboxsdk.host import FileLock
lock = FileLock(sys.argv[1])
try:
    print("waiting", flush=True)
    lock.acquire(60)
except KeyboardInterrupt:
    print("interrupted", lock.descriptor, flush=True)
sys.stdin.readline()
print(lock.acquire(60), flush=True)
"""


def test_interrupted_wait_holds_nothing(path):
    """After Ctrl-C the waiter has nothing, others get the lock, and it may try again."""
    lock = FileLock(path)
    assert lock.acquire(0)
    with child(INTERRUPTED, path) as process:
        assert hear(process) == "waiting"
        until(lambda: waiting(path) == 1)
        os.kill(process.pid, signal.SIGINT)
        assert hear(process) == "interrupted -1"
        lock.release()
        again = FileLock(path)
        assert again.acquire(60)
        again.release()
        say(process)
        assert hear(process) == "True"


@pytest.mark.parametrize("kind", ["missing", "directory", "link", "fifo", "socket", "below a file"])
def test_what_is_no_file_is_refused(tmp_path, path, kind):
    """A link is not followed, a FIFO not waited for; nothing is made."""
    place = tmp_path / "place"
    if kind == "directory":
        place.mkdir()
    elif kind == "link":
        place.symlink_to(path)
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as server:
            # By descriptor: the path may be longer than an address of a socket may be.
            parent = os.open(tmp_path, os.O_PATH)
            server.bind(f"/proc/self/fd/{parent}/place")
            os.close(parent)
    elif kind == "below a file":
        place = Path(path) / "place"
    descriptors = set(os.listdir("/proc/self/fd"))
    lock = FileLock(str(place))
    with pytest.raises(NotFound if kind == "missing" else Corrupt):
        lock.acquire(1)
    assert lock.descriptor == -1
    assert set(os.listdir("/proc/self/fd")) <= descriptors
    assert kind != "missing" or not place.exists()


@pytest.mark.skipif(ROOT, reason="root may open everything")
def test_unreadable_file_is_refused(path):
    """Permission errors are typed too."""
    os.chmod(path, 0)
    with pytest.raises(HostRefused):
        FileLock(path).acquire(0)


@pytest.mark.parametrize("replaced", [False, True])
def test_file_that_goes_while_we_wait_is_noticed(path, replaced):
    """A lock on a file that is no longer in its place is no lock."""
    one, two = FileLock(path), FileLock(path)
    assert one.acquire(0)
    caught = []

    def wait():
        try:
            two.acquire(60)
        except NotFound as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: waiting(path) == 1)
    os.unlink(path)
    if replaced:
        Path(path).touch()
    one.release()
    thread.join()
    assert len(caught) == 1
    assert two.descriptor == -1


def test_wait_on_a_file_that_was_replaced_is_not_joined(path):
    """Who tries again after the file was replaced waits for the file that is there."""
    one, two = FileLock(path), FileLock(path)
    assert one.acquire(0)
    assert not two.acquire(0.001)
    os.unlink(path)
    Path(path).touch()
    assert two.acquire(0)
    two.release()
    one.release()


def test_note_is_what_the_last_holder_left(path):
    """Others read the holder's note; a shorter one replaces a longer one whole."""
    lock = FileLock(path)
    assert FileLock(path).read_note() == b""
    assert lock.acquire(0)
    lock.write_note(b"a long note" * 10)
    lock.write_note(b"short")
    assert FileLock(path).read_note() == b"short"
    lock.release()
    os.unlink(path)
    assert FileLock(path).read_note() == b""


def test_locks_leave_no_descriptors(path):
    """However it ended, a lock that was let go has no open file."""
    before = len(os.listdir("/proc/self/fd"))
    one = FileLock(path)
    for _ in range(5):
        assert one.acquire(0)
        assert not FileLock(path).acquire(0)
        one.release()
    assert len(os.listdir("/proc/self/fd")) <= before
