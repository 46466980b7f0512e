"""The process runtime: no isolation, and everything else of the contract."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from sandboxsdk import Home, Sandbox, Task, Workspace
from sandboxsdk.errors import CapabilityError, ExecStartError, ExecTimeout

from .marks import alive, until


@pytest.fixture
def plain(home):
    """Give an entered box of the process runtime, without a directory."""
    with Sandbox(runtime="process", home=home) as box:
        yield box


def test_it_is_never_chosen_unasked(home):
    """Only who names it gets it, and its description says that nothing is isolated."""
    assert Sandbox(home=home).runtime == "bubblewrap"
    with Sandbox(runtime="process", home=home) as box:
        described = box.describe()
    assert (described.runtime, described.isolation) == ("process", "none")
    assert "NO isolation" in str(described)
    assert {state.name: state.how for state in described.limits}["pids"] == "unsupported"


def test_streams_codes_and_signals(plain):
    """A command ends as in any other box."""
    result = plain.exec("echo out; echo err >&2; exit 3")
    assert (result.exit_code, result.stdout, result.stderr) == (3, "out\n", "err\n")
    assert plain.exec("cat", input="given").stdout == "given"
    killed = plain.exec("kill -9 $$")
    assert (killed.reason, killed.signal, killed.exit_code) == ("signal", 9, 137)


def test_environment_is_not_the_callers(plain, monkeypatch):
    """Nothing of the caller's environment comes through but what a box has anyway."""
    monkeypatch.setenv("CANARY", "seen")
    text = plain.exec(["env"], env={"GIVEN": "yes"}).stdout
    names = {line.partition("=")[0] for line in text.splitlines()}
    assert names == {"PATH", "HOME", "USER", "LANG", "TMPDIR", "GIVEN"}


def test_what_cannot_start_says_why(plain):
    """A missing program or directory is the caller's mistake, with its name."""
    for arguments, name in (((["no-such-program"],), "no-such-program"), (("true",), "nowhere")):
        cwd = "nowhere" if name == "nowhere" else None
        with pytest.raises(ExecStartError, match=name):
            plain.exec(*arguments, cwd=cwd)
    with pytest.raises(ExecStartError, match="no-such-program"):
        plain.spawn(["no-such-program"])


def test_files_and_changes_are_those_of_the_box(plain):
    """What commands write is what files reads and diff tells."""
    plain.exec("mkdir d && echo x > d/f", check=True)
    assert plain.files.read_text("d/f") == "x\n"
    assert plain.exec("cat f", cwd="d").stdout == "x\n"
    assert [change.path for change in plain.diff()] == ["d", "d/f"]


def test_timeout_leaves_nothing(plain, mark):
    """New sessions and double forks do not help."""
    script = f"setsid sleep {mark} & (setsid sh -c 'sleep {mark}' &); trap '' TERM; sleep {mark}"
    with pytest.raises(ExecTimeout):
        plain.exec(script, timeout=0.5)
    assert not alive(mark)


def test_end_leaves_nothing(plain, mark):
    """What a command leaves behind is dead when exec returns, others of the box are not."""
    with plain.spawn(["sleep", mark]):
        until(lambda: len(alive(mark)) == 1)
        other = f"{mark}1"
        plain.exec(f"setsid sleep {other} & (setsid sleep {other} &) ; true", check=True)
        assert not alive(other)
        assert len(alive(mark)) == 1
    assert not alive(mark)


def test_session_keeps_what_was_left(home, mark):
    """With session=True it stays until the block ends."""
    with Sandbox(runtime="process", session=True, home=home) as box:
        box.exec(f"setsid sleep {mark} & true", check=True)
        until(lambda: len(alive(mark)) == 1)
    assert not alive(mark)


def test_terminal(plain):
    """Ctrl-C reaches the program, which may live on."""
    # Ctrl-C throws away what was typed and not read yet, so the program says when it has read.
    script = "trap 'echo caught' INT; stty size; read line; echo has $line; sleep 5; true"
    with plain.spawn(["/bin/sh", "-c", script], pty=True) as process:
        process.wait_for(pattern="24 80")
        process.write("typed\n")
        process.wait_for(pattern="has typed\r\n")
        process.write("\x03")
        process.wait_for(pattern="caught")
        assert process.wait(20).exit_code == 0


OWNER = """
import sys
from sandboxsdk import Home, Sandbox
with Sandbox(runtime="process", home=Home(sys.argv[1])) as box:
    with box.spawn(f"setsid sleep {sys.argv[2]} & sleep {sys.argv[2]}"):
        print("ready", flush=True)
        sys.stdin.read()
"""


def test_dead_owner_leaves_nothing(home, mark):
    """Killed with -9, the caller takes everything with it."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, home.path, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with owner:
        assert owner.stdout.readline() == b"ready\n"
        until(lambda: len(alive(mark)) >= 2)
        owner.send_signal(signal.SIGKILL)
    until(lambda: not alive(mark))


def test_directory_itself(home, tmp_path):
    """A direct workspace is written; a private view of a directory is refused, not faked."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "a").write_text("a")
    with Sandbox(Workspace.direct(project), runtime="process", home=home) as box:
        box.exec("echo b > b", check=True)
    assert (project / "b").read_text() == "b\n"
    with (
        pytest.raises(CapabilityError, match="private view"),
        Sandbox(project, runtime="process", home=home) as box,
    ):
        box.exec("true")
    assert sorted(os.listdir(project)) == ["a", "b"]


def test_nothing_stays_in_a_lasting_task(home):
    """The scratch files of a box are gone with it, what is the task's stays."""
    task = Task.create("t", home=Home(home.path))
    with Sandbox(task, runtime="process") as box:
        box.exec("echo x > kept; echo y > $HOME/gone; mkdir $TMPDIR/d", check=True)
    assert [change.path for change in task.diff()] == ["kept"]
    assert not [name for name in os.listdir(task.directory) if name.startswith("scratch-")]


def test_limits_that_nobody_keeps_can_be_required_away(home):
    """What is not enforced is refused where it is required."""
    with pytest.raises(CapabilityError):
        Sandbox(runtime="process", require=["memory"], home=home)
    with pytest.raises(CapabilityError):
        Sandbox(runtime="process", require=["network"], home=home)


def test_commands_at_once_keep_what_they_left(plain):
    """What one command has in the background is not killed because another one ended."""
    script = "(setsid sleep 60 & echo $! > pid); read go; kill -0 $(cat pid) && echo alive"
    with plain.spawn(script) as process:
        until(lambda: plain.files.exists("pid") and plain.files.read_text("pid").endswith("\n"))
        plain.exec("true", check=True)
        process.write("go\n")
        assert process.wait(20).stdout == "alive\n"


def test_a_killed_keeper_leaves_nothing(plain, mark):
    """A command that kills the processes which watch over it does not outlive the box's owner."""
    script = f"setsid sleep {mark} & sleep {mark}"
    with plain.spawn(script) as process:
        until(lambda: len(alive(mark)) == 2)
        monitor = process.pid
        holder = _parent(monitor)
        os.kill(_parent(holder), signal.SIGKILL)
        until(lambda: not alive(mark))
        assert process.wait(20).reason in ("lost", "killed")


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return int(file.read().rpartition(")")[2].split()[1])
