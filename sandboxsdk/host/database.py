"""SQLite databases that are caches. Owner of sqlite3.

What is in one can be made again, so nothing is synced, and every failure comes as a typed error.
The file is trusted as little as any other: it cannot call functions, and no value is large.
"""

from __future__ import annotations

import contextlib
import os
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, final

from sandboxsdk.errors import Corrupt, HostFull, HostRefused, SandboxError

if TYPE_CHECKING:
    import sqlite3  # Else imported where it is used: most processes open no database.

Value = int | str | bytes | None
Row = tuple[Any, ...]

_VALUE_BYTES_MAX = 1024 * 1024
# Result codes that are not the file's fault: PERM, BUSY, LOCKED, NOMEM, READONLY, INTERRUPT, IOERR,
# CANTOPEN, PROTOCOL, AUTH. Extended ones have them in their low byte; a read that fails or ends
# early is the file's fault.
_FULL = 13
_READ_ONLY = 8
_REFUSED = frozenset((3, 5, 6, 7, 8, 9, 10, 14, 15, 23))
_UNREADABLE = (266, 522)
# A connection must be neither used nor closed in a forked child: it is kept from being collected.
_left_alone: list[sqlite3.Connection] = []


@final
class Database:
    """One connection; use it from one thread at a time.

    Args:
        path: absolute path of the file; None is a database in memory.
        read_only: write nothing, also no journal.
        wait: seconds to wait for others.

    Raises:
        Corrupt: the file is no database, or a damaged one.
        HostFull: there is no room.
        HostRefused: it cannot be opened, or others kept it for longer than `wait`.
    """

    def __init__(self, path: str | None, *, read_only: bool = False, wait: float = 30.0) -> None:
        import sqlite3

        self.path: str = path or ":memory:"
        self._pid = os.getpid()
        self._read_only = read_only
        quoted = urllib.parse.quote(os.fsencode(self.path))
        where = f"file:{quoted}?mode={'ro' if read_only else 'rwc'}" if path else ":memory:"
        with self._translated():
            self._connection = sqlite3.connect(
                where, timeout=wait, isolation_level=None, check_same_thread=False, uri=True
            )
        try:
            with self._translated():
                self._prepare(read_only=read_only)
        except BaseException:
            self.close()
            raise

    def _prepare(self, *, read_only: bool) -> None:
        import sqlite3

        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_BYTES_MAX)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        settings = ["trusted_schema=OFF", "cell_size_check=ON", "temp_store=MEMORY", "mmap_size=0"]
        if not read_only:
            # A rollback journal: the newer kind has a bug with several connections.
            settings += ["journal_mode=DELETE", "synchronous=OFF"]
        for setting in settings:
            self._connection.execute(f"PRAGMA {setting}").fetchall()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        import sqlite3

        try:
            yield
        except (sqlite3.Error, OverflowError, MemoryError, UnicodeError) as error:
            code = getattr(error, "sqlite_errorcode", 0)
            if code & 0xFF == _FULL:
                raise HostFull(path=self.path, reason=str(error)) from error
            # A file that we may write, and that says of itself that nobody may, is damaged.
            closed = self._read_only or not os.access(self.path, os.W_OK)
            forged = code & 0xFF == _READ_ONLY and not closed
            if code & 0xFF in _REFUSED and code not in _UNREADABLE and not forged:
                raise HostRefused(what="use database", path=self.path, reason=str(error)) from error
            raise Corrupt(path=self.path, reason=str(error)) from error

    def query(self, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        """Give all rows that a statement answers with."""
        assert os.getpid() == self._pid, "a connection does not live on in a forked child"
        with self._translated():
            return self._connection.execute(sql, values).fetchall()

    def run_for_each(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """Run a statement once for each row of values."""
        assert os.getpid() == self._pid, "a connection does not live on in a forked child"
        with self._translated():
            self._connection.executemany(sql, rows)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Let everything in the block happen together or not at all; others wait meanwhile."""
        self.query("BEGIN IMMEDIATE")
        try:
            yield
            self.query("COMMIT")
        except BaseException:
            # SQLite may have rolled back by itself.
            with contextlib.suppress(SandboxError):
                if self._connection.in_transaction:
                    self.query("ROLLBACK")
            raise

    def close(self) -> None:
        """Let go of the file; in a forked child only of the object."""
        if os.getpid() != self._pid:
            _left_alone.append(self._connection)
            return
        with self._translated():
            self._connection.close()
