"""The home: the one directory where everything is kept, and the one place where settings meet
engines.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, get_args

from sandboxsdk import ids
from sandboxsdk.clock import monotonic
from sandboxsdk.disk import translated
from sandboxsdk.errors import (
    Denied,
    NotFound,
    Unavailable,
    UsageError,
)
from sandboxsdk.host import environment
from sandboxsdk.journal import FILE, Journal
from sandboxsdk.model import (
    Finding,
    GcReport,
    HomeStats,
    Level,
    Points,
    Problem,
    Report,
    VerifyReport,
    check_choice,
    check_path,
    fold_points,
)

from .opening import open_home
from .sweeping import discard, ids_in, remove_unfinished, sweep

# The engines are imported when they are first needed.
if TYPE_CHECKING:
    from sandboxsdk.layers import Layers
    from sandboxsdk.runtime import Runtime
    from sandboxsdk.store import Store

# The kernel takes 4,096; what is kept here needs some of them.
_PATH_BYTES_MAX = 3_500
_defaults: dict[str, Home] = {}
_defaults_guard = threading.Lock()


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
        self._store: Store | None = None
        self._guard = threading.RLock()
        with translated("open home", self.path):
            open_home(self.path, read_only=self.read_only)

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
                throwaway=len(list(ids_in(self.path, "throwaway"))),
                store_bytes=0 if self._is_bare else self.store.disk_bytes(),
                free_bytes=free.f_bavail * free.f_frsize,
            )

    def verify(self, level: Level = "index", *, repair: bool = False) -> VerifyReport:
        """Check the store, and that every checkpoint of every task has all that it needs.

        Args:
            level: "index" compares the index with what lies on disk, "objects" also every stored
                byte with its checksum, "content" also every object with its digest.
            repair: make the index anew, so that what is damaged is stored again by the next
                checkpoint that still finds it. Damage itself cannot be undone; it is named.

        Raises:
            Corrupt: a journal is damaged, so it is unknown what its task needs.
        """
        from sandboxsdk.snapshot import name_victims

        check_choice(level, get_args(Level), what="level")
        if repair:
            self.check_writable()
        if self._is_bare:
            return self._verified_bare(level)
        began = monotonic()
        check = self.store.verify(level, repair=repair)
        problems = name_victims(self.store, check, self._points())
        return VerifyReport(
            level=level,
            problems=tuple(problems),
            packs=check.packs,
            objects=check.objects,
            bytes=check.bytes,
            seconds=monotonic() - began,
            repaired=repair,
        )

    def gc(self, *, dry_run: bool = False) -> GcReport:
        """Free the disk that no checkpoint of any task needs any more.

        Others may go on making checkpoints meanwhile. Killed at any moment, it leaves a valid
        store.

        Raises:
            Corrupt: a journal or a tree is damaged, so it is unknown what is needed; nothing was
                deleted.
            HostFull, HostRefused: the store cannot be written; nothing was lost.
        """
        if dry_run and self._is_bare:
            return GcReport(dry_run=True)
        if not dry_run:
            self.check_writable()
            self.sweep()
            remove_unfinished(self.path)
            self.layers.sweep(keep=self._roots())
        return self.store.gc(self._needed, dry_run=dry_run)

    @property
    def _is_bare(self) -> bool:
        """Whether there is no store yet, and none may be made."""
        return self.read_only and not os.path.lexists(os.path.join(self.path, "store", "format"))

    def _verified_bare(self, level: Level) -> VerifyReport:
        """Give the report where there is no store: what needs one is lost."""
        path = os.path.join(self.path, "store")
        needing = [points for points in self._points().values() if points.roots()]
        lost = tuple(checkpoint for points in needing for checkpoint in points.records)
        problem = Problem(path=path, reason="is missing", checkpoints=lost)
        return VerifyReport(level=level, problems=(problem,) if needing else ())

    def _needed(self) -> set[bytes]:
        from sandboxsdk.snapshot import reachable

        return reachable(self.store, sorted(self._roots()))

    def _roots(self) -> set[bytes]:
        """Give the digests of all trees that are needed."""
        points = self._points().values()
        roots = {bytes.fromhex(root) for one in points for root in one.roots()}
        # What an upper lies over, also if its checkpoint was deleted.
        for stack in self.layers.stacks():
            roots |= {tree for tree in (stack.tree, stack.bottom) if tree}
        return roots

    def _points(self) -> dict[str, Points]:
        """Read what the journals of all tasks say of checkpoints, by the task's directory.

        Raises:
            Corrupt: one of them is damaged.
        """
        found = {}
        for place in ("tasks", "throwaway"):
            for task in ids_in(self.path, place):
                directory = os.path.join(self.path, place, task)
                path = os.path.join(directory, FILE)
                # One that was deleted meanwhile needs nothing.
                with contextlib.suppress(NotFound):
                    found[directory] = fold_points(Journal(path).entries(), path=path)
        return found

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
        from sandboxsdk.runtime import Bubblewrap, Plain

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

    @property
    def store(self) -> Store:
        """Give the store of this home, opened when it is first needed."""
        from sandboxsdk.store import Store

        with self._guard:
            if self._store is None:
                path = os.path.join(self.path, "store")
                self._store = Store(path, read_only=self.read_only)
                # Nobody closes a home: it is done with when nobody has it any more.
                weakref.finalize(self, self._store.close)
            return self._store

    @property
    def scans(self) -> str:
        """The directory for what walks remember of users' own directories."""
        return os.path.join(self.path, "scans")

    @property
    def layers(self) -> Layers:
        """The frozen layers that the tasks of this home lie on."""
        from sandboxsdk.layers import Layers

        owners = tuple(os.path.join(self.path, name) for name in ("tasks", "throwaway"))
        return Layers(os.path.join(self.path, "layers"), owners)

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

    def task_ids(self, *, throwaway: bool = False) -> list[str]:
        """Give the ids of all lasting tasks, or of all throwaway ones, sorted."""
        return sorted(ids_in(self.path, "throwaway" if throwaway else "tasks"))

    def discard(self, directory: str) -> None:
        """Delete a task's directory: first out of sight in one step, then bit by bit."""
        discard(self.path, directory)

    def sweep(self) -> int:
        """Delete what crashes left; see `sweeping.sweep`."""
        if self.read_only:
            return 0
        return sweep(self.path) + self.layers.sweep()


def _default_path() -> str:
    named = environment("SANDBOXSDK_HOME")
    if named:
        return named
    if sys.platform == "darwin":
        return os.path.expanduser("~/Library/Application Support/sandboxsdk")
    # A relative one is to be ignored, says its specification.
    data = environment("XDG_DATA_HOME") or ""
    return os.path.join(data if os.path.isabs(data) else "~/.local/share", "sandboxsdk")
