"""Limits by cgroup, with real cgroups and real processes.

To make cgroups of version 1 is for root alone: without that right those tests skip.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sandboxsdk
from sandboxsdk.errors import CapabilityError, HostRefused, UsageError
from sandboxsdk.ids import new_id
from sandboxsdk.model import Limits
from sandboxsdk.runtime.cgroup import (
    BoxCgroup,
    Support,
    _quota_and_period,
    create_box,
    probe,
    sweep,
)
from sandboxsdk.runtime.hierarchy import find_places

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(sandboxsdk.__file__)))
MIB = 1024**2
SLEEP = "import time; print('ready', flush=True); time.sleep(600)"


@pytest.fixture
def support() -> Support:
    found = probe()
    if found.version != 1:
        pytest.skip(f"no cgroup v1 may be made here: {found.reason}")
    return found


@pytest.fixture
def boxes(support) -> Iterator[Callable[..., BoxCgroup]]:
    made = []

    def make(**limits) -> BoxCgroup:
        box = create_box(support, new_id(), Limits(**limits))
        made.append(box)
        return box

    yield make
    for box in made:
        with contextlib.suppress(HostRefused):
            box.kill()
        box.remove()


@contextlib.contextmanager
def running(box: BoxCgroup, code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python code in the box; it has joined before its first line."""
    descriptors = box.open_procs()
    join = f"import os\nfor fd in {descriptors}: os.write(fd, b'0'); os.close(fd)\n"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", join + code, *arguments],
        pass_fds=descriptors,
        stdout=subprocess.PIPE,
        text=True,
    )
    for descriptor in descriptors:
        os.close(descriptor)
    try:
        yield process
    finally:
        box.thaw()
        process.kill()
        process.communicate()


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def file(box: BoxCgroup, controller: str, name: str) -> str:
    with open(f"{box._places[controller]}/{name}", encoding="ascii") as opened:
        return opened.read()


# Finding the hierarchies

V1 = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"


@pytest.mark.parametrize(
    "mountinfo,own,expected",
    [
        pytest.param(
            V1 + "33 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9"
            " - cgroup cgroup rw,cpu,cpuacct\n",
            "3:cpu,cpuacct:/user.slice\n0::/x",
            (dict.fromkeys(("cpu", "cpuacct"), "/sys/fs/cgroup/cpu,cpuacct/user.slice"), None),
            id="two controllers on one mount",
        ),
        pytest.param(
            "9 1 0:4 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            "4:memory:/docker/abc/job",
            ({"memory": "/sys/fs/cgroup/memory/job"}, None),
            id="a bind mount of a part of the hierarchy",
        ),
        pytest.param(
            "9 1 0:4 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            "4:memory:/docker/abcdef",
            ({}, None),
            id="a bind mount of another part, whose name begins alike",
        ),
        pytest.param(
            "9 1 0:4 /../.. /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n",
            "4:pids:/",
            ({}, None),
            id="a mount from outside of our cgroup namespace",
        ),
        pytest.param(
            "9 1 0:4 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n",
            "0::/user.slice/user-1000.slice/session-2.scope",
            (
                {},
                ("/sys/fs/cgroup/user.slice/user-1000.slice/session-2.scope", "/sys/fs/cgroup"),
            ),
            id="version 2 alone",
        ),
        pytest.param(
            V1 + "9 1 0:4 / /sys/fs/cgroup/a\\040b rw - cgroup cgroup rw,freezer\n"
            "10 1 0:5 / /mnt/memory rw - cgroup cgroup rw,memory\n",
            "4:freezer:/x:y\n5:memory:/",
            ({"freezer": "/sys/fs/cgroup/a b/x:y"}, None),
            id="a blank in a mount point, a colon in a path, a mount elsewhere",
        ),
    ],
)
def test_places_are_found_through_mounts_and_namespaces(mountinfo, own, expected):
    """Our own cgroup is found where it is mounted, and not guessed where it is not."""
    assert tuple(find_places(mountinfo, own, root="/sys/fs/cgroup")) == expected


def test_a_probe_never_raises_and_says_why(tmp_path):
    """Whoever probes gets a usable version or a reason, also where there is no cgroup at all."""
    found = probe()
    assert found.version or found.reason
    assert probe(str(tmp_path)).version == 0
    nowhere = probe(proc=str(tmp_path))
    assert (nowhere.version, nowhere.controllers) == (0, frozenset())
    assert "cannot be found" in nowhere.reason


def test_without_permission_no_box_is_made():
    """Where nothing is permitted, making a box is a typed error that carries the reason."""
    with pytest.raises(CapabilityError, match="because I say so"):
        create_box(Support(0, frozenset(), "because I say so", True), "box", Limits())


def test_a_box_id_cannot_lead_elsewhere():
    """An id with a slash or dots is refused before anything is made."""
    with pytest.raises(UsageError):
        create_box(Support(1, frozenset(), "", True), "../x", Limits())


@given(st.floats(min_value=0.001, max_value=4096))
def test_a_share_of_processors_fits_the_kernels_ranges(cpus):
    """Any share becomes a quota and a period that the kernel takes, and means what was asked."""
    quota, period = _quota_and_period(cpus)
    assert quota >= 1000
    assert 1000 <= period <= 1_000_000
    assert quota / period == pytest.approx(cpus, rel=0.02)


# Limits


def test_a_probe_leaves_nothing_and_chooses_what_works(support):
    """On a hybrid host the version with the controllers is chosen, and it says what it limits."""
    assert support.controllers & {"memory", "pids"}
    assert support.tested
    by = {state.name: state for state in support.states(Limits(cpus=None))}
    assert by["memory"].how == "enforced"
    assert by["cpus"].how == "unlimited"


def test_memory_beyond_the_limit_is_killed_and_counted(boxes):
    """A process that takes more memory than the box may have dies, and the counter says so."""
    box = boxes(memory=32 * MIB)
    with running(
        box, "b = bytearray(256 * 1024**2)\nfor i in range(0, len(b), 4096): b[i] = 1"
    ) as hog:
        assert hog.wait(60) == -signal.SIGKILL
    assert box.counters().oom_kills == 1
    usage = box.usage()
    assert usage.oom_kills == 1
    assert 0 < usage.memory_bytes_max <= 32 * MIB
    assert usage.source == "cgroup"


def test_a_fork_bomb_stays_within_the_limit(boxes):
    """Forking stops at the limit, and the refusals are counted."""
    box = boxes(pids=20)
    code = """
ours, theirs = os.pipe()
count = 0
try:
    while count < 500:
        if os.fork() == 0:
            os.close(theirs)
            os.read(ours, 1)
            os._exit(0)
        count += 1
except OSError:
    pass
print(count, flush=True)
os.close(theirs)
"""
    with running(box, code) as bomb:
        assert bomb.communicate(timeout=60)[0].strip() == "19"
    assert box.counters().pids_refused >= 1


def test_a_busy_loop_is_throttled(boxes):
    """A process that wants a whole processor is stopped when its share is used up."""
    box = boxes(cpus=0.1)
    with running(box, "while True: pass"):
        until(lambda: "nr_throttled 0\n" not in file(box, "cpu", "cpu.stat"))
    assert box.usage().cpu_seconds is None or box.usage().cpu_seconds > 0


def test_a_frozen_box_stands_still_and_goes_on(boxes):
    """Nothing changes between freeze and thaw; a process that is frozen can be killed after all."""
    box = boxes()
    with tempfile.TemporaryFile() as shared:
        shared.truncate(4096)
        view = mmap.mmap(shared.fileno(), 4096)
        code = (
            "import mmap\n"
            f"m = mmap.mmap(os.open('/proc/{os.getpid()}/fd/{shared.fileno()}', os.O_RDWR), 4096)\n"
            "n = 0\nwhile True:\n n += 1\n m[:8] = n.to_bytes(8, 'little')"
        )
        with running(box, code) as process:
            until(lambda: view[:8] != bytes(8))
            box.freeze()
            before = view[:8]
            time.sleep(0.05)
            assert view[:8] == before
            assert box.usage().pids == 1
            box.thaw()
            until(lambda: view[:8] != before)
            box.freeze()
            box.kill()
            assert process.wait(30) == -signal.SIGKILL
        view.close()


def test_limits_change_while_the_box_runs(boxes):
    """Limits grow and shrink live; one that the kernel refuses changes none of them."""
    box = boxes(memory=256 * MIB, pids=30, cpus=0.5)
    code = "b = bytearray(64 * 1024**2)\nfor i in range(0, len(b), 4096): b[i] = 1\n" + SLEEP
    with running(box, code) as process:
        assert process.stdout.readline() == "ready\n"
        for size in (512, 128, 1024):
            box.update(Limits(memory=size * MIB, pids=40, cpus=0.005))
            assert int(file(box, "memory", "memory.limit_in_bytes")) == size * MIB
        assert file(box, "pids", "pids.max") == "40\n"
        assert file(box, "cpu", "cpu.cfs_quota_us") == "1000\n"
        with pytest.raises(HostRefused, match="end something"):
            box.update(Limits(memory=8 * MIB, pids=50))
        assert int(file(box, "memory", "memory.limit_in_bytes")) == 1024 * MIB
        if box.support.swap_counted:
            assert int(file(box, "memory", "memory.memsw.limit_in_bytes")) == 1024 * MIB
        assert file(box, "pids", "pids.max") == "40\n"
        box.update(Limits(memory=None, pids=None, cpus=None))
        assert file(box, "pids", "pids.max") == "max\n"
        assert file(box, "cpu", "cpu.cfs_quota_us") == "-1\n"
        assert process.poll() is None


def test_what_cannot_be_made_whole_is_not_made(support):
    """When one hierarchy refuses, the directories made in the others are gone again."""
    broken = msgspec.structs.replace(support, parents=(*support.parents, ("x", "/proc/nowhere")))
    name = new_id()
    with pytest.raises(HostRefused):
        create_box(broken, name, Limits())
    for _controller, parent in support.parents:
        assert not os.path.exists(f"{parent}/sandboxsdk-{name}")


def test_one_id_is_one_box(support, boxes):
    """A second box with the id of a live one is refused; the first keeps its directories."""
    box = boxes()
    name = os.path.basename(box.paths[0]).removeprefix("sandboxsdk-")
    with pytest.raises(HostRefused, match="an id of its own"):
        create_box(support, name, Limits())
    assert all(os.path.isdir(path) for path in box.paths)


def test_a_removed_box_tells_instead_of_crashing(boxes):
    """Removing twice is fine, and reading a box that is gone is a typed error."""
    box = boxes()
    for path in box.paths:
        os.rmdir(path)
    with pytest.raises(HostRefused, match="gone"):
        box.counters()
    box.remove()
    box.remove()
    assert box.open_procs() == []


def test_a_box_with_processes_is_not_removed(boxes):
    """Removing a box in which something lives is refused, and works when it is dead."""
    box = boxes()
    with running(box, SLEEP) as process:
        process.stdout.readline()
        with pytest.raises(HostRefused):
            box.remove()
    box.remove()
    assert not any(os.path.exists(path) for path in box.paths)


# Sweeping: other workers sweep at the same time, so only the fate of directories is asserted.

MAKER = """
import os, subprocess, sys
sys.path[:0] = sys.argv[2:]
from sandboxsdk.model import Limits
from sandboxsdk.runtime.cgroup import create_box, probe
box = create_box(probe(), sys.argv[1], Limits())
def sleeper(join, keep):
    fds = box.open_procs()
    code = "import os, sys, time\\n"
    if join:
        code += f"for fd in {fds}: os.write(fd, b'0')\\n"
    if not keep:
        code += f"for fd in {fds}: os.close(fd)\\n"
    code += "print(os.getpid(), flush=True)\\ntime.sleep(600)"
    child = subprocess.Popen([sys.executable, '-I', '-S', '-c', code], pass_fds=fds,
                             stdout=subprocess.PIPE)
    return int(child.stdout.readline())
"""


def left_behind(code: str) -> tuple[list[str], int]:
    """Let another process make a box and die; gives its directories and the pid that it printed."""
    name = new_id()
    end = "\nprint(pid, *box.paths, flush=True)\nos._exit(0)"
    done = subprocess.run(
        [sys.executable, "-c", MAKER + code + end, name, ROOT, *sys.path],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    pid, *paths = done.stdout.split()
    return paths, int(pid)


def swept(support: Support, paths: list[str]) -> bool:
    sweep(support)
    return not any(os.path.exists(path) for path in paths)


def test_a_sweep_takes_the_dead_and_leaves_the_living(support, boxes):
    """A box without any process is left while its maker lives; one whose maker died is removed."""
    alive = boxes()
    paths, _pid = left_behind("pid = 0")
    until(lambda: swept(support, paths))
    assert all(os.path.isdir(path) for path in alive.paths)


def test_a_sweep_leaves_processes_alone(support):
    """A box whose maker died stays as long as a process lives in it."""
    paths, pid = left_behind("pid = sleeper(join=True, keep=False)")
    try:
        assert not swept(support, paths)
        assert all(os.path.isdir(path) for path in paths)
    finally:
        os.kill(pid, signal.SIGKILL)
    until(lambda: swept(support, paths))


def test_a_sweep_leaves_a_box_whose_holder_lives(support):
    """A box that has no process now stays as long as somebody holds its descriptors."""
    paths, pid = left_behind("pid = sleeper(join=False, keep=True)")
    try:
        assert not swept(support, paths)
        assert all(os.path.isdir(path) for path in paths)
    finally:
        os.kill(pid, signal.SIGKILL)
    until(lambda: swept(support, paths))


def test_a_sweep_thaws_what_was_killed_while_frozen(support):
    """Processes that were frozen and then killed die when the box is swept."""
    code = "pid = sleeper(join=True, keep=False)\nbox.freeze()\nos.kill(pid, 9)"
    paths, _pid = left_behind(code)
    until(lambda: swept(support, paths))


# Version 2: only what a hierarchy without controllers can show.


def test_version_2_freezes_kills_and_removes():
    """On a hierarchy of version 2 a box freezes, goes on, is killed and is removed."""
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        with open("/proc/self/cgroup", encoding="utf-8") as own:
            place = find_places(mounts.read(), own.read(), root="/sys/fs/cgroup").v2
    if place is None or not os.access(place[0], os.W_OK):
        pytest.skip("no directory of cgroup v2 may be made here")
    support = Support(2, frozenset({"freezer"}), "", False, (("freezer", place[0]),))
    box = create_box(support, new_id(), Limits())
    try:
        with running(box, SLEEP) as process:
            process.stdout.readline()
            box.freeze()
            assert "frozen 1" in file(box, "freezer", "cgroup.events")
            box.thaw()
            assert box.usage().memory_bytes is None
            assert box.usage().cpu_seconds > 0
            assert box.counters().oom_kills == 0
            box.freeze()
            box.kill()
            assert process.wait(30) == -signal.SIGKILL
        assert box.states(Limits())[0].how == "unsupported"
    finally:
        box.remove()
    assert not os.path.exists(box.paths[0])
