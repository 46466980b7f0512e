"""Task records by id, name, status, labels and text, brought in line with the journals first."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar, final

from sandboxsdk import ids
from sandboxsdk.codec import decode_json, encode_json
from sandboxsdk.errors import Corrupt, Denied, HostFull, HostRefused, NotFound
from sandboxsdk.host import Database
from sandboxsdk.model import TaskRecord

FILE = "registry.sqlite"
"""Its name in a home."""

_VERSION = 1
# Longer than anybody else takes to bring it in line.
_WAIT_SECONDS = 10.0
_TABLE = """
CREATE TABLE IF NOT EXISTS tasks (
    id TEXT PRIMARY KEY, stamp TEXT, name BLOB, status TEXT, created INTEGER, parent TEXT,
    words BLOB, record BLOB
) WITHOUT ROWID
"""
_SCHEMA = (
    "DROP TABLE IF EXISTS tasks",
    _TABLE,
    "CREATE INDEX IF NOT EXISTS by_time ON tasks (created DESC, id)",
    "CREATE INDEX IF NOT EXISTS by_name ON tasks (name)",
)
_UNREADABLE = (NotFound, Corrupt, Denied, HostRefused)

T = TypeVar("T")


@final
class Registry:
    """The registry of one home. May be used from several threads, and by several processes.

    Args:
        path: of the file.
        tasks: the directory that has a directory for each task.
        journal: the name of its journal there.
        read: gives the record of the task in a directory.
        read_only: write nothing; then all journals are read once for each object.
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
        self._read_only = read_only
        self._guard = threading.RLock()
        self._database: Database | None = None
        self._pid = os.getpid()

    def named(self, name: str) -> list[TaskRecord]:
        """Give the tasks of this name, newest first; those that cannot be read are left out."""
        return self._asked("name = ?", (_bytes(name),))

    def prefixed(self, prefix: str) -> list[TaskRecord]:
        """Give the tasks whose id begins so, newest first."""
        if not prefix.isascii() or not prefix.isalnum():
            return []
        return self._asked("id >= ? AND id < ?", (prefix, f"{prefix}\x7f"))

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
        terms: list[tuple[str, str | bytes]] = []
        if status is not None:
            terms.append(("status = ?", status))
        if parent is not None:
            # No id has another character, and no other text can be asked for.
            terms.append(("parent = ?", parent if parent.isascii() else "-"))
        if text:
            terms.append(("instr(words, ?) > 0", _bytes(text.lower())))
        where = " AND ".join(term for term, _ in terms) or "1"
        values = tuple(value for _, value in terms)
        if not labels:
            return self._asked(where, values, limit=limit, offset=offset)
        wanted = labels.items()
        fitting = [r for r in self._asked(where, values) if wanted <= r.labels.items()]
        return fitting[offset : offset + limit]

    def _asked(
        self, where: str, values: Sequence[str | bytes], *, limit: int = -1, offset: int = 0
    ) -> list[TaskRecord]:
        bound = [min(limit, 2**62), min(offset, 2**62)]
        # The terms are ours; what was asked for is in the values.
        sql = f"SELECT id, record FROM tasks WHERE {where}"  # noqa: S608
        sql += " ORDER BY created DESC, id LIMIT ? OFFSET ?"

        def ask(database: Database) -> list[TaskRecord]:
            self._refresh(database)
            rows = database.query(sql, [*values, *bound])
            return [self._checked(task, record) for task, record in rows]

        with self._guard:
            return self._answered(ask)

    def _checked(self, task: object, record: object) -> TaskRecord:
        """Give what a row holds.

        Raises:
            Corrupt: it is not what was written.
        """
        if not isinstance(record, bytes):
            raise Corrupt(path=self._path, reason="holds something else than records")
        found = decode_json(record, TaskRecord, path=self._path)
        if found.id != task:
            raise Corrupt(path=self._path, reason="holds a record under another id")
        return found

    # --- The file ---------------------------------------------------------------------------------

    def _answered(self, ask: Callable[[Database], T]) -> T:
        """Ask; a damaged file is made anew, and where it cannot be used, memory is."""
        for in_memory in (False, False, True):
            try:
                return ask(self._opened(in_memory=in_memory))
            except Corrupt:
                self._drop()
            except (HostFull, HostRefused):
                # Another process keeps it, the disk is full, or nobody may write.
                self.close()
        raise Corrupt(path=self._path, reason="is damaged again and again")

    def _opened(self, *, in_memory: bool) -> Database:
        if self._database is not None and self._pid == os.getpid():
            return self._database
        self.close()
        path = None if in_memory or self._read_only else self._path
        self._pid = os.getpid()
        self._database = database = Database(path, wait=_WAIT_SECONDS)
        if database.query("PRAGMA user_version") != [(_VERSION,)]:
            with database.transaction():
                for statement in _SCHEMA:
                    database.query(statement)
                database.query(f"PRAGMA user_version = {_VERSION}")
        return database

    def close(self) -> None:
        """Let go of the file; the next question opens it again."""
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(Corrupt, HostFull, HostRefused):
                database.close()

    def _drop(self) -> None:
        self.close()
        if not self._read_only:
            for suffix in ("", "-journal"):
                with contextlib.suppress(OSError):
                    os.unlink(f"{self._path}{suffix}")

    # --- In line with the journals ----------------------------------------------------------------

    def _refresh(self, database: Database) -> None:
        """Read what changed since it was last looked at: one look for each task."""
        known: dict[str, str] = dict(database.query("SELECT id, stamp FROM tasks"))
        there = dict(self._stamps())
        gone = known.keys() - there.keys()
        changed = [task for task, stamp in there.items() if known.get(task) != stamp]
        if not gone and not changed:
            return
        rows = []
        for task in changed:
            try:
                rows.append(_row(there[task], self._read(os.path.join(self._tasks, task))))
            except _UNREADABLE:
                gone.add(task)
        with database.transaction():
            database.run_for_each("DELETE FROM tasks WHERE id = ?", [(task,) for task in gone])
            database.run_for_each("REPLACE INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _stamps(self) -> Iterator[tuple[str, str]]:
        """Give what tells whether a journal has changed, for each task."""
        try:
            names = os.listdir(self._tasks)
        except FileNotFoundError:
            return
        for name in names:
            if ids.is_id(name):
                with contextlib.suppress(OSError):
                    found = os.stat(
                        os.path.join(self._tasks, name, self._journal), follow_symlinks=False
                    )
                    times = f"{found.st_mtime_ns}:{found.st_ctime_ns}"
                    yield name, f"{found.st_size}:{times}:{found.st_ino}"


def _row(stamp: str, record: TaskRecord) -> tuple[str | int | bytes | None, ...]:
    words = f"{record.name or ''} {record.description}".lower()
    return (
        record.id,
        stamp,
        None if record.name is None else _bytes(record.name),
        record.status,
        record.created_at,
        record.parent,
        _bytes(words),
        encode_json(record),
    )


def _bytes(text: str) -> bytes:
    """Give text as it is compared: any str has bytes, also one that is no Unicode text."""
    return text.encode("utf-8", "surrogatepass")
