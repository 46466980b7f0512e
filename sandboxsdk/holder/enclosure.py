"""Building one box: namespaces, the overlay, and a root of its own that holds nothing but the box.

Everything here runs once per box, in a freshly forked single-threaded process, and is final: the
process pivots into the new root and lets go of the host's. Only then may anything untrusted start
in it.

The layout of the holder's own root (a tmpfs nobody else can see):

- /box: the guest's root, bound whole by every command (usr, etc, dev, tmp, home, workspace);
- /proc: of the holder's pid namespace, because bubblewrap needs it;
- /tmp: where bubblewrap assembles a command's root;
- /usr and its like: read-only, for bubblewrap's own libraries;
- /bwrap: the program itself, where it does not come with the distribution;
- /scratch: the memory behind the guest's /tmp, /home and /dev/shm;
- /void, /hollow, /boot_id: put over what /proc would show of the host.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import stat
import struct
from typing import Any

from sandboxsdk import syscalls as sc

from .cloning import clone
from .workspace import Overlay

BOX = "/box"
WORKSPACE = f"{BOX}/workspace"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# Configuration of the host's programs that their files in /usr need. Only what every user may read
# is taken, so no key or password can be among it; hostnames, users and mounts come generated
# instead.
_ETC_TAKEN = (
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "debian_version",
    "fonts",
    "inputrc",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "magic",
    "mime.types",
    "pki/ca-trust",
    "pki/tls/certs",
    "protocols",
    "python3",
    "rpc",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
)
_ETC_LARGE = ("alternatives", "fonts", "pki/ca-trust", "pki/tls/certs", "ssl/certs")
_ETC_ENTRIES_MAX = 20_000
_NAMESPACES = sc.CLONE_NEWNS | sc.CLONE_NEWNET | sc.CLONE_NEWIPC | sc.CLONE_NEWPID | sc.CLONE_NEWUTS
_TERMINALS_MAX = 256
# The kernel lets a user have 128 by default, and counts a rootless box's with those of its caller.
_INOTIFY_INSTANCES_MAX = 64
_BOX_OWN = ("etc", "dev", "proc", "sys", "tmp", "run", "home", "workspace")


def enter_namespaces(*, uid: int, gid: int, rootless: bool, flags: int = _NAMESPACES) -> None:
    """Leave the host's namespaces; the caller forks afterwards to get PID 1 of the new pid
    namespace.
    """
    if not rootless:
        sc.unshare(flags)
        return
    sc.unshare(flags | sc.CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    with contextlib.suppress(OSError):
        with open("/proc/sys/user/max_inotify_instances", "w", encoding="ascii") as file:
            file.write(str(_INOTIFY_INSTANCES_MAX))


def build(
    spec: dict[str, Any], idmaps: dict[tuple[int, int], int]
) -> tuple[dict[str, int], Overlay | None]:
    """Mount everything that `spec` names and pivot into it; gives descriptors of the guest's
    writable trees, and the overlay behind the workspace, if it is one.
    """
    sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)
    _loopback_up()
    socket.sethostname(spec["hostname"])
    sources = _Sources(spec, idmaps)
    staging = spec["staging"]
    sc.mount("sandboxsdk", staging, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=0755")
    os.chdir(staging)
    for name in ("box", "proc", "tmp", "scratch", "old", "hollow"):
        os.mkdir(name)
    for name, content in (("void", ""), ("boot_id", spec["boot_id"])):
        _write(name, content)
    sc.mount("proc", "proc", "proc", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC)
    _own_programs(sources.programs)
    _guest_root(spec)
    _devices("box/dev")
    _scratch(spec)
    sources.attach()
    _seal("box")
    if sources.overlay is not None:
        # Behind the seal, which would leave another mount of it below.
        sources.overlay.mount(spec["workspace"], WORKSPACE.lstrip("/"))
    _pivot()
    descriptors = {}
    for name, path in (("workspace", "workspace"), ("tmp", "tmp"), ("home", "home/sandbox")):
        descriptors[name] = os.open(f"{BOX}/{path}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return descriptors, sources.overlay


class _Sources:
    """What comes from the host, pinned by detached clones before any path of it can be hidden or
    swapped.
    """

    def __init__(self, spec: dict[str, Any], idmaps: dict[tuple[int, int], int]) -> None:
        self._rootless = spec["rootless"]
        self._idmaps = idmaps
        self._owner = (spec["uid"], spec["gid"])
        self.programs: dict[str, bytes] = {}
        if spec["bwrap_libraries"]:
            self.programs["bwrap"] = _read(spec["bwrap"])
            for name in os.listdir(spec["bwrap_libraries"]):
                self.programs[name] = _read(f"{spec['bwrap_libraries']}/{name}")
        self._attach: list[tuple[int, str, bool]] = []
        self.overlay: Overlay | None = None
        workspace = spec["workspace"]
        if workspace["kind"] == "overlay":
            self.overlay = self._overlay(workspace)
        else:
            self._attach.append((self._clone(workspace["path"], workspace), "workspace", True))
        for entry in spec["mounts"]:
            clone = self._clone(entry["source"], entry, write=entry["write"])
            self._attach.append((clone, entry["target"].strip("/"), entry["directory"]))

    def attach(self) -> None:
        for made, target, directory in self._attach:
            _make_target(target, directory=directory, owner=self._owner)
            sc.move_mount(made, f"box/{target}")
            os.close(made)

    def _clone(self, path: str, entry: dict[str, Any], *, write: bool = True) -> int:
        userns = -1 if self._rootless else self._idmaps[tuple(entry["owner"])]
        return clone(path, entry["id"], userns=userns, write=write)

    def _overlay(self, workspace: dict[str, Any]) -> Overlay:
        owner = workspace["base"]["owner"]
        clones = {"layers": -1}
        for name in ("base", "task", "layers"):
            entry = workspace[name]
            if entry is not None:
                clones[name] = self._clone(entry["path"], {"id": entry["id"], "owner": owner})
        return Overlay(**clones)


def _make_target(target: str, *, directory: bool, owner: tuple[int, int]) -> None:
    """Make the place to mount on, part by part; a link on the way would lead out of the box."""
    parts = target.split("/")
    path = "box"
    for number, part in enumerate(parts):
        path = f"{path}/{part}"
        if os.path.islink(path):
            raise OSError(40, "a mount's target leads through a symlink of the image", path)
        if os.path.lexists(path):
            continue
        if directory or number + 1 < len(parts):
            os.mkdir(path, 0o755)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        if target.startswith(("home/sandbox/", "tmp/")):
            os.chown(path, *owner)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(sock, 0x8913, request))[1]  # SIOCGIFFLAGS
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", flags | 1))  # SIOCSIFFLAGS, IFF_UP
    # A guest's server may use any port of its own network.
    with contextlib.suppress(OSError):
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "w", encoding="ascii") as file:
            file.write("0")


def _bind(source: str, target: str, *, extra: int = 0) -> None:
    sc.mount(source, target, None, sc.MS_BIND | sc.MS_REC)
    _restrict(target, sc.MOUNT_ATTR_NOSUID | extra, recursive=True)


def _bind_system(root: str) -> None:
    """Bind the host's /usr read-only below `root`, with the top-level links or directories that
    belong to it.
    """
    os.mkdir(f"{root}usr")
    read_only = sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NODEV
    _bind("/usr", f"{root}usr", extra=read_only)
    for name in _MERGED:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}").lstrip("/"), f"{root}{name}")
        elif os.path.isdir(f"/{name}"):
            os.mkdir(f"{root}{name}")
            _bind(f"/{name}", f"{root}{name}", extra=read_only)


def _restrict(path: str, attributes: int, *, recursive: bool = False) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        sc.mount_setattr(fd, attributes=attributes, recursive=recursive)
    finally:
        os.close(fd)


def _own_programs(programs: dict[str, bytes]) -> None:
    """Make bubblewrap and its libraries reachable below the new root, for a uid that may read
    nothing else.
    """
    _bind_system("")
    if programs:
        os.mkdir("bwrap")
    for name, content in programs.items():
        with open(f"bwrap/{name}", "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o755)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _guest_root(spec: dict[str, Any]) -> None:
    for name in _BOX_OWN:
        os.mkdir(f"box/{name}")
    os.mkdir("box/home/sandbox")
    image = spec["image"]
    if image["kind"] == "host":
        _bind_system("box/")
        _take_etc("box/etc")
        os.mkdir("box/var")
        os.symlink("/tmp", "box/var/tmp")  # noqa: S108 - a link inside the box
    else:
        _rootfs(image["path"])
    for name, content in spec["etc"].items():
        _write(f"box/etc/{name}", content)


def _write(path: str, content: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with open(path, "x", encoding="utf-8", errors="surrogateescape") as file:
        file.write(content)
        os.fchmod(file.fileno(), 0o644)


def _rootfs(path: str) -> None:
    """Bind each top-level entry of a root file system read-only; /etc is copied, because ours goes
    over it.

    Directories that belong to the box stay its own, whatever the image has there: a link in their
    place would lead what we write next out of the box.
    """
    for entry in os.scandir(path):
        target = f"box/{entry.name}"
        if entry.name == "etc" and not entry.is_symlink():
            for name in os.listdir(entry.path):
                _copy_readable(f"{entry.path}/{name}", f"{target}/{name}", [_ETC_ENTRIES_MAX])
        elif entry.name in _BOX_OWN:
            continue
        elif entry.is_symlink():
            os.symlink(os.readlink(entry.path), target)
        elif entry.is_dir():
            os.mkdir(target)
            _bind(entry.path, target, extra=sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NODEV)


def _take_etc(target: str) -> None:
    """Bring what programs in /usr need of /etc.

    The large directories are bound; small ones are copied, because every mount costs each command
    some time, and every copy each box.
    """
    names = list(_ETC_TAKEN)
    names += [name for name in os.listdir("/etc") if name.startswith(("java-", "python3."))]
    for name in names:
        source, place = f"/etc/{name}", f"{target}/{name}"
        if not os.path.lexists(source):
            continue
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if name in _ETC_LARGE and not os.path.islink(source):
            os.mkdir(place)
            _bind(source, place, extra=sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NODEV)
        else:
            _copy_readable(source, place, [_ETC_ENTRIES_MAX])


def _copy_readable(source: str, target: str, budget: list[int]) -> None:
    """Copy a tree as far as every user may read it."""
    budget[0] -= 1
    if budget[0] < 0:
        return
    found = os.lstat(source)
    if stat.S_ISLNK(found.st_mode):
        with contextlib.suppress(FileExistsError):
            os.symlink(os.readlink(source), target)
    elif stat.S_ISDIR(found.st_mode) and found.st_mode & 0o005 == 0o005:
        os.makedirs(target, exist_ok=True)
        for name in os.listdir(source):
            _copy_readable(f"{source}/{name}", f"{target}/{name}", budget)
    elif stat.S_ISREG(found.st_mode) and found.st_mode & 0o004 and not os.path.lexists(target):
        shutil.copyfile(source, target)
        os.chmod(target, found.st_mode & 0o755)


def _devices(target: str) -> None:
    sc.mount("dev", target, "tmpfs", sc.MS_NOSUID | sc.MS_NOEXEC, "mode=0755,size=64k")
    for name in _DEVICES:
        os.close(os.open(f"{target}/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
        _bind(f"/dev/{name}", f"{target}/{name}", extra=sc.MOUNT_ATTR_NOEXEC)
    for name, link in _DEVICE_LINKS.items():
        os.symlink(link, f"{target}/{name}")
    os.mkdir(f"{target}/pts")
    os.mkdir(f"{target}/shm")
    # Terminals are counted over the whole host: one box must not use up those of the others.
    options = f"newinstance,ptmxmode=0666,mode=0620,max={_TERMINALS_MAX}"
    sc.mount("devpts", f"{target}/pts", "devpts", sc.MS_NOSUID | sc.MS_NOEXEC, options)
    # Rootless the guest owns this directory; its inodes are memory that nobody counts.
    _restrict(target, sc.MOUNT_ATTR_RDONLY)


def _scratch(spec: dict[str, Any]) -> None:
    """Mount the memory that /tmp, /home and /dev/shm share; its size bounds them together."""
    options = f"mode=0711,size={spec['scratch_bytes_max']},nr_inodes={spec['scratch_files_max']}"
    sc.mount("scratch", "scratch", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, options)
    for name, target, mode, extra in (
        ("tmp", "box/tmp", 0o1777, 0),
        ("home", "box/home/sandbox", 0o755, 0),
        ("shm", "box/dev/shm", 0o1777, sc.MOUNT_ATTR_NOEXEC),
    ):
        os.mkdir(f"scratch/{name}")
        os.chmod(f"scratch/{name}", mode)
        os.chown(f"scratch/{name}", spec["uid"], spec["gid"])
        _bind(f"scratch/{name}", target, extra=extra | sc.MOUNT_ATTR_NODEV)


def _seal(path: str) -> None:
    """Make the guest's root read-only; what is mounted on it keeps its own rights."""
    clone = sc.open_tree(sc.AT_FDCWD, path, sc.OPEN_TREE_CLONE | sc.AT_RECURSIVE)
    attributes = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_RDONLY
    sc.mount_setattr(clone, attributes=attributes)
    sc.move_mount(clone, path)
    os.close(clone)


def _pivot() -> None:
    """Make the staging directory the root and let go of everything that was mounted before."""
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    sc.pivot_root(".", "old")
    os.fchdir(here)
    os.close(here)
    os.chdir("/")
    sc.umount("/old", sc.MNT_DETACH)
    os.rmdir("/old")
    sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)
    # Rootless the guest's uid owns it: should a command ever see it, it cannot change the next one.
    _restrict("/", sc.MOUNT_ATTR_RDONLY)
