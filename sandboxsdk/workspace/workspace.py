"""How a workspace is stored and made ready: a private view in the task's directory, or a directory.

A private view takes these names of the task's directory:

    upper/        what the view holds beyond the base, in the kernel's overlay format (userxattr)
    work-ID/      the kernel's scratch directory of one mount; the next mount gets another one
    empty/        the base, where the workspace began with nothing
    boot          the boot of the kernel under which the upper was made

Invariants: an upper appears whole, with its mode and its `boot`, or not at all; a work directory
is mounted once; the base is never written. Whoever calls `prepare` holds the task and has nothing
mounted.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, final

from sandboxsdk import syscalls
from sandboxsdk.errors import (
    CapabilityError,
    HostFull,
    HostRefused,
    SandboxError,
    WorkspaceInvalid,
)
from sandboxsdk.host import boot_id, disk_usage, remove_tree
from sandboxsdk.ids import new_id
from sandboxsdk.model import Change, Place, View, Workspace

from .difference import difference
from .layer import Layer

_UPPER = "upper"
_EMPTY = "empty"
_BOOT = "boot"
# Names that may be left over: scratch of earlier mounts, and an upper that was not finished.
# The last is of a runtime that keeps its scratch files on disk.
_SCRATCH = ("work-", "upper-", "scratch-")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# The kernel refuses these as an upper; others are told by the attribute that they cannot store.
_NO_UPPER = frozenset(
    ("overlay", "nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "vfat", "msdos", "exfat")
)
_REMEDY = "set SANDBOXSDK_HOME to a directory on ext4, xfs, btrfs or tmpfs"


class OpenWorkspace(Protocol):
    """A workspace of one task, as those who hold the task use it."""

    def prepare(self) -> View:
        """Make it ready for one mount, and say how it is to be mounted.

        Called before each mount, by the one who holds the task.

        Raises:
            WorkspaceInvalid: the user's directory is gone or is none any more.
            CapabilityError: the home cannot hold a private view.
            HostFull, HostRefused: the host's disk is full, or it refused an operation.
        """
        ...

    def diff(self) -> list[Change]:
        """List what changed since the beginning, in the order of the paths' bytes.

        Raises:
            WorkspaceInvalid: the user's directory is gone or is none any more.
            CapabilityError: this kind of workspace does not know its beginning.
            HostRefused: a directory that changed may not be read.
        """
        ...

    def disk_bytes(self) -> int:
        """Count the bytes of disk that it takes beyond the user's directory."""
        ...

    def describe(self) -> str:
        """Say in one line what it is."""
        ...

    def notes(self) -> tuple[str, ...]:
        """Say what a user should know about it, a sentence each."""
        ...


def open_workspace(workspace: Workspace, *, directory: str) -> OpenWorkspace:
    """Open a workspace that went through `resolve`; `directory` is the task's own and exists."""
    if workspace.mode == "private":
        return OverlayWorkspace(workspace.path, directory=directory)
    assert workspace.path is not None
    return DirectWorkspace(workspace.path)


@final
class OverlayWorkspace:
    """A private view of `base` (None: of nothing) by one overlay layer in the task's directory."""

    def __init__(self, base: str | None, *, directory: str) -> None:
        self._base = base
        self._directory = directory

    def prepare(self) -> View:
        """See `OpenWorkspace.prepare`."""
        with self._opened() as task:
            base = self._open_base(task)
            try:
                lower = _place(self._base_path, base)
                self._remove_scratch(task)
                self._make_upper(task, like=os.fstat(base))
            finally:
                os.close(base)
            work = f"{_SCRATCH[0]}{new_id()}"
            os.mkdir(work, 0o700, dir_fd=task)
            return View(
                kind="overlay",
                task=_place(self._directory, task),
                lowers=(lower,),
                upper=_UPPER,
                work=work,
            )

    def diff(self) -> list[Change]:
        """See `OpenWorkspace.diff`; costs what changed, not what the base holds."""
        with self._opened() as task:
            upper = self._open_upper(task)
            if upper is None:
                return []
            with Layer(upper, path=f"{self._directory}/{_UPPER}") as above:
                base = self._open_base(task)
                with Layer(base, path=self._base_path) as below:
                    return difference(below, above)

    def disk_bytes(self) -> int:
        """See `OpenWorkspace.disk_bytes`."""
        with self._opened() as task:
            upper = self._open_upper(task)
            if upper is None:
                return 0
            try:
                return disk_usage(upper)
            finally:
                os.close(upper)

    def describe(self) -> str:
        """See `OpenWorkspace.describe`."""
        if self._base is None:
            return "private and empty at first (overlay)"
        return f"private view of {_shown(self._base)} (overlay), which itself is not written"

    def notes(self) -> tuple[str, ...]:
        """See `OpenWorkspace.notes`."""
        if self._base is None:
            told = []
        else:
            told = [
                "rename(2) of a directory that came with the workspace fails: EXDEV; mv copies it",
                "hard links among files that came with the workspace part when one is written",
            ]
            if os.geteuid() != 0:
                told.append("files of other owners that came with the workspace are read-only")
        if self._is_from_another_boot():
            told.append(
                "this view was written under an earlier boot of the host; after a power cut its"
                " newest files may be incomplete"
            )
        return tuple(told)

    @property
    def _base_path(self) -> str:
        return f"{self._directory}/{_EMPTY}" if self._base is None else self._base

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the task's directory, and translate what the host refuses meanwhile."""
        try:
            task = os.open(self._directory, _DIRECTORY)
            try:
                yield task
            finally:
                os.close(task)
        except SandboxError:
            raise  # Some are an OSError too, and say more than we could.
        except OSError as error:
            reason = os.strerror(error.errno or errno.EIO)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise HostFull(path=self._directory, reason=reason) from error
            hint = "the task's directory must be whole and belong to the user who runs this"
            raise HostRefused(
                what="cannot use", path=self._directory, reason=reason, hint=hint
            ) from error

    def _open_base(self, task: int) -> int:
        if self._base is not None:
            return _open_pinned(self._base)
        with suppress(FileExistsError):
            os.mkdir(_EMPTY, 0o755, dir_fd=task)
        return os.open(_EMPTY, _DIRECTORY, dir_fd=task)

    def _open_upper(self, task: int) -> int | None:
        try:
            return os.open(_UPPER, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=task)
        except FileNotFoundError:
            return None  # Never mounted, so nothing changed.

    def _remove_scratch(self, task: int) -> None:
        """Remove what earlier mounts left: a volatile mount marks its work directory as used up."""
        for name in os.listdir(task):
            if name.startswith(_SCRATCH):
                remove_tree(task, name)

    def _make_upper(self, task: int, *, like: os.stat_result) -> None:
        """Make the upper unless it exists, with the base's mode: the view's root shows it."""
        if _UPPER in os.listdir(task):
            return
        fresh = f"{_SCRATCH[1]}{new_id()}"
        os.mkdir(fresh, 0o700, dir_fd=task)
        upper = os.open(fresh, _DIRECTORY, dir_fd=task)
        try:
            self._probe(upper)
            os.fchmod(upper, like.st_mode & (0o777 | stat.S_ISVTX))
            if os.geteuid() == 0:
                os.fchown(upper, like.st_uid, like.st_gid)
        finally:
            os.close(upper)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        record = os.open(_BOOT, flags, 0o600, dir_fd=task)
        try:
            os.write(record, boot_id().encode())
        finally:
            os.close(record)
        os.rename(fresh, _UPPER, src_dir_fd=task, dst_dir_fd=task)

    def _probe(self, upper: int) -> None:
        """Find out now what the kernel would refuse with a bare EINVAL, or silently not store."""
        kind = _file_system(os.fstat(upper).st_dev)
        reason = ""
        if kind in _NO_UPPER or kind.startswith("fuse"):
            reason = f"its file system ({kind}) cannot be the upper layer of an overlay"
        else:
            try:
                os.setxattr(upper, "user.sandboxsdk", b"1")
                os.removexattr(upper, "user.sandboxsdk")
            except OSError as error:
                if error.errno != errno.ENOTSUP:
                    raise
                reason = f"its file system ({kind or 'unknown'}) stores no user attributes"
        if reason:
            wanted = f"private workspace in {self._directory}"
            raise CapabilityError(wanted=wanted, reason=reason, hint=_REMEDY)

    def _is_from_another_boot(self) -> bool:
        try:
            with open(f"{self._directory}/{_BOOT}", "rb") as file:
                return file.read(100) != boot_id().encode()
        except OSError:
            return False


@final
class DirectWorkspace:
    """The directory `path` itself: what a box writes is written."""

    def __init__(self, path: str) -> None:
        self._path = path

    def prepare(self) -> View:
        """See `OpenWorkspace.prepare`."""
        directory = _open_pinned(self._path)
        try:
            return View(kind="bind", task=_place(self._path, directory))
        finally:
            os.close(directory)

    def diff(self) -> list[Change]:
        """See `OpenWorkspace.diff`; a direct workspace keeps nothing of its beginning."""
        hint = 'use a private workspace to see what changes: workspace="DIRECTORY"'
        reason = "needs a checkpoint to compare with"
        raise CapabilityError(wanted="diff of a direct workspace", reason=reason, hint=hint)

    def disk_bytes(self) -> int:
        """Give 0: whatever is written is the user's own directory."""
        return 0

    def describe(self) -> str:
        """See `OpenWorkspace.describe`."""
        return f"{_shown(self._path)} itself; what the sandbox writes is written"

    def notes(self) -> tuple[str, ...]:
        """See `OpenWorkspace.notes`."""
        return ()


def _open_pinned(path: str) -> int:
    """Open a directory by a path that was real once: a link on the way was put there since."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        return syscalls.openat2(
            syscalls.AT_FDCWD, os.fsencode(path), flags, resolve=syscalls.RESOLVE_NO_SYMLINKS
        )
    except OSError as error:
        reason = "cannot be used: " + os.strerror(error.errno or errno.EIO)
        if error.errno == errno.ENOENT:
            reason = "does not exist any more"
        elif error.errno in (errno.ENOTDIR, errno.ELOOP):
            reason = "is not a directory any more, or a link leads to it now"
        hint = "put the directory back at this path; what the task holds is kept"
        raise WorkspaceInvalid(path=path, reason=reason, hint=hint) from error


def _place(path: str, descriptor: int) -> Place:
    found = os.fstat(descriptor)
    owner = (found.st_uid, found.st_gid)
    return Place(path=path, device=found.st_dev, inode=found.st_ino, owner=owner)


def _file_system(device: int) -> str:
    """Give the type of the file system with this device number; "" if the mount table has none."""
    wanted = f"{os.major(device)}:{os.minor(device)}".encode()
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            fields, _, rest = line.partition(b" - ")
            if fields.split(b" ", 3)[2] == wanted:
                return rest.split(b" ", 1)[0].decode("ascii", "replace")
    return ""


def _shown(path: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in path)
