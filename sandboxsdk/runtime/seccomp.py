"""Seccomp profile of the bubblewrap runtime: which system calls a guest may make.

One list of rules (data, below) is compiled to the classic BPF program that `bwrap --seccomp FD`
reads, for either machine. Knows nothing of sandboxes, processes or files, and never talks to the
kernel, so a profile for one machine can be built on any other.

Invariants:
- A foreign calling convention kills the process, because its numbers mean other calls.
- A number that is newer than the table answers ENOSYS, and so does every x32 number.
- A call without a rule is allowed. The rules close what a build does not need of the host's kernel;
  namespaces, dropped capabilities and mounts do the rest.
- Arguments are compared by their low 32 bits: of those compared here the kernel reads no more.
- Only plain loads, jumps and an AND are emitted: the kernel can then prove which calls are always
  allowed, and skips the program for these (Linux 5.11 and newer).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache

from sandboxsdk.errors import CapabilityError

from .syscall_numbers import NEWEST, NUMBERS

# Verdicts, with Linux's error numbers: the builder's own system may have others.
KILL = 0x8000_0000
ALLOW = 0x7FFF_0000
EPERM = 0x0005_0000 | 1
ENOSYS = 0x0005_0000 | 38
EAFNOSUPPORT = 0x0005_0000 | 97

_WHOLE_WORD = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class AnyBit:
    """Hold when argument `arg` (0 to 5) has at least one bit of `mask`."""

    arg: int
    mask: int


@dataclass(frozen=True, slots=True)
class OneOf:
    """Hold when argument `arg` (0 to 5), reduced to the bits of `mask`, is one of `values`."""

    arg: int
    values: tuple[int, ...]
    mask: int = _WHOLE_WORD


@dataclass(frozen=True, slots=True)
class Rule:
    """Give `verdict` for the calls in `names` (blank-separated) when every one of `tests` holds.

    The rules of one call are read in order, and the first that holds decides.
    """

    names: str
    verdict: int
    tests: tuple[AnyBit | OneOf, ...] = ()


SET_ID = 0o6000
O_CREAT = 0o100
O_TMPFILE = 0o20000000  # without the O_DIRECTORY that callers add to it
CLONE_NEW = 0x7E02_0000  # NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
CLONE_NEWTIME = 0x80  # for clone() this bit is part of the exit signal
TIOCSTI = 0x5412
TIOCLINUX = 0x541C
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOCK_RAW, SOCK_PACKET, SOCK_TYPE = 3, 10, 0xF  # the last one is the mask without flags
NETLINK_ROUTE = 0
ASK_PERSONALITY = 0xFFFF_FFFF

RULES: tuple[Rule, ...] = (
    # Their arguments lie in memory, where a filter cannot look. ENOSYS makes callers fall back to
    # the calls that it can judge.
    Rule("clone3 openat2 io_uring_setup io_uring_enter io_uring_register", ENOSYS),
    # Memory that not even the host's kernel can read is nothing that a build needs.
    Rule("memfd_secret", ENOSYS),
    # Namespaces: a new one would hand out the capabilities that were taken away.
    Rule("clone", EPERM, (AnyBit(0, CLONE_NEW),)),
    Rule("unshare", EPERM, (AnyBit(0, CLONE_NEW | CLONE_NEWTIME),)),
    Rule("setns", EPERM),
    # Mounts, by the old calls and the new ones; handles reach files outside what is mounted.
    Rule("mount umount2 pivot_root chroot", EPERM),
    Rule("open_tree open_tree_attr move_mount mount_setattr", EPERM),
    Rule("fsopen fsconfig fsmount fspick", EPERM),
    Rule("name_to_handle_at open_by_handle_at", EPERM),
    # Set-id bits: through a bind mount such a file is a set-id file of the host, for every user
    # there. An open that does not create carries garbage as its mode, so its flags are asked first.
    # mkdir needs no rule: the kernel drops these bits itself.
    Rule("chmod fchmod mknod creat", EPERM, (AnyBit(1, SET_ID),)),
    Rule("fchmodat fchmodat2 mknodat", EPERM, (AnyBit(2, SET_ID),)),
    Rule("open", EPERM, (AnyBit(1, O_CREAT | O_TMPFILE), AnyBit(2, SET_ID))),
    Rule("openat", EPERM, (AnyBit(2, O_CREAT | O_TMPFILE), AnyBit(3, SET_ID))),
    # Typing into a terminal that is shared with the host.
    Rule("ioctl", EPERM, (OneOf(1, (TIOCSTI, TIOCLINUX)),)),
    # Sockets: a network namespace does not hold back vsock, alg and much of netlink. SOCK_PACKET
    # of an AF_INET socket is the old name of AF_PACKET.
    Rule(
        "socket",
        EPERM,
        (OneOf(0, (AF_INET, AF_INET6)), OneOf(1, (SOCK_RAW, SOCK_PACKET), SOCK_TYPE)),
    ),
    Rule("socket", ALLOW, (OneOf(0, (AF_UNIX, AF_INET, AF_INET6)),)),
    Rule("socket", ALLOW, (OneOf(0, (AF_NETLINK,)), OneOf(2, (NETLINK_ROUTE,)))),
    Rule("socket", EAFNOSUPPORT),
    Rule("socketpair", ALLOW, (OneOf(0, (AF_UNIX,)),)),
    Rule("socketpair", EAFNOSUPPORT),
    # A session's keyring is inherited, and may hold secrets of the host's user.
    Rule("add_key keyctl request_key", EPERM),
    # Large surfaces with a long list of holes, made for tools that watch a machine.
    Rule("bpf perf_event_open userfaultfd fanotify_init lookup_dcookie syslog", EPERM),
    # Reaching into another process. ptrace stays: debuggers need it, and it cannot leave the box.
    Rule("process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp", EPERM),
    # Placement of memory, also that of others. get_mempolicy only reads, and stays.
    Rule("mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node", EPERM),
    # The machine itself: kernel, modules, swap, clock, name, quota, accounting, ports, terminals.
    Rule("kexec_load kexec_file_load init_module finit_module delete_module reboot", EPERM),
    Rule("swapon swapoff acct quotactl quotactl_fd", EPERM),
    Rule("settimeofday clock_settime clock_adjtime adjtimex", EPERM),
    Rule("sethostname setdomainname vhangup iopl ioperm", EPERM),
    # Old calls: a 16-bit segment table, and what no program of today makes.
    Rule("modify_ldt uselib ustat sysfs _sysctl nfsservctl", EPERM),
    # Asking is allowed, and so is the plain personality; the others weaken address randomisation.
    Rule("personality", ALLOW, (OneOf(0, (0, ASK_PERSONALITY)),)),
    Rule("personality", EPERM),
)

# Column of NUMBERS, and what the kernel calls the machine's own calling convention (AUDIT_ARCH_*).
MACHINES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}


@cache
def profile(machine: str) -> bytes:
    """Build the profile as an array of `struct sock_filter`, as bubblewrap's `--seccomp` reads it.

    Args:
        machine: name of the processor as uname gives it, "x86_64" or "aarch64".

    Raises:
        CapabilityError: no profile is known for this machine.
    """
    if machine not in MACHINES:
        raise CapabilityError(
            wanted=f"seccomp profile for {machine}",
            reason="profiles exist only for " + " and ".join(MACHINES),
            hint="run on one of these machines",
        )
    column, convention = MACHINES[machine]
    program = (
        _instruction(_LOAD_WORD, _CONVENTION),
        _instruction(_IF_EQUAL, convention, yes=1),
        _instruction(_RETURN, KILL),
        _instruction(_LOAD_WORD, _NUMBER),
        *_search(_pieces(column)),
    )
    return b"".join(program)


# The assembler. BPF jumps only forward and counts from the next instruction. So a block is complete
# in itself, blocks are joined from the inside out, and a block's length is the distance over it.
Block = tuple[bytes, ...]

# Instruction codes of linux/bpf_common.h, and offsets in struct seccomp_data.
_LOAD_WORD = 0x20
_KEEP_BITS = 0x54
_IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT = 0x15, 0x35, 0x45
_RETURN = 0x06
_NUMBER, _CONVENTION, _ARGUMENTS = 0, 4, 16


def _instruction(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    """Pack one struct sock_filter; a jump over more than 255 instructions is a struct.error."""
    return struct.pack("<HBBI", code, yes, no, k)


def _pieces(column: int) -> list[tuple[int, Block]]:
    """Cut the numbers into ranges of one decision each: (first number, what decides), ascending."""
    rules: dict[int, list[Rule]] = {}
    for rule in RULES:
        for name in rule.names.split():
            number = NUMBERS[name][column]
            if number is not None:
                rules.setdefault(number, []).append(rule)
    decisions = {number: _decision(of_call) for number, of_call in rules.items()}
    allowed = (_instruction(_RETURN, ALLOW),)
    pieces = [(0, decisions.get(0, allowed))]
    for number in range(1, NEWEST + 1):
        block = decisions.get(number, allowed)
        if block != pieces[-1][1]:
            pieces.append((number, block))
    # The x32 numbers have bit 30 set and -1 is the largest of all, so they lie in this range too.
    pieces.append((NEWEST + 1, (_instruction(_RETURN, ENOSYS),)))
    return pieces


def _search(pieces: list[tuple[int, Block]]) -> Block:
    """Find the piece of the loaded number by halving: about eight jumps for every call."""
    if len(pieces) == 1:
        return pieces[0][1]
    middle = len(pieces) // 2
    low, high = _search(pieces[:middle]), _search(pieces[middle:])
    return (_instruction(_IF_AT_LEAST, pieces[middle][0], yes=len(low)), *low, *high)


def _decision(rules: list[Rule]) -> Block:
    """Read the rules of one call in order; a rule that does not hold jumps to the next."""
    block: Block = ()
    for rule in rules:
        held: Block = (_instruction(_RETURN, rule.verdict),)
        for test in reversed(rule.tests):
            held = _test(test, over=len(held)) + held
        block += held
        if not rule.tests:
            return block
    return (*block, _instruction(_RETURN, ALLOW))


def _test(test: AnyBit | OneOf, over: int) -> Block:
    """Go on with the next instruction when the test holds, and `over` as many when it does not."""
    load = _instruction(_LOAD_WORD, _ARGUMENTS + 8 * test.arg)
    if isinstance(test, AnyBit):
        return (load, _instruction(_IF_ANY_BIT, test.mask, no=over))
    masked = () if test.mask == _WHOLE_WORD else (_instruction(_KEEP_BITS, test.mask),)
    *others, last = test.values
    compare = [
        _instruction(_IF_EQUAL, value, yes=len(others) - place)
        for place, value in enumerate(others)
    ]
    return (load, *masked, *compare, _instruction(_IF_EQUAL, last, no=over))
