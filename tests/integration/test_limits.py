"""Limits on real boxes: what strikes, what is told, and that describe() tells the truth."""

from __future__ import annotations

import os

import pytest

from sandboxsdk import Home, Limits, Sandbox
from sandboxsdk.errors import CapabilityError, ExecTimeout, HostRefused, UsageError

from .marks import alive, until

MIB = 1024 * 1024


def how_kept(home: Home, limits: Limits) -> dict[str, str]:
    """Give how each limit is kept here, as a box would say it."""
    return {state.name: state.how for state in home.runtime("auto").limit_states(limits)}


@pytest.fixture
def by_cgroup(home) -> bool:
    """Tell whether this user may limit by cgroup here."""
    return {f.name: f.ok for f in home.doctor().findings}["cgroups"]


def eat(mebibytes: int) -> list[str]:
    """Give a program that uses this much memory, says so, and waits for a line."""
    script = f"x = bytearray(b'x') * ({mebibytes} << 20); print('eaten', flush=True); input()"
    return ["python3", "-c", script]


# --- Memory -----------------------------------------------------------------------------------


def test_one_program_eats_too_much(home, by_cgroup):
    """A program beyond the memory limit ends: by the kernel where a cgroup keeps the limit, else by
    an allocation that fails, or by our watch.
    """
    with Sandbox(home=home, limits=Limits(memory="96MiB")) as box:
        result = box.exec(eat(300), input="\n")
        assert not result.ok
        assert "eaten" not in result.stdout
        if by_cgroup:
            assert result.reason == "oom"
            assert result.usage.oom_kills == 1
        else:
            assert result.reason == "oom" or "MemoryError" in result.stderr
        after = box.exec("echo next")
        assert (after.stdout, after.reason) == ("next\n", "exit")


def test_many_programs_eat_too_much(home):
    """Programs that together pass the limit are ended with reason "oom", whoever keeps it."""
    script = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        x = bytearray(b'x') * (40 << 20)
        time.sleep(1000)
time.sleep(1000)
"""
    with Sandbox(home=home, limits=Limits(memory="128MiB")) as box:
        process = box.spawn(["python3", "-c", f"{script}"])
        # The kernel may choose one of the children; then the others go on within the limit.
        until(lambda: process.over or (box.stats().oom_kills or 0) > 0)
        process.kill()
        result = process.wait(20)
    assert result.reason in ("oom", "killed")
    assert result.reason == "oom" or (result.usage.oom_kills or 0) > 0


def test_watched_memory(home, by_cgroup):
    """Where no cgroup keeps the memory, a tree of processes beyond it is killed by the watch."""
    if by_cgroup:
        pytest.skip("a cgroup keeps the memory for this user; see the tests of the watch itself")
    script = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        x = bytearray(b'x') * (40 << 20)
        time.sleep(1000)
print("started", flush=True)
time.sleep(1000)
"""
    with Sandbox(home=home, limits=Limits(memory="128MiB")) as box:
        result = box.exec(["python3", "-c", script], timeout=60)
        assert (result.reason, result.stdout, result.ok) == ("oom", "started\n", False)
        assert box.exec("echo next").stdout == "next\n"


def test_memory_that_a_shell_hides(home, by_cgroup):
    """When the kernel kills a child for want of memory and the shell exits with 0, the reason is
    still told.
    """
    if not by_cgroup:
        pytest.skip("without a cgroup nobody counts kills; allocations fail instead")
    with Sandbox(home=home, limits=Limits(memory="96MiB")) as box:
        box.files.write("eat.py", eat(300)[2])
        result = box.exec("python3 eat.py; echo hidden; exit 0", input="\n")
        assert (result.reason, result.exit_code, result.stdout) == ("oom", 0, "hidden\n")


def test_scratch_is_bounded(home):
    """/tmp, HOME and /dev/shm are memory, and together take at most half of the limit."""
    with Sandbox(home=home, limits=Limits(memory="64MiB")) as box:
        fill = "head -c 100000000 /dev/zero > {}"
        for place in ("/tmp/x", "/dev/shm/x", "/home/sandbox/x"):
            result = box.exec(
                f"{fill.format(place)}; s=$?; stat -c %s {place}; rm {place}; exit $s"
            )
            assert not result.ok
            assert "No space left" in result.stderr
            assert int(result.stdout) <= 32 * MIB
        assert box.exec("echo fits > /tmp/x").ok


# --- Processes --------------------------------------------------------------------------------

FORK = """
import os, time
count = 0
try:
    for count in range(500):
        if os.fork() == 0:
            time.sleep(1000)
except OSError as error:
    print(count, error.strerror)
    raise SystemExit(3)
"""


def test_a_fork_bomb_is_bounded(home, by_cgroup):
    """The kernel refuses processes beyond the limit, nothing of the bomb is left, and where a
    cgroup counts the result says why.
    """
    with Sandbox(home=home, limits=Limits(pids=40)) as box:
        result = box.exec(["python3", "-c", FORK], timeout=60)
        count, _space, error = result.stdout.strip().partition(" ")
        assert 5 < int(count) < 40
        assert error == "Resource temporarily unavailable"
        assert (result.exit_code, result.reason) == (3, "pids" if by_cgroup else "exit")
        assert box.exec("echo next").stdout == "next\n"


def test_a_real_fork_bomb(home, mark):
    """A bomb that doubles for ever is ended by the timeout, and the host did not notice it."""
    bomb = """
import os, time
while time.sleep(0.001) is None:
    try: os.fork()
    except OSError: pass
"""
    with Sandbox(home=home, limits=Limits(pids=60)) as box:
        with pytest.raises(ExecTimeout):
            box.exec(["python3", "-c", bomb, mark], timeout=1)
        assert alive(mark) == []
        assert box.exec("echo next").stdout == "next\n"


# --- Time, files, processors, disk ------------------------------------------------------------


def test_wall_time(home, mark):
    """The wall time ends a command like a timeout of its own; the shorter of the two counts."""
    with Sandbox(home=home, limits=Limits(wall_time=0.4)) as box:
        with pytest.raises(ExecTimeout) as caught:
            box.exec(f"echo x; setsid sleep {mark} & sleep {mark}", timeout=1000)
        assert caught.value.timeout == 0.4
        assert caught.value.result.stdout == "x\n"
        assert alive(mark) == []
        with pytest.raises(ExecTimeout) as caught:
            box.exec("sleep 1000", timeout=0.1)
        assert caught.value.timeout == 0.1
        assert box.exec("true").ok


def test_open_files(home):
    """A program cannot have more open files than said, nor raise the limit."""
    with Sandbox(home=home, limits=Limits(open_files=32)) as box:
        assert box.exec("ulimit -n; ulimit -Hn").stdout == "32\n32\n"
        script = "f = [open('/dev/null') for _ in range(100)]"
        assert "Too many open files" in box.exec(["python3", "-c", script]).stderr


def test_no_core_files(home):
    """A program that crashes leaves no core file in the workspace."""
    with Sandbox(home=home) as box:
        assert box.exec("ulimit -c; ulimit -Hc").stdout == "0\n0\n"


def test_one_file_too_large(home):
    """A single file stops at the disk limit."""
    with Sandbox(home=home, limits=Limits(disk="4MiB")) as box:
        result = box.exec("head -c 100000000 /dev/zero > big; exit $?")
        assert not result.ok
        assert box.files.stat("big").size <= 4 * MIB


def test_many_files_too_large(home, mark):
    """Files that together pass the disk limit end what runs, with reason "disk"."""
    with Sandbox(home=home, limits=Limits(disk="6MiB")) as box:
        command = f"for i in 1 2 3; do head -c 3000000 /dev/urandom > $i; done; sleep {mark}"
        result = box.exec(command, timeout=60)
        assert (result.reason, result.ok) == ("disk", False)
        assert alive(mark) == []
        assert box.exec("rm 1 2 3; echo room").stdout == "room\n"


# --- Changing and telling ---------------------------------------------------------------------


def test_update(home, by_cgroup):
    """Limits change while the box runs: for new commands at once, for what a cgroup keeps also for
    those that run.
    """
    with Sandbox(home=home, limits=Limits(open_files=64, pids=60)) as box:
        assert box.exec("ulimit -n").stdout == "64\n"
        box.update(Limits(open_files=48, pids=30, wall_time=0.3))
        assert box.exec("ulimit -n").stdout == "48\n"
        with pytest.raises(ExecTimeout):
            box.exec("sleep 1000")
        said = {state.name: state.value for state in box.describe().limits}
        assert (said["open_files"], said["pids"], said["wall_time"]) == (48, 30, 0.3)
        box.update(Limits(pids=30))
        count = int(box.exec(["python3", "-c", FORK], timeout=60).stdout.split()[0])
        assert count < 30
        if by_cgroup:
            with box.spawn(["sh", "-c", 'read x; exec python3 -c "$0"', FORK]) as process:
                box.update(Limits(pids=20))
                process.write("\n")
                assert int(process.wait(60).stdout.split()[0]) < 20


def test_an_update_that_the_kernel_refuses(home, by_cgroup):
    """Less memory than is in use is refused where a cgroup keeps it, and changes nothing."""
    if not by_cgroup:
        pytest.skip("without a cgroup a lower limit is obeyed by ending what is above it")
    with Sandbox(home=home, limits=Limits(memory="256MiB", open_files=64)) as box:
        with box.spawn(eat(100)) as process:
            process.wait_for(pattern="eaten")
            with pytest.raises(HostRefused, match="uses more"):
                box.update(Limits(memory="16MiB", open_files=32))
            said = {state.name: state.value for state in box.describe().limits}
            assert (said["memory"], said["open_files"]) == (256 * MIB, 64)
            assert box.exec("ulimit -n").stdout == "64\n"
            assert process.poll() is None


def test_the_description_is_true(home, by_cgroup):
    """describe() says of each limit how it is kept: what a cgroup or the kernel keeps is enforced,
    what is looked at is watched, what nobody keeps is unsupported, what was not asked is unlimited.
    """
    asked = Limits(memory="200MiB", cpus=0.5, pids=50, disk="1GiB", open_files=100)
    with Sandbox(home=home, limits=asked) as box:
        description = box.describe()
        said = {state.name: state for state in description.limits}
        assert {name: state.how for name, state in said.items()} == {
            "memory": "enforced" if by_cgroup else "watched",
            "cpus": "enforced" if by_cgroup else "unsupported",
            "pids": "enforced",
            "disk": "watched",
            "wall_time": "unlimited",
            "open_files": "enforced",
        }
        assert (said["memory"].value, said["cpus"].value) == (200 * MIB, 0.5)
        for state in said.values():
            assert state.by
            assert state.name in str(description)
        assert (description.runtime, description.isolation) == ("bubblewrap", "namespace")
        if by_cgroup:
            # The proof is in the kernel's own words, read by the box's own processes.
            joined = box.exec("cat /proc/self/cgroup").stdout
            assert "memory" in joined or joined.startswith("0::")


def test_processors_are_really_limited(home, by_cgroup):
    """Where the share of processors is called enforced, the kernel has held a busy box back."""
    if not by_cgroup:
        pytest.skip("there is no cpu cgroup for this user, and describe() says so")
    with Sandbox(home=home, limits=Limits(cpus=0.2)) as box:
        busy = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"
        result = box.exec(busy, timeout=60)
        assert result.usage.cpu_seconds is not None
        assert result.duration > 2 * result.usage.cpu_seconds


def test_what_is_used(home):
    """stats() counts memory, processes and disk while something runs."""
    with Sandbox(home=home) as box, box.spawn(eat(60)) as process:
        process.wait_for(pattern="eaten")
        box.files.write("data", os.urandom(MIB))
        # A watch has its first sample a moment later.
        usage = until(lambda: (box.stats().memory_bytes or 0) > 60 * MIB and box.stats())
        assert 1 <= usage.pids < 20
        assert usage.disk_bytes >= MIB


# --- Requiring --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["memory", "pids", "cpus", "disk", "network"])
def test_requiring_what_is_or_is_not_enforced(home, name):
    """require= refuses, before anything starts, what is not enforced here, and accepts what is."""
    limits = Limits(cpus=0.5)
    how = how_kept(home, limits)[name]
    if how == "enforced":
        with Sandbox(home=home, limits=limits, require=(name,)) as box:
            assert box.exec("true").ok
            states = {state.name: state.how for state in box.describe().limits}
            assert states.get(name, "enforced") == "enforced"
    else:
        with pytest.raises(CapabilityError, match=name) as caught:
            Sandbox(home=home, limits=limits, require=(name,))
        assert caught.value.hint
    expected = {
        "memory": "enforced" if os.geteuid() == 0 else "watched",
        "disk": "watched",
        "network": "enforced",
        "pids": "enforced",
    }
    if name != "memory" or {f.name: f.ok for f in home.doctor().findings}["cgroups"]:
        assert how == expected.get(name, how)


@pytest.mark.parametrize("wrong", [("memroy",), "ram", ("memory", "")])
def test_requiring_what_does_not_exist(home, wrong):
    """A name that is no limit is a mistake of the call, also beside good ones."""
    limits = Limits(memory=None) if wrong[0] == "memory" else Limits()
    with pytest.raises((UsageError, CapabilityError)) as caught:
        Sandbox(home=home, limits=limits, require=wrong)
    assert isinstance(caught.value, UsageError) or wrong[0] == "memory"


def test_requiring_what_has_no_limit(home):
    """What was set to None is not enforced, so it cannot be required."""
    with pytest.raises(CapabilityError):
        Sandbox(home=home, limits=Limits(pids=None), require=("pids",))
