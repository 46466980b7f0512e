"""What the home, its store and a restore report. Pure and frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from sandboxsdk.errors import UsageError
from sandboxsdk.units import format_seconds, format_size

from .results import Change

_SHOWN_MAX = 20

Level = Literal["index", "objects", "content"]


def shown_path(path: str) -> str:
    """Keep a name that was made inside a sandbox from moving the reader's cursor."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in path)


class HomeStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a home holds.

    Attributes:
        tasks: lasting tasks.
        throwaway: throwaway tasks, of running boxes or left by a crash.
        store_bytes: of disk that the contents of checkpoints take.
        free_bytes: free on its file system.
    """

    path: str
    tasks: int
    throwaway: int
    store_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.tasks} tasks, {self.throwaway} throwaway,"
            f" {format_size(self.store_bytes)} in checkpoints, {format_size(self.free_bytes)} free"
        )


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as it was stored.

    Attributes:
        path: where it lies.
        lost: whether stored files are affected; an index can be rebuilt.
        checkpoints: ids of the checkpoints that it belongs to, as far as known.
        files: some of the paths in them.
    """

    path: str
    reason: str
    lost: bool = True
    checkpoints: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{shown_path(self.path)}: {shown_path(self.reason)}"
        if self.checkpoints:
            text += f"; in checkpoints {', '.join(self.checkpoints)}"
        if self.files:
            text += f": {', '.join(shown_path(path) for path in self.files)}"
        return text


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a check of the store found.

    Attributes:
        level: "index" compares the index with the packs, "objects" also every stored byte with its
            checksum, "content" also every object with its digest.
        objects: stored, as far as looked at.
        bytes: read.
        repaired: whether what can be rebuilt was.
    """

    level: Level
    problems: tuple[Problem, ...] = ()
    packs: int = 0
    objects: int = 0
    bytes: int = 0
    seconds: float = 0.0
    repaired: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, or nothing any more."""
        return not self.problems or (self.repaired and not any(p.lost for p in self.problems))

    def __str__(self) -> str:
        packs = f"{self.packs:,} packs, " if self.packs else ""
        head = (
            f"{'ok' if self.ok else 'DAMAGED'}: {packs}{self.objects:,} objects,"
            f" {format_size(self.bytes)} read in {format_seconds(self.seconds)}"
        )
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


class GcReport(msgspec.Struct, frozen=True, kw_only=True):
    """What garbage collection freed, or with `dry_run` would free.

    Attributes:
        deleted: packs that held nothing needed.
        rewritten: packs whose needed part was moved to new ones.
        freed_bytes: of disk.
        kept_bytes: of packs that stay.
    """

    dry_run: bool = False
    deleted: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    freed_bytes: int = 0
    kept_bytes: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return True

    def __str__(self) -> str:
        would = "would free" if self.dry_run else "freed"
        return (
            f"{would} {format_size(self.freed_bytes)}: {len(self.deleted)} packs deleted,"
            f" {len(self.rewritten)} rewritten; {format_size(self.kept_bytes)} stay"
        )


class RestoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore did.

    Attributes:
        checkpoint: id of the checkpoint that was restored.
        saved: id of the checkpoint of the state that was replaced, if it was kept.
        written: entries that were made or replaced.
        removed: entries that were removed.
        touched: entries of which only mode, time or attributes were set.
        skipped: paths that cannot be restored: sockets, devices.
    """

    checkpoint: str | None
    saved: str | None = None
    written: int = 0
    removed: int = 0
    touched: int = 0
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return True

    def __str__(self) -> str:
        text = (
            f"restored {self.checkpoint}: {self.written} written, {self.removed} removed,"
            f" {self.touched} touched in {format_seconds(self.seconds)}"
        )
        if self.saved is not None:
            text += f"; what was there is checkpoint {self.saved}"
        if self.skipped:
            text += f"; not restored: {', '.join(shown_path(path) for path in self.skipped)}"
        return text


class ApplyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an application of a task's changes did to a directory.

    Attributes:
        id: of this application.
        to: absolute path of the directory.
        changes: to the directory, in the order of paths; those it had already are not among them.
        held: paths that were held back, because they make a directory run code on the host.
        overridden: paths at which `force` overrode a conflict.
        skipped: paths that cannot be made: sockets, devices.
        saved: id of the checkpoint that keeps what was there before; None if nothing was written.
        undoing: how `undo` does it.
    """

    id: str
    to: str
    changes: tuple[Change, ...] = ()
    held: tuple[str, ...] = ()
    overridden: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    saved: str | None = None
    seconds: float = 0.0
    undoing: Callable[[], ApplyReport] | None = None

    @property
    def ok(self) -> bool:
        """Whether all changes of the task are in the directory now."""
        return not self.held and not self.skipped

    def undo(self) -> ApplyReport:
        """Take it back: the directory gets what it had at these paths, whatever else changed.

        Raises:
            ApplyConflict: some were changed since; nothing was written.
            Conflict: it is not the last application to this directory.
            UsageError: the report was stored and read again; use the task's checkpoint.
        """
        if self.undoing is None:
            hint = f"task.checkpoint_by({self.saved!r}) has what was there before"
            reason = "knows no task any more"
            raise UsageError(what="report", value=self.id, reason=reason, hint=hint)
        return self.undoing()

    def __str__(self) -> str:
        head = f"applied {len(self.changes):,} changes to {shown_path(self.to)}"
        head += f" in {format_seconds(self.seconds)}"
        if self.saved is not None:
            head += f"; what was there is checkpoint {self.saved}"
        lines = [head]
        lines += [f"  {change}" for change in self.changes[:_SHOWN_MAX]]
        if len(self.changes) > _SHOWN_MAX:
            lines.append(f"  and {len(self.changes) - _SHOWN_MAX:,} more")
        for what, paths in (
            ("held back, they run code on the host (allow= lets them through)", self.held),
            ("overridden", self.overridden),
            ("not made", self.skipped),
        ):
            if paths:
                lines.append(f"  {what}: {', '.join(shown_path(path) for path in paths)}")
        return "\n".join(lines)
