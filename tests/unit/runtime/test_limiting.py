"""Which limit is kept by what: rlimits are real, and what is said of them is true."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sandboxsdk
from sandboxsdk.model import Limits
from sandboxsdk.runtime.hierarchy import Support
from sandboxsdk.runtime.limiting import rlimits, states

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(sandboxsdk.__file__)))
NONE = Support(0, frozenset(), "not permitted", True)
FULL = Support(1, frozenset(("memory", "pids", "cpu", "freezer")), "", True, (), True)
MIB = 1024**2
ORDER = ("memory", "cpus", "pids", "disk", "wall_time", "open_files")


def by_name(limits: Limits, support: Support, **options):
    found = states(limits, support, **options)
    assert tuple(state.name for state in found) == ORDER
    return {state.name: state for state in found}


def test_a_cgroup_spares_the_rlimits():
    """What a cgroup keeps gets no rlimit; what it does not keep gets one."""
    assert {name for name, _value in rlimits(Limits(), FULL)} == {
        resource.RLIMIT_CORE,
        resource.RLIMIT_NOFILE,
        resource.RLIMIT_FSIZE,
    }
    without = dict(rlimits(Limits(memory=MIB, pids=7, disk=2 * MIB, open_files=20), NONE))
    assert without[resource.RLIMIT_CORE] == 0
    assert without[resource.RLIMIT_DATA] == MIB
    assert without[resource.RLIMIT_FSIZE] == 2 * MIB
    assert without[resource.RLIMIT_NOFILE] == 20
    assert without[resource.RLIMIT_NPROC] == 7


def test_a_lifted_limit_is_no_rlimit():
    """None leaves memory, pids and disk to the host, and says so."""
    lifted = Limits(memory=None, cpus=None, pids=None, disk=None)
    assert {name for name, _value in rlimits(lifted, NONE)} == {
        resource.RLIMIT_CORE,
        resource.RLIMIT_NOFILE,
    }
    for support in (NONE, FULL):
        found = by_name(lifted, support)
        assert {name for name, state in found.items() if state.how == "unlimited"} == {
            "memory",
            "cpus",
            "pids",
            "disk",
            "wall_time",
        }


def test_what_is_said_with_a_cgroup():
    """With every controller memory, cpus and pids are enforced by it; the disk is only watched."""
    found = by_name(Limits(cpus=0.5, wall_time=3), FULL)
    for name in ("memory", "cpus", "pids"):
        assert (found[name].how, found[name].by) == ("enforced", "cgroup v1")
    assert found["disk"].how == "watched"
    assert found["wall_time"].how == "enforced"


def test_what_is_said_without_a_cgroup():
    """Without one, memory is only watched, and a share of the processors is not kept at all."""
    found = by_name(Limits(cpus=0.5), NONE)
    assert found["memory"].how == "watched"
    assert found["pids"].how == "enforced"
    assert found["pids"].by.startswith("RLIMIT_NPROC")
    assert found["cpus"].how == "unsupported"
    assert by_name(Limits(cpus=4096), NONE)["cpus"].how == "enforced"
    assert by_name(Limits(), NONE, disk_watched=False)["disk"].how == "unsupported"


def test_the_untested_version_says_so():
    """Version 2 calls itself untested wherever it is named; a missing controller is made up for."""
    second = Support(2, frozenset(("memory", "freezer")), "", False, (), True)
    found = by_name(Limits(), second)
    assert "untested" in found["memory"].by
    assert found["pids"].by.startswith("RLIMIT_NPROC")


@given(st.integers(min_value=1, max_value=2**31 - 1))
def test_descriptors_are_never_promised_beyond_the_callers_own(wanted):
    """The limit of descriptors that is told is the one that is set, within what we may give."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    told = by_name(Limits(open_files=wanted), NONE)["open_files"].value
    assert told == (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))
    assert (resource.RLIMIT_NOFILE, told) in rlimits(Limits(open_files=wanted), NONE)


def run_limited(code: str, limits: Limits) -> subprocess.CompletedProcess[str]:
    setting = "import resource, sys\n" + "".join(
        f"resource.setrlimit({name}, ({value}, {value}))\n"
        for name, value in rlimits(limits, NONE)
        if name != resource.RLIMIT_NPROC
    )
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", setting + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_one_process_cannot_take_more_memory_or_disk(tmp_path):
    """Without a cgroup, one allocation or file beyond the limit fails in the process itself."""
    assert "MemoryError" in run_limited("bytearray(300 * 1024**2)", Limits(memory=100 * MIB)).stderr
    code = f"open({str(tmp_path / 'x')!r}, 'wb', 0).write(bytes(3000)); import os"
    done = run_limited(
        code + f"\nopen({str(tmp_path / 'x')!r}, 'ab', 0).write(b'y')", Limits(disk=2000)
    )
    assert "File too large" in done.stderr
    assert (tmp_path / "x").stat().st_size == 2000


# A user namespace of our own first, as the holder has, then another, as bubblewrap makes.
BOMB = """
import os, resource, sys
sys.path[:0] = sys.argv[1:]
from sandboxsdk import syscalls as sc
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(54321, 54321, 54321); os.setresuid(54321, 54321, 54321)
    sc.prctl(sc.PR_SET_DUMPABLE, 1)
strangers = []
ours, theirs = os.pipe()
def stay():
    os.close(theirs)
    os.read(ours, 1)
    os._exit(0)
for _ in range(60):
    if os.fork() == 0:
        stay()
def enter():
    uid, gid = os.getuid(), os.getgid()
    sc.unshare(sc.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"),
                       ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
try:
    enter()
except OSError as error:
    print("refused", error)
    sys.exit(0)
if os.fork() == 0:
    resource.setrlimit(resource.RLIMIT_NPROC, (30, 30))
    enter()
    count = 0
    try:
        while count < 300:
            if os.fork() == 0:
                stay()
            count += 1
    except OSError:
        pass
    print(count, flush=True)
    os._exit(0)
os.wait()
os.close(theirs)
"""


def test_the_kernel_counts_processes_for_each_box():
    """A fork bomb of an ordinary user's box ends at the limit, whatever else the user runs."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", BOMB, ROOT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.stdout.startswith("refused"):
        pytest.skip(f"no user namespaces here: {done.stdout.strip()}")
    assert done.stderr == ""
    assert 20 <= int(done.stdout) <= 29
