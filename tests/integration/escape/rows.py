"""The table of escape attempts as data: what is probed, what is to be seen, and who looks.

A row either has probes or a reason why it does not apply to boxes made of namespaces. Probes that
only read what the attacker program says are made here; those that act are functions of `acting`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from . import acting
from .stand import Stand, complain

Probe = Callable[[Stand], Any]


class Row(NamedTuple):
    """One attempt. `absent` is the reason why there is no probe."""

    id: str
    probed: str
    expected: str
    probes: tuple[Probe, ...] = ()
    absent: str = ""


def calls(names: str, answer: str = "EPERM") -> Probe:
    """Both users of the box try these system calls and get this answer."""

    def probe(stand: Stand) -> None:
        for user in ("sandbox", "root"):
            said = stand.calls(user)
            complain({f"{name} as {user}": said[name] for name in names.split()}, {answer})

    return probe


def said(group: str, names: str, *answers: str) -> Probe:
    """The attacker's group of attempts answers so for each name."""

    def probe(stand: Stand) -> None:
        found = stand.said(group)
        complain({name: found[name] for name in names.split()}, set(answers))

    return probe


def read(paths: str, *answers: str) -> Probe:
    """Reading these files gives this."""
    return lambda stand: complain(stand.ask("read", *paths.split()), set(answers))


def write(paths: str, *answers: str) -> Probe:
    """Opening these files to write, or making a file in these directories, gives this."""
    return lambda stand: complain(stand.ask("write", *paths.split()), set(answers))


_GONE = ("ENOENT", "EACCES", "EPERM")

ROWS = (
    Row("X01", "capability sets", "all zero", (acting.no_capabilities,)),
    Row("X02", "no_new_privs, seccomp", "1 and 2", (acting.is_filtered,)),
    Row("X03", "uid, gid, groups", "not root, none extra", (acting.is_nobody_special,)),
    Row("X04", "set-id programs", "gain nothing", (acting.setid_gains_nothing,)),
    Row("X05", "file capabilities", "gain nothing", (acting.file_capabilities_gain_nothing,)),
    Row("X06", "write to / and /usr", "EROFS", (write("/ /usr /home /run /var", "EROFS"),)),
    Row(
        "X07",
        "write to /etc",
        "denied",
        (write("/etc /etc/hosts /etc/resolv.conf /etc/hostname /etc/passwd", "EROFS", "EACCES"),),
    ),
    Row(
        "X08",
        "exec in /tmp and /dev/shm",
        "policy: builds exec in /tmp, nobody in /dev/shm",
        (acting.exec_by_policy,),
    ),
    Row(
        "X09",
        "memory and log of the kernel",
        "absent or denied",
        (read("/proc/kcore /dev/mem /dev/kmsg /dev/port /proc/kmsg /proc/kpagecount", *_GONE),),
    ),
    Row(
        "X10",
        "addresses, dmesg, syslog()",
        "zero, EPERM",
        (calls("syslog"), acting.addresses_are_zero),
    ),
    Row("X11", "sysrq-trigger", "denied", (write("/proc/sysrq-trigger", *_GONE),)),
    Row(
        "X12",
        "write to /proc/sys and the rest of /proc",
        "nothing but what every process may",
        (
            acting.proc_is_not_writable,
            write("/proc/sys/kernel/core_pattern /proc/sys/kernel/randomize_va_space", "EACCES"),
            write("/proc/sys/kernel/modprobe /proc/sys/fs/binfmt_misc/register", *_GONE),
            write("/proc/sys/user/max_user_namespaces /proc", "EACCES", "ENOENT"),
        ),
    ),
    Row(
        "X13",
        "write to /sys",
        "there is none",
        (acting.sys_is_empty, write("/sys /sys/kernel/uevent_helper", "EROFS", "ENOENT")),
    ),
    Row(
        "X14",
        "files of /proc about the machine",
        "empty or denied",
        (
            read("/proc/keys /proc/timer_list /proc/sched_debug", "empty", *_GONE),
            read("/proc/latency_stats /proc/slabinfo /proc/vmallocinfo", "empty", *_GONE),
            acting.machine_directories_are_empty,
        ),
    ),
    Row(
        "X15",
        "interrupts, firmware, power",
        "masked",
        (
            read("/proc/interrupts", "empty"),
            read("/sys/firmware /sys/devices/virtual/powercap", *_GONE),
        ),
    ),
    Row(
        "X16",
        "debugfs, tracefs, securityfs",
        "absent",
        (read("/sys/kernel/debug /sys/kernel/tracing /sys/kernel/security", "ENOENT"),),
    ),
    Row("X17", "/proc/1", "hidden", (acting.init_is_hidden,)),
    Row("X18", "processes of the host", "none seen, no signal", (acting.host_is_not_seen,)),
    Row("X19", "mountinfo", "no path of the workspace", (acting.mounts_name_no_host_path,)),
    Row(
        "X20",
        "diskstats, cpuinfo, meminfo",
        "documented: readable; /sys is not there",
        (
            read("/proc/diskstats /proc/cpuinfo /proc/meminfo /proc/partitions", "ok", "empty"),
            read("/sys/block /sys/class/dmi /sys/devices", "ENOENT"),
        ),
    ),
    Row("X21", "boot_id, machine-id", "not the host's", (acting.machine_is_not_identified,)),
    Row(
        "X22",
        "mount, umount, remount",
        "EPERM",
        (
            calls("mount_tmpfs mount_proc mount_sysfs mount_cgroup mount_cgroup2 mount_overlay"),
            calls("mount_bind remount_root remount_usr make_shared umount_proc_mask umount_usr"),
        ),
    ),
    Row("X23", "cgroup files", "absent", (acting.cgroups_are_hidden,)),
    Row(
        "X24",
        "new namespaces",
        "EPERM",
        (
            calls("unshare_user unshare_mount unshare_net unshare_pid unshare_ipc unshare_uts"),
            calls("unshare_cgroup unshare_time clone_user clone_mount"),
        ),
    ),
    Row("X25", "setns", "EPERM", (calls("setns"),)),
    Row("X26", "pivot_root, chroot", "EPERM", (calls("pivot_root chroot"),)),
    Row(
        "X27",
        "the new mount calls",
        "EPERM",
        (calls("open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr"),),
    ),
    Row("X28", "clone3", "ENOSYS", (calls("clone3", "ENOSYS"),)),
    Row("X29", "file handles", "EPERM", (calls("handle open_by_handle"),)),
    Row(
        "X30",
        "devices",
        "EPERM, absent",
        (
            calls("block_device char_device char_device_at"),
            read("/dev/vda /dev/sda /dev/fuse /dev/kvm /dev/net/tun /dev/vsock", "ENOENT"),
        ),
    ),
    Row("X31", "bpf, perf, userfaultfd", "EPERM", (calls("bpf perf userfaultfd fanotify"),)),
    Row("X32", "io_uring", "ENOSYS", (calls("io_uring", "ENOSYS"),)),
    Row("X33", "keyrings", "EPERM", (calls("keyctl add_key request_key"),)),
    Row(
        "X34",
        "kexec, modules",
        "EPERM",
        (calls("kexec_load kexec_file_load init_module finit_module delete_module"),),
    ),
    Row(
        "X35",
        "reaching into processes",
        "EPERM",
        (calls("process_vm_readv process_vm_writev pidfd_getfd kcmp process_madvise"),),
    ),
    Row(
        "X36",
        "ptrace",
        "of a child yes, of another box no",
        (calls("ptrace_sibling", "ok"), acting.other_boxes_are_not_traced),
    ),
    Row(
        "X37",
        "AF_VSOCK",
        "error",
        (acting.family(40), said("sockets", "pair-vsock", "EAFNOSUPPORT")),
    ),
    Row("X38", "AF_ALG", "error", (acting.family(38),)),
    Row(
        "X39",
        "AF_PACKET, AF_XDP, raw",
        "error",
        (
            acting.family(17),
            acting.family(44),
            said("sockets", "raw-icmp raw-ip raw-icmp6 old-packet raw-with-flags", "EPERM"),
        ),
    ),
    Row("X40", "netlink, other families", "route alone", (acting.only_known_families,)),
    Row(
        "X41",
        "int 0x80, x32, numbers of tomorrow",
        "killed, ENOSYS",
        (calls("int80", "SIGSYS"), calls("x32 newest", "ENOSYS")),
    ),
    Row("X42", "personality", "EPERM", (calls("read_indirectly no_randomisation"),)),
    Row(
        "X43",
        "memfd_secret, exec of a memfd",
        "ENOSYS; exec by policy, as of any file of the workspace",
        (calls("memfd_secret", "ENOSYS"), calls("memfd_exec", "ok")),
    ),
    Row(
        "X44",
        "ports, reboot, swap, clock, names",
        "EPERM",
        (
            calls("ioport reboot swapon swapoff settimeofday clock_settime clock sethostname"),
            calls("setdomainname acct quotactl vhangup setgroups realtime migrate_pages"),
            calls("nice_up", "EACCES"),
        ),
    ),
    Row("X45", "typing into a terminal", "EPERM", (acting.terminals_are_not_typed_into,)),
    Row("X46", "sockets of daemons", "absent", (acting.no_sockets, acting.no_secrets)),
    Row("X47", "abstract sockets of the host", "invisible", (acting.abstract_sockets_are_apart,)),
    Row(
        "X48",
        "descriptors beyond 0-2, cwd=/proc/self/fd/N",
        "none, refused",
        (acting.no_descriptors, acting.cwd_is_refused),
    ),
    Row("X49", "image with links for /dev, /proc", "harmless", (acting.links_in_an_image,)),
    Row("X50", "overwriting the runtime", "denied", (acting.runtime_is_not_writable,)),
    Row("X51", "mount propagation", "none", (acting.mounts_are_private,)),
    Row("X52", "fork bomb", "EAGAIN at the limit", (acting.fork_bomb,)),
    Row("X53", "memory, tmpfs, mlock", "ends only this command", (acting.memory_bomb,)),
    Row("X54", "disk and inode bomb", "ended, reason disk", (acting.disk_bomb, acting.inode_bomb)),
    Row("X55", "1 GiB of output", "bounded in our process", (acting.output_bomb,)),
    Row(
        "X56",
        "descriptors, inotify, sockets, terminals",
        "capped, the host keeps some",
        (acting.descriptor_bombs, acting.host_keeps_its_own),
    ),
    Row("X57", "zombies, daemons", "gone with their command", (acting.nothing_stays,)),
    Row("X58", "32 threads that spin", "share held, or not promised", (acting.processor_share,)),
    Row("X59", "own OOM score", "not lowered", (acting.oom_score,)),
    Row("X60", "core dump", "none", (acting.no_core, said("limits", "rlimit-4", "EPERM"))),
    Row("X61", "box A to box B", "no way", (acting.boxes_are_apart,)),
    Row("X62", "options that open a box", "do not exist", (acting.no_such_options,)),
    Row("X63", "mounts of the host itself", "Denied", (acting.mounts_are_denied,)),
    Row("X64", "exec, spawn, terminal, root", "same status", (acting.status_is_the_same,)),
    Row("X65", "ENTRYPOINT, USER, VOLUME", "", absent="no image has a configuration here"),
    Row(
        "X66",
        "passwd of an image",
        "ours is used, ids are numbers",
        (acting.passwd_is_generated,),
    ),
    Row("X67", "init ignores TERM, stops", "gone at the end", (acting.stubborn_is_gone,)),
    Row("X68", "owner dies, box is paused", "the next one clears up", (acting.frozen_orphan,)),
    Row("X69", "docker-bench", "", absent="its rules are about containers of docker"),
    Row("X70", "kernel lacks a feature", "refused, named", (acting.missing_feature,)),
    Row("Y01", "cwd is a link to /proc/self/fd/N", "inside", (acting.cwd_by_link,)),
    Row("Y02", "set-id bits, by every call", "none on disk", (acting.no_setid_files,)),
    Row(
        "Y03",
        "taking over PID 1",
        "filtered like the rest",
        (acting.init_is_filtered, acting.init_survives),
    ),
    Row("Y04", "output handed to another command", "nobody waits", (acting.handed_output,)),
    Row("Y05", "scratch full, then files", "typed error, then fine", (acting.full_scratch,)),
    Row("Y06", "FIFO, links where files looks", "typed, at once", (acting.traps_for_files,)),
    Row("Y07", "raising rlimits", "EPERM", (acting.limits_are_hard,)),
    Row("Y08", "30,000 files, then delete", "works", (acting.many_files,)),
    Row("Y09", "4,000 levels, then delete", "works", (acting.deep_tree,)),
    Row("Y10", "/dev", "read-only", (write("/dev /dev/pts", "EROFS", "EACCES", "EOPNOTSUPP"),)),
    Row("Y11", "set-id and devices by mount", "all nosuid, nodev", (acting.mounts_have_flags,)),
)
