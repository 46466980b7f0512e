"""One process at a time works on a task; the others learn who it is."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sandboxsdk.clock import monotonic, pause
from sandboxsdk.errors import Corrupt, Denied, TaskLocked, TaskNotFound, UsageError
from sandboxsdk.host import host_name
from sandboxsdk.journal import Journal
from sandboxsdk.task import Task

HOLD = """
import os, sys, threading
from sandboxsdk.home import Home
from sandboxsdk.errors import SandboxError
from sandboxsdk.task import Task
task = Task.open(sys.argv[2], home=Home(sys.argv[1]))
"""
HOLD_ONCE = (
    HOLD
    + """
with task.attach(agent="coder", timeout=60):
    print("held", flush=True)
    sys.stdin.readline()
"""
)


@pytest.fixture
def task(home):
    return Task.create("work", home=home)


@contextlib.contextmanager
def child(script, task):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, task.home.path, task.id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])},
    )
    with process:
        try:
            yield process
        finally:
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGCONT)
            process.kill()


def hear(process):
    return process.stdout.readline().strip()


def say(process):
    process.stdin.write("go\n")
    process.stdin.flush()


def until(condition):
    limit = monotonic() + 60
    while not condition():
        assert monotonic() < limit, "it never came to be"
        pause(0.005)


def waiting(task):
    inode = f":{os.stat(f'{task.directory}/lease').st_ino} "
    lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    return sum("->" in line and inode in line for line in lines)


def free(task):
    with task.attach(timeout=60):
        return True


def kinds(task):
    return [one.kind for one in Journal(f"{task.directory}/journal.jsonl").entries()]


def test_error_names_the_holder(task):
    """Pid, program, host, agent and time of the holder are in the error, and what to do."""
    with child(HOLD_ONCE, task) as holder:
        assert hear(holder) == "held"
        with pytest.raises(TaskLocked) as caught, task.attach(timeout=0):
            pass
        error = caught.value
        assert error.task == task.id
        assert f"process {holder.pid} (" in error.holder
        assert f"on {host_name()}, agent coder" in error.holder
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", error.since)
        assert error.retryable
        assert error.hint
        for call in (task.delete, task.diff):
            with pytest.raises(TaskLocked):
                call(timeout=0.01) if call == task.delete else second_hold(task)
    assert free(task)


def second_hold(task):
    with task.attach(timeout=0.01):
        pass


def test_waiter_gets_it_when_the_holder_leaves(task):
    """Waiting pays: the lease is taken when it is let go, within the time."""
    with child(HOLD_ONCE, task) as holder:
        assert hear(holder) == "held"
        timer = threading.Timer(0.05, say, [holder])
        timer.start()
        with task.attach(timeout=60):
            pass
        timer.join()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_dead_holder_frees_at_once(task, how):
    """However the holder died, the next one needs no command."""
    with child(HOLD_ONCE, task) as holder:
        assert hear(holder) == "held"
        os.kill(holder.pid, how)
        assert free(task)


def test_stopped_holder_keeps_it(task):
    """A process that was stopped still works on its task."""
    with child(HOLD_ONCE, task) as holder:
        assert hear(holder) == "held"
        os.kill(holder.pid, signal.SIGSTOP)
        with pytest.raises(TaskLocked), task.attach(timeout=0.1):
            pass


def test_contexts_nest_in_one_process(task, home):
    """The same task may be attached again, from any thread and through another object."""
    again = Task.open(task.id, home=home)
    errors = []

    def in_thread():
        try:
            with again.attach(timeout=0):
                pass
        except BaseException as error:
            errors.append(error)

    with task.attach(timeout=0), again.attach(timeout=0):
        threads = [threading.Thread(target=in_thread) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with child(HOLD + "task.attach(timeout=0).__enter__()", task) as other:
            assert other.wait(60) == 1
    assert errors == []
    with child(HOLD_ONCE, task) as other:
        assert hear(other) == "held"


def test_last_to_leave_lets_go_in_any_order(task):
    """Sessions that overlap hold until the last of them ends."""
    one, two = task.attach(timeout=0), task.attach(timeout=0)
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    with child(HOLD + "task.attach(timeout=0).__enter__()", task) as other:
        assert other.wait(60) == 1
    two.__exit__(None, None, None)
    two.__exit__(None, None, None)
    with child(HOLD_ONCE, task) as other:
        assert hear(other) == "held"


def test_session_is_entered_once(task):
    """The same session twice would count once: it is refused, and the first goes on."""
    session = task.attach()
    with session:
        with pytest.raises(UsageError, match="entered already"):
            session.__enter__()
        with pytest.raises(Denied):
            task.delete()
    with session:
        pass
    assert free(task)


def test_each_thread_waits_its_own_time(task):
    """A short timeout ends while another thread of this process still waits."""
    with child(HOLD_ONCE, task) as holder:
        assert hear(holder) == "held"
        got = []

        def patient():
            with task.attach(timeout=60):
                got.append("patient")

        thread = threading.Thread(target=patient)
        thread.start()
        until(lambda: waiting(task) == 1)
        with pytest.raises(TaskLocked), task.attach(timeout=0.02):
            pass
        assert got == []
        say(holder)
        thread.join()
    assert got == ["patient"]


FORK = (
    HOLD
    + """
with task.attach(agent="parent", timeout=0) as session:
    if os.fork() == 0:
        try:
            with task.attach(timeout=0): print("child holds", flush=True)
        except SandboxError as error:
            print(error.code, flush=True)
        session.__exit__(None, None, None)
        try: task.delete(timeout=0)
        except SandboxError as error: print(error.code, flush=True)
        while sys.stdin.readline(): pass
        os._exit(0)
    import signal; signal.pause()
"""
)


def test_forked_child_holds_nothing(task):
    """A child may not write, ends no session of its parent, and does not outlive it as holder."""
    with child(FORK, task) as parent:
        assert [hear(parent), hear(parent)] == ["task_locked", "task_locked"]
        assert kinds(task) == ["created", "attached"]
        with pytest.raises(TaskLocked), task.attach(timeout=0):
            pass
        parent.kill()
        parent.wait()
        assert free(task)


def test_interrupted_wait_leaves_nothing_locked(task):
    """After Ctrl-C while waiting, the task is free for others and for another try."""
    script = (
        HOLD
        + """
try:
    with task.attach(timeout=60): pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.readline()
with task.attach(timeout=60): print("held", flush=True)
"""
    )
    with task.attach(), child(script, task) as waiter:
        until(lambda: waiting(task) == 1)
        os.kill(waiter.pid, signal.SIGINT)
        assert hear(waiter) == "interrupted"
        task_of_another = child(HOLD_ONCE, task)
        # The session ends below; the one who was interrupted is not in the way.
        with contextlib.ExitStack() as stack:
            other = stack.enter_context(task_of_another)
            until(lambda: waiting(task) >= 1)
            other.kill()
        say(waiter)
        until(lambda: waiting(task) >= 1)
    assert free(task)


def test_interrupt_at_every_call_leaves_nothing_locked(task):
    """Whichever function of ours an exception comes into first, the task is free afterwards: where
    a function begins is where Python looks for signals.
    """
    script = (
        HOLD
        + """
from sandboxsdk.task import lease
held = lease.lease_of(task.directory, task.id)
class Stop(BaseException): pass
class Calls:
    def __init__(self, number):
        self.left = number
    def __call__(self, frame, event, _):
        if not frame.f_code.co_filename.endswith(("lease.py", "session.py", "lock.py")):
            return None
        self.left -= 1
        if self.left == 0:
            self.where = f"{frame.f_code.co_name}:{frame.f_lineno}"
            raise Stop
        return None
number, kept = 0, []
while True:
    number += 1
    calls = Calls(number)
    try:
        sys.settrace(calls)
        try:
            with task.attach(timeout=0): pass
        finally:
            sys.settrace(None)
    except Stop:
        # While the exception lives, so does what it came out of: it is in nobody's way.
        with task.attach(timeout=5): pass
    if held.held or held.descriptor != -1:
        kept.append(calls.where)
    if calls.left > 0:
        break
print("kept", kept, number > 20, flush=True)
sys.stdin.readline()
"""
    )
    with child(script, task) as process:
        assert hear(process) == "kept [] True"
        assert free(task)


def test_interrupt_at_any_moment_leaves_nothing_locked(task):
    """A process that is interrupted again and again, wherever it is, never keeps the task."""
    script = (
        HOLD
        + """
import signal
from sandboxsdk.task import lease
held = lease.lease_of(task.directory, task.id)
class Stop(BaseException): pass
def stop(*_): raise Stop
signal.signal(signal.SIGALRM, stop)
caught = 0
for step in range(400):
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.00001 + step * 0.000005)
            with task.attach(timeout=0): pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Stop:
        caught += 1
    if held.held or held.descriptor != -1:
        print("still held after", step, held.held, held.descriptor, flush=True)
        break
else:
    print("free", caught > 0, flush=True)
sys.stdin.readline()
"""
    )
    with child(script, task) as process:
        assert hear(process) == "free True"
        assert free(task)


@pytest.mark.parametrize("kind", ["missing", "directory", "link", "fifo"])
def test_lock_file_that_is_not_ours_is_corrupt(task, tmp_path, kind):
    """Without its lock file nobody may work on a task, and the error says what to do."""
    path = Path(task.directory, "lease")
    path.unlink()
    target = tmp_path / "target"
    target.write_text("untouched")
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path)
    for call in (lambda: task.attach().__enter__(), task.delete, task.diff):
        with pytest.raises(Corrupt, match="lease") as caught:
            call()
        assert caught.value.hint
    assert target.read_text() == "untouched"
    assert kinds(task) == ["created"]


def test_lock_file_unlinked_under_its_holder_admits_no_second(task):
    """While a holder lives, no other gets in, whatever became of the file."""
    with child(HOLD_ONCE, task) as holder:
        assert hear(holder) == "held"
        Path(task.directory, "lease").unlink()
        with pytest.raises(Corrupt), task.attach(timeout=1):
            pass


def test_waiter_learns_that_the_task_was_deleted(task, home):
    """Deleting a task while another process waits for it tells that one so."""
    script = (
        HOLD
        + """
try:
    with task.attach(timeout=60): print("held", flush=True)
except SandboxError as error:
    print(error.code, error.home == sys.argv[1], flush=True)
"""
    )
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(task.attach())
        waiter = stack.enter_context(child(script, task))
        until(lambda: waiting(task) == 1)
        session.__exit__(None, None, None)
        # Whoever comes first; the lease is fair, so the waiter would be: hold and delete in one.
        assert hear(waiter) in {"held", "task_not_found True"}
    with child(HOLD_ONCE, task) as holder:
        assert hear(holder) == "held"
        with child(script, task) as waiter:
            until(lambda: waiting(task) == 1)
            os.rename(task.directory, f"{home.path}/trash/x")
            say(holder)
            assert hear(waiter) == "task_not_found True"


def test_deleted_task_is_not_found(task, home):
    """Nothing can be done with a task that is gone, also by those who knew it."""
    again = Task.open(task.id, home=home)
    task.delete()
    for call in (task.delete, again.delete, lambda: again.attach().__enter__(), again.diff):
        with pytest.raises(TaskNotFound):
            call()
    with pytest.raises(TaskNotFound):
        assert task.status


def test_unreadable_note_is_no_obstacle(task):
    """A holder that left no name is still a holder."""
    with child(HOLD_ONCE, task) as holder:
        assert hear(holder) == "held"
        for note in (b"", b"\xff\x00", b"{}", b"[" * 60_000):
            Path(task.directory, "lease").write_bytes(note)
            with pytest.raises(TaskLocked, match="another process"), task.attach(timeout=0):
                pass


@pytest.mark.parametrize(
    "timeout", [-1, float("nan"), float("inf"), None, "5", True, 10**400, b"1", object()]
)
def test_wrong_timeout_is_refused(task, timeout):
    """What is no time to wait is UsageError, from attach and delete, and nothing happens."""
    for call in (lambda: task.attach(timeout=timeout), lambda: task.delete(timeout=timeout)):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.hint
    assert kinds(task) == ["created"]


@pytest.mark.parametrize("what", ["agent", "model", "session"])
@pytest.mark.parametrize("value", ["", "..", "a\nb", "x" * 300, 5, b"x", object()])
def test_wrong_names_of_who_works_are_refused(task, what, value):
    """Agent, model and session are names; they are shown to whoever waits."""
    with pytest.raises(UsageError):
        task.attach(**{what: value})


def test_journal_tells_who_came_and_went(task):
    """A named agent is noted when it comes and when it goes, each in one line."""
    with task.attach(agent="coder", model="m", session="s1") as session:
        assert session.id == "s1"
        assert task.status == "active"
    entries = Journal(f"{task.directory}/journal.jsonl").entries()
    assert [entry.kind for entry in entries] == ["created", "attached", "detached"]
    assert entries[1].data == {"session": "s1", "agent": "coder", "model": "m"}


def test_damaged_journal_lets_nobody_in(task):
    """Attaching fails without a trace, and without keeping the lease."""
    path = Path(task.directory, "journal.jsonl")
    bad = path.read_bytes().replace(b"work", b"walk")
    path.write_bytes(bad)
    with pytest.raises(Corrupt), task.attach():
        pass
    assert path.read_bytes() == bad
    with child(
        "import sys\nfrom sandboxsdk.host import FileLock\n"
        "print(FileLock(f'{sys.argv[1]}/tasks/{sys.argv[2]}/lease').acquire(0))",
        task,
    ) as other:
        assert hear(other) == "True"
