"""The seccomp profile, checked by a BPF interpreter for both machines and by this host's kernel."""

from __future__ import annotations

import json
import platform
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sandboxsdk.errors import CapabilityError
from sandboxsdk.runtime.seccomp import (
    MACHINES,
    RULES,
    AnyBit,
    profile,
)
from sandboxsdk.runtime.syscall_numbers import NEWEST, NUMBERS

Arguments = tuple[int, ...]
Probe = tuple[str | int, Arguments, int]

# Written again from linux/seccomp.h, linux/audit.h and errno.h, so that a slip in the module shows.
KILL, ALLOW = 0x8000_0000, 0x7FFF_0000
EPERM, ENOSYS, EAFNOSUPPORT = 0x5_0001, 0x5_0026, 0x5_0061
CONVENTIONS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
GARBAGE = 0xFFFF_FFFF_FFFF_FFFF  # as an argument never valid: no pointer, no descriptor, no flags
HIGH = 1 << 32

# Calls that are refused whatever their arguments are. Garbage keeps them harmless even for root and
# even without the filter, and the kernel itself would then answer EFAULT, EBADF or EINVAL.
REFUSED = """
    add_key request_key keyctl bpf perf_event_open userfaultfd fanotify_init lookup_dcookie syslog
    open_by_handle_at name_to_handle_at mount umount2 pivot_root chroot open_tree open_tree_attr
    move_mount mount_setattr fsopen fsconfig fsmount fspick setns kexec_load kexec_file_load
    init_module finit_module delete_module reboot swapon swapoff acct quotactl quotactl_fd
    settimeofday clock_settime clock_adjtime adjtimex iopl ioperm modify_ldt vhangup nfsservctl
    process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp mbind migrate_pages
    move_pages set_mempolicy set_mempolicy_home_node sethostname setdomainname uselib ustat sysfs
    _sysctl
"""
ABSENT = "clone3 openat2 io_uring_setup io_uring_enter io_uring_register memfd_secret"
NAMESPACES = {
    "mount": 0x20000,
    "cgroup": 0x2000000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
CLONE_SIGHAND = 0x800  # without CLONE_VM the kernel answers EINVAL, so nothing is ever cloned
NOWHERE = GARBAGE  # a path that is no path: EFAULT


def probes() -> Iterator[Probe]:
    """What is refused and what is not, written by hand and not from the rules."""
    yield from ((name, (GARBAGE,) * 6, EPERM) for name in REFUSED.split())
    yield from ((name, (GARBAGE,) * 6, ENOSYS) for name in ABSENT.split())
    for number in (NEWEST + 1, 512, 547, 100_000, 0x4000_0000, 0x4000_0000 | 39, 0xFFFF_FFFF):
        yield number, (GARBAGE,) * 6, ENOSYS

    for flag in NAMESPACES.values():
        yield "unshare", (flag,), EPERM
        yield "unshare", (flag | 0x200,), EPERM
        yield "clone", (flag | CLONE_SIGHAND,), EPERM
    yield "unshare", (0x80,), EPERM
    yield "unshare", (0x200,), ALLOW  # CLONE_FS
    yield "unshare", (0x7F,), ALLOW  # bits that mean nothing: the kernel's to answer
    yield "clone", (CLONE_SIGHAND | 0x80 | 17,), ALLOW

    for mode, verdict in ((0o4755, EPERM), (0o2755, EPERM), (0o6000, EPERM), (0o1777, ALLOW)):
        yield "chmod", (NOWHERE, mode), verdict
        yield "fchmod", (GARBAGE, mode), verdict
        yield "creat", (NOWHERE, mode), verdict
        yield "mknod", (NOWHERE, 0o100000 | mode, 0), verdict
        yield "fchmodat", (GARBAGE, NOWHERE, mode), verdict
        yield "fchmodat2", (GARBAGE, NOWHERE, mode, 0), verdict
        yield "mknodat", (GARBAGE, NOWHERE, 0o100000 | mode, 0), verdict
        for flags in (0o100, 0o1101, 0o20200000, 0o20000000, HIGH | 0o100):
            yield "open", (NOWHERE, flags, mode), verdict
            yield "openat", (GARBAGE, NOWHERE, flags, mode), verdict
        for flags in (0o1, 0o200000, 0o2000000, GARBAGE & ~0o20000100):
            yield "open", (NOWHERE, flags, mode), ALLOW
            yield "openat", (GARBAGE, NOWHERE, flags, mode), ALLOW
    yield "open", (NOWHERE, 0, GARBAGE), ALLOW
    yield "openat", (GARBAGE, NOWHERE, 0, GARBAGE), ALLOW

    for command in (0x5412, 0x541C, HIGH | 0x5412, GARBAGE - 0xFFFF_FFFF | 0x541C):
        yield "ioctl", (GARBAGE, command, 0), EPERM
    yield "ioctl", (GARBAGE, 0x5413, 0), ALLOW

    yield "personality", (0,), ALLOW
    yield "personality", (0xFFFF_FFFF,), ALLOW
    yield "personality", (GARBAGE,), ALLOW
    for persona in (8, 0x40000, 0x400000):
        yield "personality", (persona,), EPERM


def socket_probes() -> Iterator[Probe]:
    """Which kinds of sockets may be made, written by hand too."""
    for family in (0, 3, 4, 9, 15, 17, 29, 31, 38, 40, 44, 45):
        yield "socket", (family, 1, 0), EAFNOSUPPORT
        yield "socketpair", (family, 1, 0, NOWHERE), EAFNOSUPPORT
    for family in (1, 2, 10, 16, HIGH | 1):
        yield "socket", (family, 2, 0), ALLOW
    for family in (2, 10, 16):
        yield "socketpair", (family, 1, 0, NOWHERE), EAFNOSUPPORT
    yield "socketpair", (1, 1, 0, NOWHERE), ALLOW
    for protocol in (2, 4, 9, 12, 15, 16):
        yield "socket", (16, 3, protocol), EAFNOSUPPORT
    yield "socket", (16, 3 | 0o2000000, HIGH), ALLOW
    for family in (2, 10):
        yield "socket", (family, 3 | 0o2000000, 1), EPERM
        yield "socket", (family, 10, 0x300), EPERM


PROBES = (*probes(), *socket_probes())
# Calls that the probes name and that have no rule would have no number.
assert {name for name, _, _ in PROBES if isinstance(name, str)} == set(NUMBERS)


def number_of(name: str | int, machine: str) -> int | None:
    """Return a call's number on a machine; None where that machine does not have it."""
    if isinstance(name, int):
        return name
    return NUMBERS[name][list(MACHINES).index(machine)]


def instructions(program: bytes) -> list[tuple[int, int, int, int]]:
    """Unpack a program into (code, jump if true, jump if false, constant)."""
    return list(struct.iter_unpack("<HBBI", program))


def run(program: bytes, convention: int, number: int, arguments: Arguments) -> tuple[int, int]:
    """Interpret classic BPF over a struct seccomp_data: (what it returns, instructions taken)."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<IIQ6Q", number, convention, 0, *padded)
    code = instructions(program)
    place = accumulator = taken = 0
    while True:
        operation, if_true, if_false, constant = code[place]
        place += 1
        taken += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, constant)
            case 0x54:
                accumulator &= constant
            case 0x15:
                place += if_true if accumulator == constant else if_false
            case 0x35:
                place += if_true if accumulator >= constant else if_false
            case 0x45:
                place += if_true if accumulator & constant else if_false
            case 0x06:
                return constant, taken
            case _:
                pytest.fail(f"unexpected instruction {operation:#x}")


def reference(machine: str, convention: int, number: int, arguments: Arguments) -> int:
    """Read the rule list the slow and plain way."""
    if convention != CONVENTIONS[machine]:
        return KILL
    if number > NEWEST:
        return ENOSYS
    for rule in RULES:
        if all(number_of(name, machine) != number for name in rule.names.split()):
            continue
        for test in rule.tests:
            value = arguments[test.arg] % HIGH
            if isinstance(test, AnyBit):
                holds = value & test.mask != 0
            else:
                holds = value & test.mask in test.values
            if not holds:
                break
        else:
            return rule.verdict
    return ALLOW


each_machine = pytest.mark.parametrize("machine", list(CONVENTIONS))


@each_machine
def test_every_probe_gets_the_verdict_of_the_policy(machine: str) -> None:
    """Each call of the hand-written table gets its verdict on both machines."""
    program = profile(machine)
    wrong: list[Any] = []
    for name, arguments, expected in PROBES:
        number = number_of(name, machine)
        if number is not None:
            verdict, _ = run(program, CONVENTIONS[machine], number, arguments)
            if verdict != expected:
                wrong.append((name, arguments, hex(verdict), hex(expected)))
    assert wrong == []


INTERESTING = sorted(
    {value for _, arguments, _ in PROBES for value in arguments}
    | {value ^ bit for _, arguments, _ in PROBES for value in arguments for bit in (1, 2, HIGH)}
)
any_argument = st.sampled_from(INTERESTING) | st.integers(0, GARBAGE)
any_number = (
    st.sampled_from([n for pair in NUMBERS.values() for n in pair if n is not None])
    | st.integers(0, NEWEST + 3)
    | st.integers(0, HIGH - 1)
)


@given(
    machine=st.sampled_from(list(CONVENTIONS)),
    convention=st.sampled_from([*CONVENTIONS.values()]) | st.integers(0, HIGH - 1),
    number=any_number,
    arguments=st.tuples(*[any_argument] * 6),
)
@example(machine="x86_64", convention=0x40000003, number=20, arguments=(0,) * 6)
@example(machine="aarch64", convention=0x40000028, number=20, arguments=(0,) * 6)
@settings(deadline=None, max_examples=500)
def test_program_and_rules_agree(
    machine: str, convention: int, number: int, arguments: Arguments
) -> None:
    """The compiled program decides every call as the rule list does."""
    verdict, _ = run(profile(machine), convention, number, arguments)
    assert verdict == reference(machine, convention, number, arguments)


@each_machine
@pytest.mark.parametrize("argument", [0, 1, 0o6777, GARBAGE])
def test_every_number_is_decided_as_the_rules_say(machine: str, argument: int) -> None:
    """No number between two others falls into the wrong piece of the search."""
    program, convention, arguments = profile(machine), CONVENTIONS[machine], (argument,) * 6
    for number in range(NEWEST + 100):
        verdict, _ = run(program, convention, number, arguments)
        assert verdict == reference(machine, convention, number, arguments), number


@each_machine
def test_program_is_short_for_every_call(machine: str) -> None:
    """A program fits the kernel's limit, and no call takes more than 24 of its instructions."""
    program = profile(machine)
    assert len(program) % 8 == 0
    assert len(program) // 8 <= 4096
    for number in range(NEWEST + 2):
        for argument in (0, 2, 16, 0o6777, GARBAGE):
            _, taken = run(program, CONVENTIONS[machine], number, (argument,) * 6)
            assert taken <= 24, number


@each_machine
def test_kernel_can_prove_which_calls_are_always_allowed(machine: str) -> None:
    """Calls without a rule are decided by number alone, in the instructions the kernel follows."""
    code = instructions(profile(machine))
    # seccomp_is_const_allow() of the kernel follows these, and any AND with a constant.
    assert {operation for operation, *_ in code} <= {0x06, 0x15, 0x20, 0x35, 0x45, 0x54}
    named = {number_of(name, machine) for name in NUMBERS}
    for number in set(range(NEWEST + 1)) - named:
        place = loaded = 0
        while code[place][0] != 0x06:
            operation, if_true, if_false, constant = code[place]
            place += 1
            if operation == 0x20:
                assert constant in (0, 4), number
                loaded = number if constant == 0 else CONVENTIONS[machine]
            elif operation == 0x15:
                place += if_true if loaded == constant else if_false
            else:
                assert operation == 0x35
                place += if_true if loaded >= constant else if_false
        assert code[place][3] == ALLOW, number


@pytest.mark.parametrize("machine", ["riscv64", "i686", "aarch64_be", ""])
def test_unknown_machine_is_refused_by_name(machine: str) -> None:
    """A machine without a profile is a typed error that names it."""
    with pytest.raises(CapabilityError, match=machine or "seccomp") as caught:
        profile(machine)
    assert caught.value.hint


def test_table_has_exactly_the_calls_that_the_rules_name() -> None:
    """The table of numbers carries nothing that no rule asks for, and each call has a number."""
    assert set(NUMBERS) == {name for rule in RULES for name in rule.names.split()}
    assert all(pair != (None, None) for pair in NUMBERS.values())
    assert all(n is None or 0 <= n <= NEWEST for pair in NUMBERS.values() for n in pair)


def test_numbers_newer_than_common_headers_are_right() -> None:
    """Calls that few installed headers know have the numbers that Linux 6.6 and later gave them."""
    assert NUMBERS["fchmodat2"] == (452, 452)
    assert NUMBERS["open_tree_attr"] == (467, 467)
    assert NEWEST == 469


@pytest.mark.parametrize(
    "machine,header",
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "/usr/include/asm-generic/unistd.h"),
    ],
)
def test_numbers_are_those_of_the_kernel_headers(machine: str, header: str) -> None:
    """Where the kernel's headers are installed, every number that they know is ours."""
    if not Path(header).exists():
        pytest.skip(f"no kernel headers at {header}")
    pattern = re.compile(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", re.MULTILINE)
    known = {name: int(number) for name, number in pattern.findall(Path(header).read_text())}
    for name in NUMBERS:
        ours = number_of(name, machine)
        if name in known:
            assert ours == known[name], name
        else:
            # Either the machine never had it, or these headers are older than the call.
            assert ours is None or ours > max(known.values()), name


# The same probes against the kernel. The child installs the filter on itself, as any process may
# after PR_SET_NO_NEW_PRIVS; root keeps its capabilities, so what root is refused is refused by us.
CHILD = r"""
import ctypes, json, os, sys
order = json.load(sys.stdin)
libc = ctypes.CDLL(None, use_errno=True)
os.setsid()


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


def call(number, arguments):
    held = [a.encode() if isinstance(a, str) else a for a in arguments]
    words = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_ulong(a) for a in held]
    ctypes.set_errno(0)
    value = libc.syscall(ctypes.c_long(number), *words)
    return [value, ctypes.get_errno()]


code = ctypes.create_string_buffer(bytes.fromhex(order["program"]))
if order["program"]:
    filtered = Program(len(bytes.fromhex(order["program"])) // 8, ctypes.addressof(code))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(filtered), 0, 0) == 0, ctypes.get_errno()
if order["machine_code"]:
    import mmap
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex(order["machine_code"]))
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
answers = [call(number, arguments) for number, arguments in order["calls"]]
answers.append(os.waitstatus_to_exitcode(os.system("exit 3")))
json.dump(answers, sys.stdout)
"""

HOST = platform.machine()
on_this_kernel = pytest.mark.skipif(
    sys.platform != "linux" or HOST not in CONVENTIONS,
    reason="needs Linux on a machine that a profile exists for",
)


def filtered(
    calls: list[tuple[int, list[Any]]], *, machine_code: str = "", program: bytes | None = None
) -> subprocess.CompletedProcess[str]:
    """Make system calls in a child under the profile; each answer is [value, errno]."""
    order = {
        "program": (profile(HOST) if program is None else program).hex(),
        "calls": calls,
        "machine_code": machine_code,
    }
    return subprocess.run(
        [sys.executable, "-I", "-c", CHILD],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def answers(calls: list[tuple[int, list[Any]]]) -> list[list[int]]:
    """Return [value, errno] of each call made under the profile, in order."""
    done = filtered(calls)
    assert done.returncode == 0, done.stderr
    made: list[Any] = json.loads(done.stdout)
    assert made.pop() == 3  # a fork, an exec and a wait still work
    return made


@on_this_kernel
def test_kernel_gives_every_probe_its_verdict() -> None:
    """The running kernel refuses what the table refuses, also when root asks."""
    asked = [
        (name, number, arguments, expected)
        for name, arguments, expected in PROBES
        if (number := number_of(name, HOST)) is not None
    ]
    made = answers([(number, list(arguments)) for _, number, arguments, _ in asked])
    for (name, _, arguments, expected), (value, error) in zip(asked, made, strict=True):
        if expected == ALLOW:
            # An old kernel may not have the call, and an IPv6 or a netlink socket may be missing.
            assert error != 1, (name, arguments, value, error)
        else:
            assert (value, error) == (-1, expected & 0xFFFF), (name, arguments)


@on_this_kernel
def test_set_id_bits_cannot_be_given_to_real_files(tmp_path: Path) -> None:
    """No way of making a file leaves set-id bits on it, and the same ways without them work."""
    numbers = {name: number_of(name, HOST) for name in NUMBERS}
    here = 0xFFFF_FF9C  # AT_FDCWD
    old, new, scratch = (str(tmp_path / name) for name in ("old", "new", "scratch"))
    Path(old).touch(mode=0o600)

    def openat(path: str, flags: int, mode: int) -> tuple[int, list[Any]]:
        return numbers["openat"] or 0, [here, path, flags, mode]

    def fchmodat(mode: int) -> tuple[int, list[Any]]:
        return numbers["fchmodat"] or 0, [here, old, mode]

    def mknodat(path: str, mode: int) -> tuple[int, list[Any]]:
        return numbers["mknodat"] or 0, [here, path, 0o100000 | mode, 0]

    made = answers(
        [
            fchmodat(0o4755),
            fchmodat(0o2755),
            (numbers["fchmodat2"] or 0, [here, old, 0o4755, 0]),
            openat(new, 0o101, 0o4755),
            openat(str(tmp_path), 0o20200000 | 2, 0o4755),
            mknodat(scratch, 0o4755),
            fchmodat(0o700),
            openat(old, 0, 0o6777),
            openat(new, 0o101, 0o640),
            mknodat(scratch, 0o600),
        ]
    )
    assert [error for _, error in made] == [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert all(entry.stat().st_mode & 0o6000 == 0 for entry in tmp_path.iterdir())
    assert Path(old).stat().st_mode & 0o7777 == 0o700


@on_this_kernel
def test_kernel_itself_keeps_set_id_bits_from_new_directories(tmp_path: Path) -> None:
    """The mode of mkdir needs no rule, because the kernel ignores its set-id bits."""
    mkdirat = {"x86_64": 258, "aarch64": 34}[HOST]
    ((value, error),) = answers([(mkdirat, [0xFFFF_FF9C, str(tmp_path / "made"), 0o6755])])
    assert (value, error) == (0, 0)
    assert (tmp_path / "made").stat().st_mode & 0o6000 == 0


@on_this_kernel
@pytest.mark.skipif(HOST != "x86_64", reason="int 0x80 exists on x86_64 only")
def test_calls_of_another_convention_kill_the_process() -> None:
    """A call through int 0x80 ends the process, where the kernel takes such calls at all."""
    get_pid = "b814000000cd80c3"  # mov eax, 20; int 0x80; ret
    unfiltered = filtered([], machine_code=get_pid, program=b"")
    if unfiltered.returncode != 0:
        pytest.skip("this kernel takes no 32-bit calls")
    assert filtered([], machine_code=get_pid).returncode == -signal.SIGSYS
