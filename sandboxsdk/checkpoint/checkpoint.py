"""A checkpoint as its user meets it: a value that knows its history."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, final

from sandboxsdk import clock
from sandboxsdk.errors import UsageError
from sandboxsdk.model import (
    Change,
    CheckpointRecord,
    CheckpointStats,
    FileStat,
    RestoreReport,
    VerifyReport,
    check_path,
)
from sandboxsdk.snapshot import restore_to

from .contents import check_content, list_files, read_file

if TYPE_CHECKING:
    from .history import History

READ_BYTES_MAX = 1 << 30


@final
class Checkpoint:
    """A point that the files of a task can go back to. `box.checkpoint()` makes one.

    As a context manager it undoes what the block did to the files if the block raises, and keeps
    the state that failed as a checkpoint labelled `rolled-back`. Only a checkpoint that
    `box.checkpoint()` gave can do that, inside the block of its box.
    """

    def __init__(
        self,
        record: CheckpointRecord,
        history: History,
        *,
        roll_back: Callable[[Checkpoint], RestoreReport] | None = None,
    ) -> None:
        self._record = record
        self._history = history
        self._roll_back = roll_back

    @property
    def id(self) -> str:
        return self._record.id

    @property
    def name(self) -> str | None:
        return self._record.name

    @property
    def parent(self) -> str | None:
        """Id of the checkpoint that the files came from; None is the task's beginning."""
        return self._record.parent

    @property
    def task(self) -> str:
        """Id of the task."""
        return self._record.task

    @property
    def created_at(self) -> int:
        """UTC nanoseconds."""
        return self._record.created_at

    @property
    def description(self) -> str:
        return self._record.description

    @property
    def labels(self) -> Mapping[str, str]:
        return self._record.labels

    @property
    def stats(self) -> CheckpointStats:
        """What it holds and what it cost."""
        return self._record.stats

    @property
    def tree(self) -> str:
        """Digest of all files: two checkpoints with the same have equal files."""
        return self._record.tree

    @property
    def record(self) -> CheckpointRecord:
        return self._record

    @property
    def history(self) -> History:
        """The history that it belongs to: for the rooms above, not for users."""
        return self._history

    def __enter__(self) -> Self:
        if self._roll_back is None:
            hint = 'write `with box.checkpoint("before the risky part"):`'
            reason = "was not made by box.checkpoint(), so there is no box to roll back"
            raise UsageError(what="with", value=self.id, reason=reason, hint=hint)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        if error is not None and self._roll_back is not None:
            report = self._roll_back(self)
            if report.saved is None:
                error.add_note("the files were rolled back; what they were could not be kept")
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checkpoint) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        named = f", {self.name!r}" if self.name is not None else ""
        return f"Checkpoint({self.id!r}{named})"

    def diff(self, other: Checkpoint | None = None) -> list[Change]:
        """Tell what changed from this checkpoint to another one, or to now if None.

        Raises:
            TaskLocked: "now" is asked for, and another process works on the task.
            UsageError: the other belongs to an unrelated task.
        """
        if other is None:
            with self._history.hold():
                return self._history.diff(self, None)
        return self._history.diff(self, other)

    def files(self) -> list[FileStat]:
        """Describe everything in it, directories included, in the order of the paths' bytes.

        Raises:
            Corrupt: part of it is missing or damaged.
        """
        return list_files(self._history.store, self._root)

    def read(self, path: str | os.PathLike[str], *, limit: int = READ_BYTES_MAX) -> bytes:
        """Give the content of one file, checked.

        Raises:
            FileMissing: there is no such path.
            FileConflict: it is no regular file.
            Denied: it is or leads through a symbolic link, or is no relative path.
            LimitExceeded: it has more than `limit` bytes.
            Corrupt: it is missing in the store or damaged.
        """
        return read_file(self._history.store, self._root, path, limit)

    def verify(self) -> VerifyReport:
        """Read everything that it needs and check it against its digests."""
        return check_content(self._history.store, self._record)

    def restore_to(
        self, directory: str | os.PathLike[str], *, durable: bool = False
    ) -> RestoreReport:
        """Put all files into a new or empty directory, which appears whole or not at all.

        Owners are restored only by root from what root captured; set-id bits, devices and sockets
        never.

        Args:
            durable: have everything on disk when this returns.

        Raises:
            UsageError, FileConflict: it is not empty, no directory, or in the home.
            Denied: it or its parent is a symbolic link, or somebody else may write there.
            HostFull: there is no space for it; nothing is left behind.
            Corrupt: something is missing or damaged; nothing is left behind.
        """
        began = clock.monotonic()
        done = restore_to(
            self._history.store,
            self._root,
            self._history.outside(check_path(directory, what="directory")),
            owners=owners_of(self._record.uid),
            durable=durable,
        )
        return RestoreReport(
            checkpoint=self.id,
            written=done.written,
            removed=done.removed,
            touched=done.touched,
            skipped=done.skipped,
            seconds=clock.monotonic() - began,
        )

    def tag(self, name: str) -> None:
        """Give it a tag, which is unique in the task: another checkpoint that has it loses it.

        Raises:
            TaskLocked: another process works on the task.
        """
        with self._history.hold():
            self._history.tag(self, name)

    def delete(self) -> None:
        """Delete it; its children become its parent's. Disk is freed by `home.gc()`.

        Raises:
            TaskLocked: another process works on the task.
            CheckpointNotFound: it is deleted already.
        """
        with self._history.hold():
            self._history.delete(self)

    @property
    def _root(self) -> bytes:
        return bytes.fromhex(self._record.tree)


def owners_of(uid: int) -> Callable[[int, int], tuple[int, int]] | None:
    """Say whose the restored files are: as captured, if root restores what root captured."""
    if uid != 0 or os.geteuid() != 0:
        return None
    return lambda owner, group: (owner, group)
