"""`box.files`: the files of an open box, as its user meets them.

Knows paths as people write them and the three writable places of a box; what touches a file is a
Tree. It must not know how the box runs. Every call asks anew for the trees, which may start the
box.

Invariants: no symbolic link is followed, in the box or below a host directory that is copied;
everything is written through a Tree, on the host's side too; set-id bits, devices, FIFOs and
sockets cross in no direction.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import fnmatch
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import final

from sandboxsdk.errors import (
    Denied,
    FileConflict,
    FileMissing,
    HostRefused,
    SandboxError,
    UsageError,
)
from sandboxsdk.host import Tree
from sandboxsdk.model import FileStat

from .transfer import (
    KINDS,
    AnyPath,
    TransferReport,
    copy_tree,
    host_source,
    host_target,
)

__all__ = ["Files", "TransferReport"]

WORKSPACE = "/workspace"
READ_BYTES_MAX = 1 << 30
TRANSFER_BYTES_MAX = 64 << 30


@final
class Files:
    """The files of a box: below /workspace, and in its /tmp and home.

    A relative path is below /workspace. No symbolic link is ever followed: a path that leads
    through one raises `Denied`; stat, exists, remove and move act on a link itself.

    Args:
        trees: gives the box's places by their absolute paths.
    """

    def __init__(self, trees: Callable[[], Mapping[str, Tree]]) -> None:
        self._trees = trees

    def read_text(self, path: AnyPath, *, limit: int = READ_BYTES_MAX) -> str:
        """Give a file's content as UTF-8; bytes that are not come through `surrogateescape`.

        Raises:
            LimitExceeded: the file has more than `limit` bytes.
            FileMissing: it does not exist.
            FileConflict: it is no regular file.
            Denied: the path leads through a link, out of the box's places, or may not be read.
        """
        return self.read_bytes(path, limit=limit).decode("utf-8", "surrogateescape")

    def read_bytes(self, path: AnyPath, *, limit: int = READ_BYTES_MAX) -> bytes:
        """Give a file's content; raises as `read_text`."""
        tree, below, _ = self._locate(path)
        return tree.read(below, limit)

    def write(self, path: AnyPath, data: str | bytes, *, mode: int | None = None) -> None:
        """Write a file at once, whole or not at all, with the directories that lead to it.

        Args:
            path: where; a file that is there is replaced.
            data: text is written as UTF-8.
            mode: permission bits; by default those of the file that was there, else 0o644.

        Raises:
            Denied, FileConflict: as `read_text`.
            HostFull: no space; what was there stays.
        """
        tree, below, _ = self._locate(path)
        content = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        tree.write(below, content, mode, parents=True)

    def exists(self, path: AnyPath) -> bool:
        """Say whether there is an entry, be it a link that leads nowhere."""
        tree, below, _ = self._locate(path)
        try:
            tree.stat(below)
        except FileMissing:
            return False
        except FileConflict:
            # A file stands where a directory would have to be.
            return False
        return True

    def stat(self, path: AnyPath) -> FileStat:
        tree, below, shown = self._locate(path)
        return _described(tree, below, _shown(shown, below), tree.stat(below))

    def list(self, path: AnyPath = ".") -> builtins.list[FileStat]:
        """Describe what a directory holds, sorted by name."""
        tree, below, shown = self._locate(path)
        entries = tree.walk(below, enter=lambda _: False)
        return [_described(tree, name, _shown(shown, name), entry) for name, entry in entries]

    def glob(self, pattern: str) -> builtins.list[str]:
        """Give the paths that fit, sorted: `*`, `?`, `[...]` within a name, `**` any directories.

        Names with a leading dot are ordinary names; a trailing `**` fits everything below.
        Directories that cannot be read are passed over.
        """
        tree, below, shown = self._locate(pattern)
        if below == b".":
            return []
        wanted = _Pattern(os.fsdecode(below).split("/"))
        found = tree.walk(enter=wanted.may_hold, unreadable=lambda _path, _error: None)
        return sorted(_shown(shown, path) for path, _ in found if wanted.fits(path))

    def remove(self, path: AnyPath, *, recursive: bool = False, missing_ok: bool = False) -> None:
        """Remove a file, a link itself, an empty directory, or with `recursive` all below it too.

        Raises:
            FileConflict: a directory that is not empty, without `recursive`.
            FileMissing: it does not exist, without `missing_ok`.
        """
        tree, below, _ = self._locate(path)
        try:
            if not stat.S_ISDIR(tree.stat(below).st_mode):
                tree.unlink(below)
            elif recursive:
                tree.remove_tree(below)
            else:
                tree.rmdir(below)
        except FileMissing:
            if not missing_ok:
                raise
        except FileConflict as error:
            if not recursive:
                error.hint = "pass recursive=True to remove a directory with all it holds"
            raise

    def move(self, source: AnyPath, target: AnyPath, *, overwrite: bool = False) -> None:
        """Move an entry, by a copy where it cannot be renamed; the target's directory must exist.

        Raises:
            FileConflict: the target is a directory, or exists and `overwrite` is not set, or the
                source holds what cannot be copied to another place (it then stays).
            UsageError: a directory would move into itself.
        """
        tree, below, place = self._locate(source)
        other, into, other_place = self._locate(target)
        # Places are told apart by name: every call may be given new Trees of the same places.
        same = place == other_place
        entry = tree.stat(below)
        if below == b"." or (same and (into + b"/").startswith(below + b"/")):
            reason = "a place itself cannot move, nor anything to itself or below itself"
            raise UsageError(what="target", value=os.fspath(target), reason=reason)
        _check_free(other, into, overwrite=overwrite)
        if same:
            try:
                tree.rename(below, into, replace=overwrite)
            except HostRefused as error:
                if error.fields.get("number") != errno.EXDEV:
                    raise
            else:
                return
        try:
            report = copy_tree(tree, below, entry, other, into, limit=TRANSFER_BYTES_MAX)
            _check_whole(report, source)
        except BaseException:
            # A file arrives whole or not at all; of a directory, nothing was there before.
            if stat.S_ISDIR(entry.st_mode):
                with contextlib.suppress(SandboxError):
                    other.remove_tree(into)
            raise
        tree.remove_tree(below)

    def mkdir(self, path: AnyPath, *, parents: bool = True, exist_ok: bool = False) -> None:
        tree, below, _ = self._locate(path)
        tree.mkdir(below, parents=parents, exist_ok=exist_ok)

    def upload(
        self, host_path: AnyPath, path: AnyPath, *, limit: int = TRANSFER_BYTES_MAX
    ) -> TransferReport:
        """Copy a file or directory of the host into the box, as `path`.

        A link given as `host_path` is followed; links inside a directory are copied as links. A
        directory is merged into one that is there, files are replaced.

        Raises:
            UsageError: `host_path` is neither a file nor a directory, or cannot be read.
            LimitExceeded: more than `limit` bytes; what was copied until then stays.
        """
        tree, below, _ = self._locate(path)
        with host_source(host_path) as (source, name):
            return copy_tree(source, name, source.stat(name), tree, below, limit=limit)

    def download(
        self, path: AnyPath, host_path: AnyPath, *, limit: int = TRANSFER_BYTES_MAX
    ) -> TransferReport:
        """Copy a file or directory of the box to the host, as `host_path`.

        A file is put in place at once. Links are made as links: what follows them later on the host
        is not this call's to know. A directory must not exist yet or be empty.

        Raises:
            FileConflict: the host's directory is not empty, or of another type.
            Denied: `path` leads through a link; `host_path` itself is one.
            UsageError: the directory of `host_path` cannot be opened.
            LimitExceeded: more than `limit` bytes; what was copied until then stays.
        """
        tree, below, _ = self._locate(path)
        entry = tree.stat(below)
        with host_target(host_path) as (target, name):
            if stat.S_ISDIR(entry.st_mode):
                target.mkdir(name, 0o700, exist_ok=True)
                if target.listdir(name):
                    raise FileConflict(path=os.fspath(host_path), reason="is not empty")
            report = copy_tree(tree, below, entry, target, name, limit=limit)
        if report.skipped == (".",):
            raise _unreadable(path, entry)
        return report

    def _locate(self, path: AnyPath) -> tuple[Tree, bytes, str]:
        """Give the tree a path lies in, the path in it, and what stands before it in results."""
        text = os.fspath(path)
        try:
            raw = os.fsencode(text)
        except UnicodeEncodeError:
            raise UsageError(what="path", value=text, reason="is not encodable") from None
        if not raw or b"\0" in raw:
            raise Denied(path=text, reason="is empty or has a NUL character")
        parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise Denied(path=text, reason="must not contain `..`")
        trees = self._trees()
        if not raw.startswith(b"/"):
            return trees[WORKSPACE], b"/".join(parts) or b".", ""
        for prefix, tree in trees.items():
            names = os.fsencode(prefix).strip(b"/").split(b"/")
            if parts[: len(names)] == names:
                below = b"/".join(parts[len(names) :]) or b"."
                return tree, below, "" if prefix == WORKSPACE else prefix
        places = ", ".join(sorted(trees))
        raise Denied(path=text, reason=f"an absolute path must lie below one of {places}")


class _Pattern:
    """A glob pattern, matched component by component as a small automaton; `**` is None."""

    def __init__(self, parts: list[str]) -> None:
        # A trailing `**` means everything below, so at least one more name.
        names = [*parts, "*"] if parts[-1] == "**" else parts
        self._steps = [
            None if name == "**" else re.compile(fnmatch.translate(name)) for name in names
        ]

    def _states(self, path: bytes) -> set[int]:
        """Give how many steps may have been taken when the path's names are used up."""
        states = self._free({0})
        for name in os.fsdecode(path).split("/"):
            states = self._free({after for state in states for after in self._after(state, name)})
            if not states:
                break
        return states

    def _after(self, state: int, name: str) -> Iterator[int]:
        if state == len(self._steps):
            return
        step = self._steps[state]
        if step is None:
            yield state
        elif step.match(name):
            yield state + 1

    def _free(self, states: set[int]) -> set[int]:
        """Add the states beyond each `**` reached, which may stand for no directory at all."""
        for state in sorted(states):
            after = state
            while after < len(self._steps) and self._steps[after] is None:
                after += 1
                states.add(after)
        return states

    def fits(self, path: bytes) -> bool:
        return len(self._steps) in self._states(path)

    def may_hold(self, path: bytes) -> bool:
        return any(state < len(self._steps) for state in self._states(path))


def _shown(prefix: str, path: bytes) -> str:
    text = os.fsdecode(path)
    if not prefix:
        return text
    return prefix if text == "." else f"{prefix}/{text}"


def _described(tree: Tree, path: bytes, shown: str, entry: os.stat_result) -> FileStat:
    target = None
    if stat.S_ISLNK(entry.st_mode):
        # It may be something else by now; then it has no target that could be told.
        with contextlib.suppress(SandboxError):
            target = os.fsdecode(tree.readlink(path))
    return FileStat(
        path=shown,
        kind=KINDS.get(stat.S_IFMT(entry.st_mode), "device"),
        size=entry.st_size,
        mode=stat.S_IMODE(entry.st_mode),
        mtime_ns=entry.st_mtime_ns,
        target=target,
    )


def _check_whole(report: TransferReport, source: AnyPath) -> None:
    if report.skipped:
        reason = f"holds what cannot be moved there: {', '.join(report.skipped[:3])}"
        raise FileConflict(path=os.fspath(source), reason=reason)


def _check_free(tree: Tree, path: bytes, *, overwrite: bool) -> None:
    try:
        mode = tree.stat(path).st_mode
    except FileMissing:
        return
    if stat.S_ISDIR(mode) or not overwrite:
        hint = None if stat.S_ISDIR(mode) else "pass overwrite=True to replace it"
        reason = "is a directory" if stat.S_ISDIR(mode) else "exists already"
        raise FileConflict(path=os.fsdecode(path), reason=reason, hint=hint)


def _unreadable(path: AnyPath, entry: os.stat_result) -> SandboxError:
    kind = KINDS.get(stat.S_IFMT(entry.st_mode), "device")
    return FileConflict(path=os.fspath(path), reason=f"is a {kind} that cannot be copied")
