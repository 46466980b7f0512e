"""The home: the one directory where everything is kept, and the one place where settings meet
engines.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec
from filelock import FileLock as SweepLock
from filelock import Timeout as SweepBusy

from . import ids
from .codec import decode_json, encode_json
from .errors import (
    Corrupt,
    Denied,
    HostFull,
    HostRefused,
    NotFound,
    SandboxError,
    Unavailable,
    UsageError,
)
from .host import FileLock, environment, remove_tree
from .model import Finding, Report, check_path

if TYPE_CHECKING:
    from .runtime import Runtime

FORMAT = 1
_DIRECTORIES = ("tasks", "throwaway", "caches", "trash")
_LITTER = ("sweep.lock", "lost+found")
_UNFINISHED = ".new"
# The kernel takes 4,096; what is kept here needs some of them.
_PATH_BYTES_MAX = 3_500
_DISK_FULL = (28, 122)  # ENOSPC, EDQUOT
_defaults: dict[str, Home] = {}
_defaults_guard = threading.Lock()


class HomeStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a home holds.

    Attributes:
        tasks: lasting tasks.
        throwaway: throwaway tasks, of running boxes or left by a crash.
        free_bytes: free on its file system.
    """

    path: str
    tasks: int
    throwaway: int
    free_bytes: int

    def __str__(self) -> str:
        free = self.free_bytes / 1024**3
        return f"{self.path}: {self.tasks} tasks, {self.throwaway} throwaway, {free:.1f} GiB free"


class _Format(msgspec.Struct):
    format: int


class Home:
    """A directory of ours alone (0700): tasks, caches, later the store.

    Args:
        path: where; $SANDBOXSDK_HOME if None, else the platform's directory for user data.
        read_only: open what is there and write nothing.

    Raises:
        Denied: it belongs to somebody else, or others may write into it.
        UsageError: it is not empty and not a home, or no path at all.
        NotFound: there is none, and nothing may be written.
        Corrupt: what says its format is damaged.
        Unavailable: it was written by a newer version.
        HostRefused, HostFull: it cannot be made.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, read_only: bool = False
    ) -> None:
        wanted = check_path(path, what="home") if path is not None else _default_path()
        expanded = os.path.expanduser(wanted)
        if expanded.startswith("~"):
            hint = 'name the directory in full, or write "./~..." for one with such a name'
            raise UsageError(what="home", value=wanted, reason="names no known user", hint=hint)
        self.path: str = os.path.realpath(expanded)
        if len(os.fsencode(self.path)) > _PATH_BYTES_MAX:
            hint = f"name one with at most {_PATH_BYTES_MAX} bytes in its path"
            raise UsageError(what="home", value=wanted, reason="is too long a path", hint=hint)
        self.read_only: bool = read_only
        self._runtimes: dict[str, Runtime] = {}
        with translated("open home", self.path):
            self._open()

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None, *, read_only: bool = False) -> Home:
        """The same as `Home(path)`."""
        return cls(path, read_only=read_only)

    @classmethod
    def default(cls) -> Home:
        """Give the home that is used when none is named; one object per path and process."""
        path = _default_path()
        with _defaults_guard:
            found = _defaults.get(path)
            if found is None or not os.path.isdir(found.path):
                found = _defaults[path] = cls(path)
            return found

    def __repr__(self) -> str:
        return f"Home({self.path!r})"

    def doctor(self) -> Report:
        """Tell what this host can enforce and why not, with the remedy for each gap."""
        findings = [
            Finding(name="home", ok=True, found=self.path),
            Finding(name="python", ok=sys.version_info >= (3, 11), found=sys.version.split()[0]),
            *self._try("bubblewrap"),
        ]
        return Report(findings=tuple(findings))

    def stats(self) -> HomeStats:
        """Count what lies here."""
        with translated("read home", self.path):
            free = os.statvfs(self.path)
            return HomeStats(
                path=self.path,
                tasks=len(self.task_ids()),
                throwaway=len(list(self._ids_in("throwaway"))),
                free_bytes=free.f_bavail * free.f_frsize,
            )

    def _try(self, runtime: str) -> tuple[Finding, ...]:
        """Have a runtime try itself out in a directory that goes again."""
        if self.read_only:
            return self.runtime(runtime).findings(None)
        # Named like a task that is being made, so that no sweep takes it while it is young.
        scratch = os.path.join(self.path, "tasks", f"{ids.new_id()}.new")
        with translated("write home", self.path):
            os.mkdir(scratch, 0o700)
        try:
            return self.runtime(runtime).findings(scratch)
        finally:
            self.discard(scratch)

    # What follows is for the rooms above, not for users.

    def runtime(self, name: str) -> Runtime:
        """Give the runtime of this name; "auto" is the first that this version has.

        Raises:
            Unavailable: this version has no such runtime.
        """
        from .runtime import Bubblewrap, Plain

        kinds: dict[str, Callable[[], Runtime]] = {"bubblewrap": Bubblewrap, "process": Plain}
        wanted = "bubblewrap" if name == "auto" else name
        if wanted not in kinds:
            raise Unavailable(
                reason=f"runtime {name!r} is not part of this version",
                hint='use runtime="bubblewrap"',
            )
        if wanted not in self._runtimes:
            self._runtimes[wanted] = kinds[wanted]()
        return self._runtimes[wanted]

    def directory(self, task: str, *, throwaway: bool = False) -> str:
        return os.path.join(self.path, "throwaway" if throwaway else "tasks", task)

    @property
    def caches(self) -> str:
        return os.path.join(self.path, "caches")

    def check_writable(self) -> None:
        """Refuse to change anything in a home that was opened to be read.

        Raises:
            Denied: it was.
        """
        if self.read_only:
            hint = "open it without read_only"
            raise Denied(path=self.path, reason="the home is open to be read only", hint=hint)

    def task_ids(self) -> list[str]:
        """Give the ids of all lasting tasks, sorted."""
        return sorted(self._ids_in("tasks"))

    def discard(self, directory: str) -> None:
        """Delete a task's directory: first out of sight in one step, then bit by bit."""
        trash = os.path.join(self.path, "trash")
        name = ids.new_id()
        with translated("delete", directory):
            if not os.path.lexists(directory):
                return
            with contextlib.suppress(FileExistsError):
                os.mkdir(trash, 0o700)
            with contextlib.suppress(FileNotFoundError):
                os.rename(directory, os.path.join(trash, name))
                descriptor = os.open(trash, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    remove_tree(descriptor, os.fsencode(name))
                finally:
                    os.close(descriptor)

    def sweep(self) -> int:
        """Delete what crashes left: throwaway tasks whose owner is dead, half-made and half-deleted
        ones.

        Cheap when there is nothing to do; one process at a time, others go on without waiting.
        """
        if self.read_only:
            return 0
        removed = 0
        lock = SweepLock(os.path.join(self.path, "sweep.lock"), timeout=0)
        # It helps whoever comes next; nobody fails because it could not, e.g. on a full disk.
        with contextlib.suppress(SweepBusy, OSError), lock:
            for directory in self._leftovers():
                with contextlib.suppress(SandboxError):
                    self.discard(directory)
                    removed += 1
        return removed

    def _leftovers(self) -> Iterator[str]:
        for place in ("throwaway", "tasks"):
            for name in self._names_in(place):
                directory = os.path.join(self.path, place, name)
                unfinished = name.endswith(_UNFINISHED)
                if (unfinished or place == "throwaway") and self._is_abandoned(directory):
                    yield directory
        for name in self._names_in("trash"):
            yield os.path.join(self.path, "trash", name)

    def _is_abandoned(self, directory: str) -> bool:
        """Tell whether nobody holds the task in `directory`; one that is being made is held from
        the start.
        """
        lease = FileLock(os.path.join(directory, "lease"))
        try:
            if not lease.acquire(0):
                return False
        except NotFound:
            lease_file = False
        except (HostRefused, Corrupt):
            return False
        else:
            lease.release()
            lease_file = True
        # One that is being made is not held yet for a moment.
        making = directory.endswith(_UNFINISHED) or not lease_file
        return not (making and _is_fresh(directory))

    def _ids_in(self, name: str) -> Iterator[str]:
        return (entry for entry in self._names_in(name) if ids.is_id(entry))

    def _names_in(self, name: str) -> list[str]:
        try:
            return os.listdir(os.path.join(self.path, name))
        except FileNotFoundError:
            return []

    def _open(self) -> None:
        if not self.read_only:
            _make_parents(self.path)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path, 0o700)
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            hint = "open it without read_only to make it, or name another directory"
            raise NotFound(reason=f"there is no home at {self.path}", hint=hint) from None
        self._check_owner(found)
        names = os.listdir(self.path)
        format_path = os.path.join(self.path, "format")
        if "format" in names:
            with open(format_path, "rb") as file:
                written = decode_json(file.read(4096), _Format, path=format_path).format
            if written < 1:
                raise Corrupt(path=format_path, reason=f"says format {written}")
            if written > FORMAT:
                raise Unavailable(
                    reason=f"{self.path} was written by a newer version (format {written})",
                    hint="upgrade sandboxsdk, or use another home",
                )
        elif any(not _may_be_ours(name) for name in names):
            raise UsageError(
                what="home",
                value=self.path,
                reason="is not empty and not a home of sandboxsdk",
                hint="name an empty or new directory",
            )
        if not self.read_only:
            self._complete(found, format_path)

    def _complete(self, found: os.stat_result, format_path: str) -> None:
        if stat.S_IMODE(found.st_mode) != 0o700:
            os.chmod(self.path, 0o700)
        for name in _DIRECTORIES:
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.join(self.path, name), 0o700)
        if not os.path.exists(format_path):
            self._write_format(format_path)

    def _write_format(self, path: str) -> None:
        # Whole or not at all: half of it would make a damaged home of a new one.
        unfinished = f"{path}.{ids.new_id()}{_UNFINISHED}"
        try:
            with open(unfinished, "xb", opener=_open_private) as file:
                file.write(encode_json(_Format(FORMAT)))
                file.flush()
                os.fsync(file.fileno())
            os.rename(unfinished, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            raise

    def _check_owner(self, found: os.stat_result) -> None:
        if not stat.S_ISDIR(found.st_mode):
            hint = "name an empty or new directory"
            raise UsageError(what="home", value=self.path, reason="is not a directory", hint=hint)
        if found.st_uid != os.geteuid():
            raise Denied(
                path=self.path,
                reason=f"the home belongs to uid {found.st_uid}, not to you (uid {os.geteuid()})",
                hint="name a directory of your own with SANDBOXSDK_HOME",
            )
        if stat.S_IMODE(found.st_mode) & 0o022 and os.listdir(self.path):
            raise Denied(
                path=self.path,
                reason="others may write into this home",
                hint=f"look at what is in it, then `chmod 700 {self.path}`",
            )


@contextlib.contextmanager
def translated(what: str, path: str) -> Iterator[None]:
    """Turn the host's errors into ours."""
    try:
        yield
    except OSError as error:
        if isinstance(error, SandboxError):
            raise  # Some of ours are OSErrors too.
        if error.errno in _DISK_FULL:
            raise HostFull(path=path, reason=os.strerror(error.errno)) from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise HostRefused(what=what, path=path, reason=reason) from error


def _is_fresh(directory: str) -> bool:
    """Tell whether a directory is younger than a minute; half-made ones that are older have no
    maker.
    """
    from .clock import now_ns

    try:
        made = os.stat(directory).st_mtime_ns
    except FileNotFoundError:
        return True
    return now_ns() - made < 60 * 1_000_000_000


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _make_parents(path: str) -> None:
    missing = []
    # No recursion, as os.makedirs has: a path may have more levels than Python has frames.
    while not os.path.lexists(path := os.path.dirname(path)):
        missing.append(path)
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory)


def _may_be_ours(name: str) -> bool:
    """Tell whether a home that is being made may hold this name."""
    unfinished = name.startswith("format.") and name.endswith(_UNFINISHED)
    return unfinished or name in (*_DIRECTORIES, *_LITTER)


def _default_path() -> str:
    named = environment("SANDBOXSDK_HOME")
    if named:
        return named
    if sys.platform == "darwin":
        return os.path.expanduser("~/Library/Application Support/sandboxsdk")
    # A relative one is to be ignored, says its specification.
    data = environment("XDG_DATA_HOME") or ""
    return os.path.join(data if os.path.isabs(data) else "~/.local/share", "sandboxsdk")
