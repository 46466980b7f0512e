"""The rows of the registry: what is kept of each task, and how it is asked for.

What is asked is answered in SQL where that is exact. A row says so when it cannot tell: then its
record decides. A row bears the checksum of all that it says, so that damage is noticed; whoever
forges one is only kept from doing harm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sandboxsdk import ids
from sandboxsdk.codec import checksum, decode_json, encode_json, encode_msgpack
from sandboxsdk.errors import Corrupt, HostFull, HostRefused, SandboxError
from sandboxsdk.host import Database
from sandboxsdk.model import TaskRecord

_VERSION = 2
_SCHEMA = (
    "CREATE TABLE tasks (id TEXT PRIMARY KEY, stamp TEXT, made BLOB, marks BLOB, words BLOB,"
    " sum BLOB, record BLOB) WITHOUT ROWID"
)
_HEAD = "id, stamp, made, marks, words, sum"
_PUT = f"INSERT OR REPLACE INTO tasks ({_HEAD}, record) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
# What is longer is not kept: SQLite bounds rows, a description may be longer than that.
_HEAD_BYTES_MAX = 4096
_RECORD_BYTES_MAX = 64 * 1024
# Rows at a time; SQLite gives at most 1 MiB for each, also of a forged file.
_PAGE = 100
_SUM_BYTES = 16
# No time is beyond, or it counts as this one.
_MOMENT_MAX = 1 << 127


class Damaged(Exception):
    """The file is not what was written; its cause says more."""


class Unusable(Exception):
    """The file cannot be used now: it is held, cannot be written, or the disk is full."""


class Wanted(NamedTuple):
    """What a task must have.

    Attributes:
        marks: each as `mark` makes it.
        words: part of the name or description, as `_bytes` gives it.
    """

    marks: tuple[bytes, ...] = ()
    words: bytes = b""

    def fits(self, record: TaskRecord) -> bool:
        """Say whether a task is wanted. (pure)"""
        return {*self.marks} <= {*_marks(record)} and self.words in _words(record)

    def condition(self) -> tuple[str, list[bytes]]:
        """Give this as a condition on the columns, with its values. (pure)"""
        marks = [b"\n%s\n" % found for found in self.marks]
        if sum(map(len, marks)) > 2 * _HEAD_BYTES_MAX or len(self.words) > _HEAD_BYTES_MAX:
            return "marks IS NULL", []
        terms = ["instr(marks, ?)"] * len(marks) + ["instr(words, ?)"] * bool(self.words)
        every = " AND ".join(terms) or "1"
        return f"(marks IS NULL OR {every})", marks + [self.words] * bool(self.words)


def wanted(
    *,
    name: str | None = None,
    status: str | None = None,
    parent: str | None = None,
    labels: Mapping[str, str] | None = None,
    text: str | None = None,
) -> Wanted:
    """Give what a task must have; what is None fits all. (pure)"""
    named = {"name": name, "status": status, "parent": parent}
    marks = [_mark(what, value) for what, value in named.items() if value is not None]
    marks += [_mark("label", key, value) for key, value in (labels or {}).items()]
    return Wanted(tuple(marks), _bytes((text or "").lower()))


def _marks(record: TaskRecord) -> list[bytes]:
    named = {"name": record.name, "status": record.status, "parent": record.parent}
    marks = [_mark(what, value) for what, value in named.items() if value is not None]
    return marks + [_mark("label", key, value) for key, value in sorted(record.labels.items())]


def _mark(*parts: str) -> bytes:
    """Give a fact as one line: JSON has no newline in it, so no other fact has it as a part."""
    return encode_json(parts)


def _words(record: TaskRecord) -> bytes:
    return _bytes(f"{record.name or ''} {record.description}".lower())


def _bytes(text: str) -> bytes:
    """Give text as it is searched: a part of a str is a part of its bytes and the reverse."""
    return text.encode("utf-8", "surrogatepass")


class Head(NamedTuple):
    """The columns beside the record; `marks` and `words` are None where they would be too long."""

    id: str
    stamp: str
    made: bytes
    marks: bytes | None
    words: bytes | None

    def sum(self, record: bytes = b"") -> bytes:
        return checksum(encode_msgpack(self), record)


def _head(record: TaskRecord, stamp: str) -> Head:
    moment = max(-_MOMENT_MAX, min(record.created_at, _MOMENT_MAX - 1))
    made = (moment + _MOMENT_MAX).to_bytes(16, "big")
    marks, words = b"\n%s\n" % b"\n".join(_marks(record)), _words(record)
    if len(marks) > _HEAD_BYTES_MAX or len(words) > _HEAD_BYTES_MAX:
        return Head(record.id, stamp, made, None, None)
    return Head(record.id, stamp, made, marks, words)


def _row(record: TaskRecord, stamp: str) -> tuple[Any, ...]:
    head = _head(record, stamp)
    body = encode_json(record)
    if len(body) > _RECORD_BYTES_MAX or decode_json(body, TaskRecord, path=record.id) != record:
        return (*head, head.sum(), None)
    return (*head, head.sum(), head.sum(body) + body)


class Table:
    """The table in its file, or in memory if there is none; use it from one thread at a time.

    Raises, here and in every method:
        Damaged, Unusable: and nothing else.
    """

    def __init__(self, path: str | None, *, wait: float) -> None:
        with _told():
            self._database = Database(path, wait=wait)
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with contextlib.suppress(SandboxError):
            self._database.close()

    def _make(self) -> None:
        if not self._schema():
            with self.changing():
                # Somebody else may have been first.
                if not self._schema():
                    self._query(_SCHEMA)
                    self._query(f"PRAGMA user_version = {_VERSION}")
        self._check_schema()

    def _check_schema(self) -> None:
        # Exactly: a view in place of the table could go on forever.
        version = self._query("PRAGMA user_version")
        if self._schema() != [("table", "tasks", _SCHEMA)] or version != [(_VERSION,)]:
            raise Damaged

    def _schema(self) -> list[Any]:
        return self._query("SELECT type, name, sql FROM sqlite_master LIMIT 2")

    def stamps(self) -> dict[str, str]:
        """Give the stamp of every task; looks whether each row says what it said."""
        self._check_schema()
        found: dict[str, str] = {}
        last = ""
        while True:
            rows = self._query(
                f"SELECT {_HEAD} FROM tasks WHERE id > ? ORDER BY id LIMIT {_PAGE}",  # noqa: S608
                [last],
            )
            for *columns, total in rows:
                head = Head(*columns)
                if not _is_key(head.id) or head.id <= last or head.sum() != total:
                    raise Damaged
                last = head.id
                found[last] = head.stamp
            if len(rows) < _PAGE:
                return found

    def put(self, records: Sequence[tuple[TaskRecord, str]]) -> None:
        """Note down records with their stamps."""
        with _told():
            self._database.run_for_each(_PUT, [_row(*each) for each in records])

    def drop(self, tasks: Sequence[str]) -> None:
        with _told():
            self._database.run_for_each("DELETE FROM tasks WHERE id = ?", [(t,) for t in tasks])

    def fitting(self, what: Wanted, prefix: str = "") -> list[tuple[str, bool]]:
        """Give the ids of tasks that are wanted, newest first; True where only the record of a task
        can tell.
        """
        condition, values = what.condition()
        rows = self._query(
            f"SELECT id, marks IS NULL FROM tasks WHERE {condition}"  # noqa: S608 - our words only
            " AND id >= ? AND id < ? ORDER BY made DESC, id",
            [*values, prefix, f"{prefix}\x7f"],
        )
        if not all(_is_key(task) for task, _ in rows):
            raise Damaged
        return [(task, bool(unsure)) for task, unsure in rows]

    def records(self, tasks: Sequence[str]) -> Iterator[tuple[str, TaskRecord | None]]:
        """Give the records of tasks that are there, in this order; None is one too long to keep."""
        for start in range(0, len(tasks), _PAGE):
            page = tasks[start : start + _PAGE]
            marks = ",".join("?" * len(page))
            sql = f"SELECT {_HEAD}, record FROM tasks WHERE id IN ({marks})"  # noqa: S608
            rows = {row[0]: row for row in self._query(sql, page)}
            if rows.keys() != {*page}:
                raise Damaged
            for task in page:
                yield task, self._record(rows.pop(task))

    def _record(self, row: Sequence[Any]) -> TaskRecord | None:
        *columns, total, kept = row
        head = Head(*columns)
        if head.sum() != total or not isinstance(kept, bytes | None):
            raise Damaged
        if kept is None:
            return None
        body = kept[_SUM_BYTES:]
        if head.sum(body) != kept[:_SUM_BYTES]:
            raise Damaged
        with _told():
            record = decode_json(body, TaskRecord, path=self._database.path)
        # Forged, if it is another one's or was found by what it is not.
        if _head(record, head.stamp) != head:
            raise Damaged
        return record

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Let all changes in the block happen together or not at all; no other process has such a
        block meanwhile.
        """
        with self._transaction("BEGIN IMMEDIATE"):
            yield

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """See one state of the table during the block."""
        with self._transaction("BEGIN"):
            yield

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        self._query(begin)
        try:
            yield
            self._query("COMMIT")
        except BaseException:
            # SQLite may have rolled back by itself.
            with contextlib.suppress(Damaged, Unusable):
                self._query("ROLLBACK")
            raise

    def _query(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with _told():
            return self._database.query(sql, values)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Keep the errors of the file apart from those of journals, which are told to the user."""
    try:
        yield
    except Corrupt as error:
        raise Damaged from error
    except (HostFull, HostRefused) as error:
        raise Unusable from error


def _is_key(task: object) -> bool:
    return isinstance(task, str) and ids.is_id(task)
