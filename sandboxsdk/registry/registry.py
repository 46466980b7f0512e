"""Task records by id, name, status, labels and text, brought in line with the journals first."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar, final

from sandboxsdk import disk, ids
from sandboxsdk.errors import Corrupt, Denied, NotFound
from sandboxsdk.model import TaskRecord

from .table import Damaged, Table, Unusable, Wanted, wanted

FILE = "registry.sqlite"
"""Its name in a home."""

# Others hold it for moments only; who waits longer works in memory.
_WAIT_SECONDS = 5.0
_BATCH = 200
_BESIDE = ("-journal", "-wal", "-shm")

T = TypeVar("T")
_all: weakref.WeakSet[Registry] = weakref.WeakSet()


class _Look(NamedTuple):
    """What a task was when it was looked at: how its journal lay there, and what it said.

    A journal is only appended to, so another state of it has another size.
    """

    stamp: str | None
    record: TaskRecord | None


@final
class Registry:
    """The registry of one home. May be used from several threads, and by several processes.

    No question raises anything of the file: a damaged one is made anew, and where it cannot be
    used, memory is. Tasks whose journal is missing, damaged or may not be read are left out.

    Args:
        path: of the file.
        tasks: the directory that has a directory for each task.
        journal: the name of its journal there.
        read: gives the record of the task in a directory.
        read_only: write nothing; then all journals are read once for each object.

    Raises, in every question:
        HostRefused: the directory or a journal cannot be read, through no fault of the task.
    """

    def __init__(
        self,
        path: str,
        *,
        tasks: str,
        journal: str,
        read: Callable[[str], TaskRecord],
        read_only: bool,
    ) -> None:
        self._path, self._tasks, self._journal, self._read = path, tasks, journal, read
        self._in_memory = read_only
        self._guard = threading.RLock()
        self._table: Table | None = None
        self._identity: tuple[int, int] | None = None
        _all.add(self)

    def named(self, name: str) -> list[TaskRecord]:
        """Give the tasks of this name, newest first."""
        return self._asked(wanted(name=name))

    def prefixed(self, prefix: str) -> list[TaskRecord]:
        """Give the tasks whose id begins so, newest first."""
        if not ids.is_id(prefix.ljust(16, "0")):
            return []
        return self._asked(Wanted(), prefix=prefix)

    def select(
        self,
        *,
        status: str | None = None,
        labels: Mapping[str, str],
        parent: str | None = None,
        text: str | None = None,
        limit: int,
        offset: int = 0,
    ) -> list[TaskRecord]:
        """Give tasks that fit all that is given, newest first.

        Args:
            text: part of name and description, in any case.
        """
        what = wanted(status=status, labels=labels, parent=parent, text=text)
        return self._asked(what, limit=limit, offset=offset)

    def _asked(
        self, what: Wanted, *, prefix: str = "", limit: int | None = None, offset: int = 0
    ) -> list[TaskRecord]:
        def ask(table: Table) -> list[TaskRecord]:
            self._refresh(table)
            with table.still():
                end = None if limit is None else offset + limit
                found: list[str] = []
                for task, unsure in table.fitting(what, prefix):
                    if end is not None and len(found) >= end:
                        break
                    if not unsure or any(map(what.fits, self._records(table, [task]))):
                        found.append(task)
                return self._records(table, found[offset:end])

        return self._answered(ask)

    def _records(self, table: Table, tasks: Sequence[str]) -> list[TaskRecord]:
        kept = (record or self._said(task) for task, record in table.records(tasks))
        return [record for record in kept if record is not None]

    # --- The file ---------------------------------------------------------------------------------

    def _answered(self, ask: Callable[[Table], T]) -> T:
        """Ask; a damaged file is made anew, and where it cannot be used, memory is."""
        with self._guard:
            try:
                for _ in range(2):
                    try:
                        return ask(self._opened())
                    except Damaged:
                        self._remove()
                    except Unusable:
                        break
                self.close()
                self._in_memory = True
                return ask(self._opened())
            except (Damaged, Unusable) as error:
                # Not even in memory: there is none left.
                raise error.__cause__ or error from None
            except BaseException:
                # It may be in the middle of something.
                self.close()
                raise

    def _opened(self) -> Table:
        there = None if self._in_memory else self._looked_at()
        if self._table is not None and there == self._identity:
            return self._table
        self.close()
        path = None if self._in_memory else self._path
        self._table = Table(path, wait=_WAIT_SECONDS)
        # As it was before: if it is replaced just now, that is noticed later.
        self._identity = there or (self._looked_at() if path else None)
        return self._table

    def _looked_at(self) -> tuple[int, int] | None:
        """Give the identity of the file, so that none is used that another process has removed.

        Raises:
            Unusable: it is no file.
            Damaged: it is one that nobody could use.
        """
        try:
            found = os.stat(self._path, follow_symlinks=False)
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode):
            raise Unusable from Corrupt(path=self._path, reason="is not a regular file")
        if not os.access(self._path, os.R_OK | os.W_OK):
            raise Damaged from Denied(path=self._path, reason="cannot be read and written")
        return found.st_dev, found.st_ino

    def close(self) -> None:
        """Let go of the file; the next question opens it again."""
        with self._guard:
            table, self._table, self._identity = self._table, None, None
            if table is not None:
                table.close()

    def _remove(self) -> None:
        self.close()
        if self._in_memory:
            return
        # The journal goes first: it would be applied to the new file.
        for end in (*_BESIDE, ""):
            with contextlib.suppress(OSError):
                disk.remove(self._path + end)

    def start_anew(self) -> None:
        """In a forked child: use nothing of the parent's, and wait for no thread of it."""
        self._guard = threading.RLock()
        self.close()

    # --- In line with the journals ----------------------------------------------------------------

    def _refresh(self, table: Table) -> None:
        """Read what changed since it was last looked at: one look for each task."""
        known = table.stamps()
        there = self._stamps()
        changed = [task for task, stamp in there.items() if known.get(task) != stamp]
        changed += known.keys() - there.keys()
        for start in range(0, len(changed), _BATCH):
            looks = {task: self._look(task) for task in changed[start : start + _BATCH]}
            if all(look.record is None and task not in known for task, look in looks.items()):
                continue  # Damaged journals are looked at each time, and nothing comes of it.
            with table.changing():
                # Another process may have noted down something newer meanwhile; from now on none
                # does, so that a row is never older than one that was there.
                for task, look in looks.items():
                    if self._stamp(task) != look.stamp:
                        looks[task] = self._look(task)
                table.drop([task for task, look in looks.items() if look.record is None])
                table.put(
                    [(look.record, look.stamp or "") for look in looks.values() if look.record]
                )

    def _look(self, task: str) -> _Look:
        # The stamp first: what is appended meanwhile makes it another one.
        stamp = self._stamp(task)
        return _Look(stamp, None if stamp is None else self._said(task))

    def _said(self, task: str) -> TaskRecord | None:
        try:
            record = self._read(os.path.join(self._tasks, task))
        except (NotFound, Corrupt, Denied):
            return None
        return record if record.id == task else None

    def _stamps(self) -> dict[str, str]:
        """Give what tells whether a journal has changed, for each task."""
        with disk.translated("read", self._tasks):
            try:
                names = os.listdir(self._tasks)
            except FileNotFoundError:
                return {}
        looks = ((name, self._stamp(name)) for name in names if ids.is_id(name))
        return {name: stamp for name, stamp in looks if stamp is not None}

    def _stamp(self, task: str) -> str | None:
        try:
            found = os.stat(f"{self._tasks}/{task}/{self._journal}", follow_symlinks=False)
        except OSError:
            return None
        times = f"{found.st_mtime_ns}:{found.st_ctime_ns}"
        return f"{found.st_size}:{times}:{found.st_ino}"


def _start_anew() -> None:
    for registry in list(_all):
        registry.start_anew()


os.register_at_fork(after_in_child=_start_anew)
