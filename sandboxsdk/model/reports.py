"""What the home, its store and a restore report. Pure and frozen."""

from __future__ import annotations

from typing import Literal

import msgspec

from sandboxsdk.units import format_seconds, format_size

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
