"""Linux system calls that Python does not offer, one thin function each.

Knows nothing of sandboxes, and nothing of this package either: the holder program imports this
module alone, before anything else is importable. Every function raises OSError with the call's
name; none interprets an errno. Numbers are those of the kernel's uapi headers; calls newer than
Linux 5.1 have the same number on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Sequence

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100

OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x00100000
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_SYS_open_tree = 428
_SYS_move_mount = 429
_SYS_fsopen = 430
_SYS_fsconfig = 431
_SYS_fsmount = 432
_SYS_openat2 = 437
_SYS_mount_setattr = 442
_SYS_pivot_root = {"x86_64": 155, "aarch64": 41}.get(platform.machine(), -1)
_SYS_renameat2 = {"x86_64": 316, "aarch64": 276}.get(platform.machine(), -1)
_SYS_kcmp = {"x86_64": 312, "aarch64": 272}.get(platform.machine(), -1)
_SYS_setgroups = {"x86_64": 116, "aarch64": 159}.get(platform.machine(), -1)

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def _check(result: int, name: str, path: object = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        text = f"{name}: {os.strerror(number)}"
        if path is None:
            raise OSError(number, text)
        raise OSError(number, text, os.fsdecode(path) if isinstance(path, bytes) else str(path))
    return int(result)


def _long(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


def unshare(flags: int) -> None:
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def prctl(option: int, argument: int = 1) -> None:
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero), "prctl")


def set_name(name: str) -> None:
    """Give the calling thread a name for `ps` (15 bytes are kept)."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _check(_libc.prctl(PR_SET_NAME, buffer, 0, 0, 0), "prctl")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    _check(
        _libc.mount(
            source.encode(),
            os.fsencode(target),
            kind.encode() if kind else None,
            ctypes.c_ulong(flags),
            os.fsencode(data) if data else None,
        ),
        "mount",
        target,
    )


def umount(target: str, flags: int = 0) -> None:
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), "umount", target)


def pivot_root(new: str, old: str) -> None:
    _check(_syscall(_SYS_pivot_root, os.fsencode(new), os.fsencode(old)), "pivot_root", new)


def open_tree(directory: int, path: str, flags: int) -> int:
    return _check(
        _syscall(_SYS_open_tree, directory, os.fsencode(path), _long(flags | os.O_CLOEXEC)),
        "open_tree",
        path,
    )


def move_mount(mount_fd: int, target: str) -> None:
    _check(
        _syscall(
            _SYS_move_mount, mount_fd, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH
        ),
        "move_mount",
        target,
    )


def mount_setattr(fd: int, *, attributes: int, userns: int = 0, recursive: bool = False) -> None:
    """Set mount attributes on the mount that `fd` names; with MOUNT_ATTR_IDMAP, map it through
    `userns`.
    """
    struct_mount_attr = struct.pack("=QQQQ", attributes, 0, 0, userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _check(
        _syscall(_SYS_mount_setattr, fd, b"", flags, struct_mount_attr, _long(32)), "mount_setattr"
    )


def overlay_mount(
    *, lowers: Sequence[int], upper: int, work: int, options: Sequence[tuple[str, str | None]]
) -> int:
    """Make a detached overlay mount from directory descriptors, top layer first; gives its
    descriptor.
    """
    fs = _check(_syscall(_SYS_fsopen, b"overlay", 1), "fsopen")
    try:
        for key, value in options:
            command = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
            text = value.encode() if value is not None else None
            _check(_syscall(_SYS_fsconfig, fs, command, key.encode(), text, 0), f"fsconfig {key}")
        pairs = [("lowerdir+", fd) for fd in lowers] + [("upperdir", upper), ("workdir", work)]
        for key, fd in pairs:
            _check(
                _syscall(_SYS_fsconfig, fs, FSCONFIG_SET_FD, key.encode(), None, fd),
                f"fsconfig {key}",
            )
        _check(_syscall(_SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, None, None, 0), "fsconfig create")
        attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
        return _check(_syscall(_SYS_fsmount, fs, 1, attributes), "fsmount")
    except OSError as error:
        # The kernel says why only here and in its log.
        raise OSError(error.errno, f"{error.strerror} ({_messages(fs)})") from None
    finally:
        os.close(fs)


def _messages(fs: int) -> str:
    found = []
    while True:
        try:
            found.append(os.read(fs, 4096).decode(errors="replace").strip())
        except OSError:
            return "; ".join(found) or "the kernel gave no reason"


def openat2(directory: int, path: bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Open below `directory` under RESOLVE_* rules; the descriptor is close-on-exec."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _check(_syscall(_SYS_openat2, directory, path, how, _long(24)), "openat2", path)


def renameat2(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    _check(_syscall(_SYS_renameat2, old_dir, old, new_dir, new, flags), "renameat2", new)


def sync_file_range(fd: int) -> None:
    whole = ctypes.c_int64(0)
    wait_before_write_wait_after = ctypes.c_uint(7)
    _check(
        _libc.sync_file_range(ctypes.c_int(fd), whole, whole, wait_before_write_wait_after),
        "sync_file_range",
    )


def syncfs(fd: int) -> None:
    _check(_libc.syncfs(ctypes.c_int(fd)), "syncfs")


def same_memory(one: int, other: int) -> bool:
    """Tell whether two processes have one memory between them (kcmp, KCMP_VM)."""
    zero = _long(0)
    return _check(_syscall(_SYS_kcmp, _long(one), _long(other), _long(1), zero, zero), "kcmp") == 0


def setfsids(uid: int, gid: int) -> None:
    """Set the file-system uid and gid of the calling THREAD; a non-zero uid also drops its rights
    over files.

    The two calls report no errors, so the result is read back by asking for an impossible id.
    """
    _libc.setfsgid(ctypes.c_uint(gid))
    _libc.setfsuid(ctypes.c_uint(uid))
    nobody = ctypes.c_uint(0xFFFFFFFF)
    if _libc.setfsuid(nobody) != uid or _libc.setfsgid(nobody) != gid:
        raise PermissionError(1, "setfsuid: not permitted")


def setgroups_thread(groups: Sequence[int]) -> None:
    """Set the supplementary groups of the calling THREAD alone; os.setgroups sets those of all
    threads.
    """
    array = (ctypes.c_uint * len(groups))(*groups)
    _check(_syscall(_SYS_setgroups, _long(len(groups)), array), "setgroups")
