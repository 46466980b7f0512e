"""A private workspace by an overlay of the kernel."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from sandboxsdk.errors import CapabilityError, HostFull, HostRefused, SandboxError
from sandboxsdk.host import boot_id, disk_usage, remove_tree
from sandboxsdk.ids import new_id
from sandboxsdk.model import Change, View, Workspace
from sandboxsdk.snapshot import Captured, Exclude, Merge, Progress, Rules, Sink, excluding
from sandboxsdk.store import Store

from .difference import difference
from .layer import Layer
from .place import EMPTY, carries_no_upper, file_system, open_base, place_of, shown
from .scan import CACHE, Scan, base_cache, owned, scan

_UPPER = "upper"
_BOOT = "boot"
# Names that may be left over: scratch of earlier mounts, and an upper that was not finished.
# The last is of a runtime that keeps its scratch files on disk.
_SCRATCH = ("work-", "upper-", "scratch-")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_REMEDY = "set SANDBOXSDK_HOME to a directory on ext4, xfs, btrfs or tmpfs"


@final
class OverlayWorkspace:
    """A private view of a directory, or of nothing, by one overlay layer in the task's directory.

    It takes these names there:

        upper/        what the view holds beyond the base, in overlay's own format (userxattr)
        work-ID/      the kernel's scratch directory of one mount; the next mount gets another one
        empty/        the base, where the workspace began with nothing
        boot          the boot of the kernel under which the upper was made
        scan          what the last walk through the upper remembers

    Invariants: an upper appears whole, with its mode and its `boot`, or not at all; a work
    directory is mounted once; the base is never written.
    """

    begins = False
    layered = True

    def __init__(
        self, workspace: Workspace, *, directory: str, scans: str, since: int | None = None
    ) -> None:
        self._since = since
        self._base = workspace.path
        self._exclude = excluding(workspace.exclude)
        self._directory = directory
        self._scans = scans
        self._cache = base_cache(workspace)

    def begin(self, store: Store, tree: bytes) -> None:
        """See `OpenWorkspace.begin`: nothing, the base itself lies below the view."""

    def prepare(self) -> View:
        """See `OpenWorkspace.prepare`."""
        with self._opened() as task:
            base = open_base(task, self._base)
            try:
                lower = place_of(self._base_path, base)
                self._remove_scratch(task)
                self._make_upper(task, like=os.fstat(base))
            finally:
                os.close(base)
            work = f"{_SCRATCH[0]}{new_id()}"
            os.mkdir(work, 0o700, dir_fd=task)
            return View(
                kind="overlay",
                task=place_of(self._directory, task),
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
                base = open_base(task, self._base)
                with Layer(base, path=self._base_path) as below:
                    return difference(below, above, exclude=self._exclude)

    def capture_beginning(self, sink: Sink, store: Store, progress: Progress | None) -> Scan:
        """See `OpenWorkspace.capture_beginning`."""
        with self._opened() as task:
            base = open_base(task, self._base)
            rules = Rules(
                overlay=True,
                mounts=True,
                since=self._since,
                exclude=self._exclude,
                progress=progress,
                shown=f"{self._base_path}/",
            )
            with owned(base):
                return scan(sink, store, base, rules, directory=self._scans, name=self._cache)

    def capture(
        self,
        sink: Sink,
        store: Store,
        base: Merge | None,
        progress: Progress | None,
        *,
        mapped: bool = False,
        unlock: bool = False,
    ) -> Scan:
        """See `OpenWorkspace.capture`."""
        del unlock
        assert base is not None
        with self._opened() as task:
            upper = self._open_upper(task)
            if upper is None:
                return Scan(Captured(tree=base.tree, totals=base.totals))
            rules = Rules(
                overlay=True,
                merge=base,
                unlock=True,
                mapped=mapped,
                exclude=self._exclude,
                progress=progress,
                shown="/workspace/",
            )
            with owned(upper) as root:
                return scan(sink, store, root, rules, directory=self._directory, name=CACHE)

    @contextmanager
    def restoring(self, mounted: int) -> Iterator[int]:
        """See `OpenWorkspace.restoring`: only through the mount, which knows what the base has."""
        yield mounted

    @property
    def spared(self) -> Exclude | None:
        """See `OpenWorkspace.spared`."""
        return self._exclude

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
        return f"private view of {shown(self._base)} (overlay), which itself is not written"

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
        return f"{self._directory}/{EMPTY}" if self._base is None else self._base

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
        kind = file_system(os.fstat(upper).st_dev)
        reason = ""
        if carries_no_upper(kind):
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
