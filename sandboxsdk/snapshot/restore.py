"""Trees into directories: a new one built beside and renamed, or an existing one changed in place.

Both first look at all that is to be written: whether its trees are there and can be, and whether
the file system has the space. Both work in a thread of their own: Python may raise
KeyboardInterrupt in the main thread between opening a file and noting its descriptor, and nothing
could be tidied up then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Generic, Self, TypeVar

import msgspec

from sandboxsdk import disk
from sandboxsdk.errors import Denied, FileConflict, HostFull, HostRefused, SandboxError, UsageError
from sandboxsdk.host import Opener, Worker, has_openat2, remove_entry, translated
from sandboxsdk.ids import new_id

from .acting import Acting, Spare
from .guard import Guard, check_replaced
from .measure import Measure, Trees
from .plan import Owners, Plan, plan
from .tree import DIRECTORY, Reader
from .writing import Supply

_SUFFIX = ".sandboxsdk-restore"
# Of 255 bytes of a name, what is left for the name of the directory beside which we build.
_BESIDE_BYTES = 200

_T = TypeVar("_T")
_Check = Callable[[], None]


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore did.

    Attributes:
        written: files, links, FIFOs and directories that were made or made anew.
        removed: names that were removed, each with what was below it.
        touched: files and directories of which only metadata was set.
        skipped: paths of sockets and devices, which are never made.
    """

    written: int = 0
    removed: int = 0
    touched: int = 0
    skipped: tuple[str, ...] = ()


def restore_to(
    reader: Reader,
    tree: bytes,
    directory: str,
    *,
    owners: Owners | None,
    durable: bool,
    supply: Supply | None = None,
) -> Restored:
    """Make `directory` (or take it if it is empty) hold exactly this tree.

    It is built beside under a private name and renamed: it is there whole or not at all. A process
    that is killed may leave `.NAME.ID.sandboxsdk-restore` there.

    Args:
        reader: gives the objects.
        tree: digest of the root directory.
        directory: where; the directory that it lies in must exist.
        owners: what captured owners (uid, gid) become; None leaves files with who restores.
        durable: everything is on disk when this returns.
        supply: is asked for the content of each file before the reader is.

    Raises:
        UsageError: the path cannot be one, or leads into a directory that does not exist.
        Denied: it or its parent is a link, belongs to somebody else or can be replaced by others.
        FileConflict: it is not an empty directory, or was replaced while we built.
        HostFull: the file system has no space for it.
        LimitExceeded: the tree has more entries or levels than a checkpoint may have.
        Corrupt: an object is missing or damaged; nothing of it is left behind.
        HostRefused: the file system cannot hold what the tree has.
    """

    def work(check: _Check) -> Restored:
        with _translating(directory):
            trees = Trees(reader)
            extent = Measure.whole(trees, tree)
            with _Target(directory) as target:
                _check_space(target.parent, extent.data, directory)
                with target.building() as (opener, root):
                    acting = Acting(
                        trees,
                        opener,
                        root,
                        owners=owners,
                        shown=f"{directory.rstrip('/')}/",
                        direct=True,
                        supply=supply,
                        check=check,
                    )
                    try:
                        acting.build(tree)
                    finally:
                        acting.close()
                    if durable:
                        disk.sync_file_system(target.parent)
                    check()
                    target.publish(durable=durable)
                return _report(acting)

    return uninterrupted(work)


def restore_in_place(
    reader: Reader,
    root: int,
    *,
    current: bytes,
    target: bytes,
    owners: Owners | None,
    spare: Spare | None = None,
    shown: str = "",
    begun: Callable[[], None] = lambda: None,
    guarded: bool = False,
) -> Restored:
    """Turn what is below a directory descriptor into a tree, touching only what differs.

    What a run leaves half done, another one with a fresh `current` finishes. Names that neither
    tree has are left alone, unless their directory must go.

    Args:
        reader: gives the objects.
        root: descriptor of the directory; it stays the caller's.
        current: digest of the tree that describes what is there.
        target: digest of the tree that is wanted.
        owners: what captured owners (uid, gid) become; None leaves owners out of it.
        spare: tells of a path, and whether it is a directory, that it is not ours to remove. When
            given, only names of `current` are removed, and a directory that still holds something
            stays.
        shown: what error messages put before a path.
        begun: called in this thread when all is known to be there and to fit, before anything is
            touched.
        guarded: replace and remove only what is still as `current` says.

    Raises:
        Denied: a directory was replaced by a link or is another mount, or rights are missing.
        FileConflict: something that is spared is in the way, or somebody works against us, or
            something is not what `current` says.
        HostFull, LimitExceeded, Corrupt, HostRefused: as `restore_to`.
    """
    trees = Trees(reader)

    def prepare(_check: _Check) -> Plan:
        with _translating(shown or "."):
            made = plan(trees, current, target, owners=owners)
            _check_growth(trees, root, made, shown or ".")
            if guarded:
                check_replaced(trees, root, made, shown)
            return made

    def work(check: _Check) -> Restored:
        with _translating(shown or "."):
            acting = Acting(
                trees,
                Opener(with_openat2=has_openat2()),
                root,
                owners=owners,
                spare=spare,
                shown=shown,
                guard=Guard(trees, current, shown) if guarded else None,
                check=check,
            )
            try:
                acting.run(made)
            finally:
                acting.close()
            return _report(acting)

    made = uninterrupted(prepare)
    begun()
    return uninterrupted(work)


def _report(acting: Acting) -> Restored:
    return Restored(
        written=acting.written,
        removed=acting.removed,
        touched=acting.touched,
        skipped=tuple(sorted(os.fsdecode(path) for path in acting.skipped)),
    )


@contextlib.contextmanager
def _translating(path: str) -> Iterator[None]:
    try:
        yield
    except SandboxError:
        raise
    except OSError as error:
        raise translated(error, "restore", path) from error


# --- Space ----------------------------------------------------------------------------------------


def _available(fd: int) -> int:
    found = os.fstatvfs(fd)
    # Root may use what is reserved.
    return (found.f_bavail if os.geteuid() else found.f_bfree) * found.f_frsize


def _check_space(fd: int, needed: int, path: str) -> None:
    available = _available(fd)
    if needed > available:
        reason = f"needs {needed:,} bytes, and its file system has {available:,}"
        raise HostFull(path=path, reason=reason)


def _check_growth(trees: Trees, root: int, made: Plan, path: str) -> None:
    """Refuse what cannot fit even when everything that goes is gone."""
    if made.data <= _available(root):
        return
    measure = Measure(trees)
    freed = 0
    for _, node in made.removals:
        freed += measure.of(node.content).data if node.kind == DIRECTORY else node.size
    _check_space(root, made.data - freed - made.replaced, path)


# --- The place of a new tree ----------------------------------------------------------------------


class _Target:
    """The name that a new tree gets, in a directory that is pinned from beginning to end."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        above, name = os.path.split(directory.rstrip("/"))
        self._above = above or ("/" if directory.startswith("/") else ".")
        self._name = os.fsencode(name)
        if name in ("", ".", "..") or "\0" in directory:
            reason = "must end with the name of a directory"
            raise UsageError(what="directory", value=directory, reason=reason)
        self._fresh = b".%s.%s" % (self._name[:_BESIDE_BYTES], f"{new_id()}{_SUFFIX}".encode())
        self._was: os.stat_result | None = None
        self.parent: int = -1

    def __enter__(self) -> Self:
        try:
            self.parent = disk.open_directory(self._above.rstrip("/") or "/")
        except FileNotFoundError:
            reason = f"{self._above} does not exist"
            value = self._directory
            raise UsageError(what="directory", value=value, reason=reason) from None
        except NotADirectoryError:
            reason = "is a symbolic link or no directory"
            raise Denied(path=self._above, reason=reason) from None
        try:
            self._check_parent()
            self._was = self._checked()
        except BaseException:
            os.close(self.parent)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.parent)

    def _check_parent(self) -> None:
        mode = os.fstat(self.parent).st_mode
        if mode & 0o002 and not mode & stat.S_ISVTX:
            reason = "can be written by everybody, who may replace what is made in it"
            raise Denied(path=self._above, reason=reason)

    def _checked(self) -> os.stat_result | None:
        """Give what has the name now: an empty directory of ours, or nothing."""
        try:
            found = os.stat(self._name, dir_fd=self.parent, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if stat.S_ISLNK(found.st_mode):
            raise Denied(path=self._directory, reason="is a symbolic link")
        if not stat.S_ISDIR(found.st_mode):
            raise FileConflict(path=self._directory, reason="exists and is no directory")
        if found.st_uid != os.geteuid():
            raise Denied(path=self._directory, reason="belongs to somebody else")
        fd = disk.open_directory(self._name, dir_fd=self.parent)
        try:
            with os.scandir(fd) as entries:
                if next(entries, None) is not None:
                    raise FileConflict(path=self._directory, reason="is not empty")
        finally:
            os.close(fd)
        return found

    @contextlib.contextmanager
    def building(self) -> Iterator[tuple[Opener, int]]:
        """Make the private directory; whatever ends the block, only a published one is left."""
        opener = Opener(with_openat2=has_openat2())
        try:
            disk.make_directory(self._fresh, dir_fd=self.parent)
            root = opener.directory(self.parent, [self._fresh])
            try:
                disk.set_mode(root, 0o700, path_only=True)
                yield opener, root
            finally:
                os.close(root)
        except BaseException:
            with contextlib.suppress(OSError):
                remove_entry(opener, self.parent, self._fresh)
            raise

    def publish(self, *, durable: bool) -> None:
        """Rename it over the empty directory, or to the free name."""
        self._check_unmoved()
        self._rename()
        try:
            if durable:
                disk.sync(self.parent)
        except BaseException:
            self._take_back()
            raise

    def _check_unmoved(self) -> None:
        try:
            above = os.stat(self._above.rstrip("/") or "/", follow_symlinks=False)
        except FileNotFoundError:
            above = None
        if above is None or not os.path.samestat(above, os.fstat(self.parent)):
            raise FileConflict(path=self._above, reason="was moved or replaced meanwhile")
        now = self._checked()
        was = self._was
        if (now is None) != (was is None) or (now and was and not os.path.samestat(now, was)):
            raise FileConflict(path=self._directory, reason="was moved or replaced meanwhile")

    def _rename(self) -> None:
        if self._was is None:
            try:
                disk.rename_new(self._fresh, self._name, old_dir=self.parent, new_dir=self.parent)
            except OSError as error:
                # A file system without the flag; the name was free a moment ago.
                if error.errno not in (errno.EINVAL, errno.ENOSYS):
                    raise
            else:
                return
        disk.rename(self._fresh, self._name, old_dir=self.parent, new_dir=self.parent)

    def _take_back(self) -> None:
        """What could not be made durable is not left under the name."""
        with contextlib.suppress(OSError):
            disk.rename(self._name, self._fresh, old_dir=self.parent, new_dir=self.parent)
            if self._was is not None:
                disk.make_directory(self._name, dir_fd=self.parent)
                fd = disk.open_directory(self._name, dir_fd=self.parent)
                try:
                    disk.set_mode(fd, self._was.st_mode)
                finally:
                    os.close(fd)


# --- Interrupts -----------------------------------------------------------------------------------


def uninterrupted(work: Callable[[_Check], _T]) -> _T:
    """Run work in a thread of its own, where no KeyboardInterrupt can come between two lines.

    Whatever is raised here while it runs makes the `check` that it is given raise there: it tidies
    up and ends before this function does.
    """
    return _Errand(work).run()


class _Errand(Generic[_T]):
    def __init__(self, work: Callable[[_Check], _T]) -> None:
        self._work = work
        self._halted = False
        self._result: list[_T] = []
        self._error: BaseException | None = None
        self._worker = Worker(self._run)

    def run(self) -> _T:
        try:
            try:
                self._worker.start()
            except OSError as error:
                reason = error.strerror or "refused"
                raise HostRefused(what="start", path="a thread", reason=reason) from error
            self._worker.wait()
        except BaseException:
            self._halted = True
            self._worker.give_up()
            while not self._worker.is_over:
                with contextlib.suppress(KeyboardInterrupt):
                    self._worker.wait()
            raise
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _check(self) -> None:
        if self._halted:
            raise KeyboardInterrupt

    def _run(self) -> None:
        try:
            self._result.append(self._work(self._check))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._error = error
