"""File access below one open directory that never follows a symbolic link, whoever swaps names.

Knows nothing of sandboxes or workspaces: a descriptor, relative paths of bytes, and everything
below is taken to be hostile (see `descent`).

Invariants:
- Only regular files are opened for their content, never blocking, and never more is read than they
  had.
- Set-id bits are never written. A Tree keeps no descriptor between calls; a suspended `walk` keeps
  one.
- With `ids`, the calling thread takes on these ids for each call and has its own again when it
  returns.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import final

from sandboxsdk.errors import (
    Denied,
    FileConflict,
    FileMissing,
    HostRefused,
    LimitExceeded,
    SandboxError,
)
from sandboxsdk.syscalls import setfsids, setgroups_thread

from .descent import NAMES_MAX, Cursor, Opener, has_openat2, remove_entry
from .entry import (
    CHUNK_BYTES,
    ENTRY,
    check_regular,
    chmod_entry,
    open_regular,
    rename_entry,
    replacing,
    translated,
    write_fresh,
)
from .passage import Passage

READ_BYTES_MAX = 1 << 30
_STAT_BATCH = 256

Entry = tuple[bytes, os.stat_result]


def split_path(path: bytes) -> list[bytes]:
    """Give the names of a relative path; `b"."` is the tree's root and has none.

    Raises:
        Denied: empty, absolute, with a NUL byte, or with an empty, `.` or `..` component.
    """
    if path == b".":
        return []
    parts = path.split(b"/")
    if b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
        reason = "must be a relative path of plain names, without `..`"
        raise Denied(path=os.fsdecode(path), reason=reason)
    return parts


@final
class Tree:
    """The files below one open directory.

    Args:
        root: descriptor of the directory; it stays the caller's and must be open during every call.
        ids: uid and gid to act as; the process must be allowed to take them on.
        shown: what error messages put before a path.
        with_openat2: False walks component by component; None asks the kernel.
        passage: is gone through by each use of `root`.
    """

    def __init__(
        self,
        root: int,
        *,
        ids: tuple[int, int] | None = None,
        shown: str = "",
        with_openat2: bool | None = None,
        passage: Passage | None = None,
    ) -> None:
        self._root, self._ids, self._shown = root, ids, shown
        self._passage = passage or Passage()
        self._opener = Opener(with_openat2=has_openat2() if with_openat2 is None else with_openat2)

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Let the calling thread act as `ids`: file-system uid and gid, and no supplementary group.
        Does not nest. The process is not dumpable from then on.
        """
        with self._passage.passing():
            if self._ids is None:
                yield
            else:
                with self._as_ids(self._ids):
                    yield

    @contextlib.contextmanager
    def _as_ids(self, ids: tuple[int, int]) -> Iterator[None]:
        own, groups = (os.geteuid(), os.getegid()), os.getgroups()
        try:
            if groups:
                setgroups_thread(())
            setfsids(*ids)
            yield
        finally:
            try:
                _act_again(own, groups)
            except BaseException:
                # An interrupt in the middle of it: a thread must not stay somebody else.
                _act_again(own, groups)
                raise

    @contextlib.contextmanager
    def _translating(self, what: str, path: bytes) -> Iterator[None]:
        """Turn what the kernel says into this library's errors."""
        try:
            yield
        except SandboxError:
            # Some of ours are an OSError too.
            raise
        except OSError as error:
            raise translated(error, what, self._shown + os.fsdecode(path)) from error

    @contextlib.contextmanager
    def _at(self, what: str, path: bytes, *, parents: bool = False) -> Iterator[tuple[int, bytes]]:
        """Open the directory that a path lies in; gives it and the last name (`.` for the root)."""
        parts = split_path(path)
        with self._translating(what, path), self.acting():
            parent = self._directory(parts[:-1], parents=parents)
            try:
                yield parent, parts[-1] if parts else b"."
            finally:
                os.close(parent)

    def _directory(self, parts: Sequence[bytes], *, parents: bool) -> int:
        try:
            return self._opener.directory(self._root, parts)
        except FileNotFoundError:
            if not parents:
                raise
        fd = self._opener.directory(self._root, ())
        try:
            for part in parts:
                below = self._made_directory(fd, part, 0o755, exist_ok=True)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _made_directory(self, parent: int, name: bytes, mode: int, *, exist_ok: bool) -> int:
        """Make a directory with exactly these permission bits; gives its descriptor."""
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if exist_ok:
                return self._opener.directory(parent, (name,))
            raise
        fd = self._opener.directory(parent, (name,))
        try:
            chmod_entry(fd, mode)
        except BaseException:
            os.close(fd)
            raise
        return fd

    @contextlib.contextmanager
    def content(self, path: bytes) -> Iterator[tuple[os.stat_result, Iterator[bytes]]]:
        """Open a regular file: what it is, and its content in chunks, up to its size at opening.

        Raises:
            FileMissing: it does not exist.
            Denied: it is a link, lies behind one, or may not be read.
            FileConflict: it is no regular file.
        """
        with self._at("read", path) as (parent, name):
            fd = open_regular(parent, name)
        try:
            entry = os.fstat(fd)
            yield entry, self._chunks(fd, entry.st_size, path)
        finally:
            os.close(fd)

    def _chunks(self, fd: int, size: int, path: bytes) -> Iterator[bytes]:
        while size > 0:
            with self._translating("read", path):
                chunk = os.read(fd, min(size, CHUNK_BYTES))
            if not chunk:
                return
            size -= len(chunk)
            yield chunk

    def read(self, path: bytes, limit: int = READ_BYTES_MAX) -> bytes:
        """Give a regular file's content.

        Raises:
            LimitExceeded: it has more than `limit` bytes.
            FileMissing, Denied, FileConflict: as `content`.
        """
        with self.content(path) as (entry, chunks):
            if entry.st_size > limit:
                shown = self._shown + os.fsdecode(path)
                reason = f"{shown}: has {entry.st_size} bytes, more than limit={limit}"
                raise LimitExceeded(path=shown, size=entry.st_size, limit=limit, reason=reason)
            return b"".join(chunks)

    def write(
        self,
        path: bytes,
        data: bytes | Iterable[bytes],
        mode: int | None = None,
        *,
        parents: bool = False,
    ) -> None:
        """Put a file in place at once, whole or not at all, instead of a file that was there.

        Args:
            path: of the file.
            data: its whole content; a chunk of zeros of 1 MiB becomes a hole.
            mode: permission bits; None keeps those of the file that was there, 0o644 for a new one.
            parents: make the directories that lead to it.

        Raises:
            Denied: the path is a link or leads through one, or may not be written.
            FileConflict: something other than a regular file is there.
            FileMissing: its directory does not exist.
            HostFull: no space; what was there stays.
        """
        with self._at("write", path, parents=parents) as (parent, name):
            try:
                was = os.stat(name, dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                bits = 0o644 if mode is None else mode
            else:
                check_regular(was)
                bits = was.st_mode if mode is None else mode
            with replacing(parent, name) as fresh:
                write_fresh(parent, fresh, data, bits)

    def symlink(
        self, path: bytes, target: bytes, *, parents: bool = False, replace: bool = False
    ) -> None:
        """Make a symbolic link; with `replace`, in place of a file or link that is there."""
        with self._at("link", path, parents=parents) as (parent, name):
            if not replace:
                os.symlink(target, name, dir_fd=parent)
                return
            with replacing(parent, name) as fresh:
                os.symlink(target, fresh, dir_fd=parent)

    def stat(self, path: bytes) -> os.stat_result:
        """Describe an entry; a link itself, never what it leads to."""
        with self._at("stat", path) as (parent, name):
            return os.stat(name, dir_fd=parent, follow_symlinks=False)

    def readlink(self, path: bytes) -> bytes:
        with self._at("readlink", path) as (parent, name):
            return os.readlink(name, dir_fd=parent)

    def listdir(self, path: bytes = b".") -> list[bytes]:
        """Give a directory's names, sorted.

        Raises:
            LimitExceeded: more than `NAMES_MAX` of them.
        """
        parts = split_path(path)
        with self._translating("list", path), self.acting():
            cursor = Cursor(self._opener, self._root, parts)
            try:
                return self._names(cursor, path)
            finally:
                cursor.close()

    def _names(self, cursor: Cursor, path: bytes) -> list[bytes]:
        names = cursor.names(NAMES_MAX + 1)
        if len(names) > NAMES_MAX:
            shown = self._shown + os.fsdecode(path)
            reason = f"{shown}: has more than {NAMES_MAX} entries"
            raise LimitExceeded(path=shown, limit=NAMES_MAX, reason=reason)
        names.sort()
        return names

    def walk(
        self,
        path: bytes = b".",
        *,
        enter: Callable[[bytes], bool] | None = None,
        unreadable: Callable[[bytes, SandboxError], None] | None = None,
    ) -> Iterator[Entry]:
        """Yield everything below a directory, sorted, a directory before what it holds.

        Entries that vanish meanwhile are left out. It may be stopped at any point; nothing but one
        descriptor is held in between, and the caller's own ids are in force.

        Args:
            path: the directory to begin at; it is not itself among the entries.
            enter: says of a directory's path whether to go into it; everywhere by default.
            unreadable: is told of directories that cannot be entered or read; by default they
                raise.
        """
        parts = split_path(path)
        with self._translating("walk", path), self.acting():
            cursor = Cursor(self._opener, self._root, parts)
        try:
            here = b"" if not parts else path + b"/"
            # Of the directories above only the lengths of their paths: all the paths of a deep tree
            # would be more than the memory holds.
            lengths: list[int] = []
            with self._translating("walk", path), self.acting():
                levels = [iter(self._names(cursor, path))]
            while levels:
                try:
                    entries, more = self._entries(cursor, here, levels[-1])
                except Denied as error:
                    if unreadable is None:
                        raise
                    unreadable(here[:-1], error)
                    entries, more = [], False
                yield from entries
                if more:
                    if entries and self._wants(entries[-1], enter):
                        below = entries[-1][0]
                        try:
                            levels.append(self._go_down(cursor, below))
                            lengths.append(len(here))
                            here = below + b"/"
                        except FileMissing:
                            continue
                        except (Denied, FileConflict) as error:
                            if unreadable is None:
                                raise
                            unreadable(below, error)
                    continue
                levels.pop()
                if levels:
                    with self._translating("walk", here[:-1]), self.acting():
                        cursor.leave()
                    here = here[: lengths.pop()]
        finally:
            cursor.close()

    @staticmethod
    def _wants(entry: Entry, enter: Callable[[bytes], bool] | None) -> bool:
        return stat.S_ISDIR(entry[1].st_mode) and (enter is None or enter(entry[0]))

    def _entries(
        self, cursor: Cursor, here: bytes, names: Iterator[bytes]
    ) -> tuple[list[Entry], bool]:
        """Describe the next names, up to the first directory; False when there were none."""
        found: list[Entry] = []
        more = False
        with self._translating("walk", here[:-1] or b"."), self.acting():
            for name in islice(names, _STAT_BATCH):
                more = True
                try:
                    entry = os.stat(name, dir_fd=cursor.fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                found.append((here + name, entry))
                if stat.S_ISDIR(entry.st_mode):
                    break
        return found, more

    def _go_down(self, cursor: Cursor, path: bytes) -> Iterator[bytes]:
        with self._translating("walk", path), self.acting():
            cursor.enter(path.rpartition(b"/")[2])
            try:
                return iter(self._names(cursor, path))
            except BaseException:
                cursor.leave()
                raise

    def mkdir(
        self, path: bytes, mode: int = 0o755, *, parents: bool = False, exist_ok: bool = False
    ) -> None:
        """Make a directory with exactly these permission bits.

        Raises:
            FileConflict: it exists (with `exist_ok`: as something else than a directory).
        """
        with self._at("mkdir", path, parents=parents) as (parent, name):
            os.close(self._made_directory(parent, name, mode, exist_ok=exist_ok))

    def chmod(self, path: bytes, mode: int) -> None:
        """Set permission bits, never set-id bits, of anything but a link."""
        with self._at("chmod", path) as (parent, name):
            fd = os.open(name, ENTRY, dir_fd=parent)
            try:
                if stat.S_ISLNK(os.fstat(fd).st_mode):
                    raise OSError(errno.ELOOP, "is a symbolic link")
                chmod_entry(fd, mode)
            finally:
                os.close(fd)

    def rename(self, source: bytes, target: bytes, *, replace: bool = False) -> None:
        """Move an entry within the tree, a link itself; without `replace` never over something.

        Raises:
            FileConflict: the target exists, or is a directory that is not empty.
            HostRefused: the kernel cannot move it there (`number` is EXDEV: copy it instead).
        """
        parts = split_path(target)
        with self._at("rename", source) as (parent, name), self._translating("rename", target):
            into = self._opener.directory(self._root, parts[:-1])
            try:
                rename_entry(parent, name, into, parts[-1] if parts else b".", replace=replace)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                shown = self._shown + os.fsdecode(source)
                reason = "cannot be renamed across layers or mounts"
                raise HostRefused(what="rename", path=shown, reason=reason, number=18) from error
            finally:
                os.close(into)

    def unlink(self, path: bytes) -> None:
        with self._at("remove", path) as (parent, name):
            os.unlink(name, dir_fd=parent)

    def rmdir(self, path: bytes) -> None:
        with self._at("remove", path) as (parent, name):
            os.rmdir(name, dir_fd=parent)

    def remove_tree(self, path: bytes) -> None:
        """Remove an entry and all below it, also directories of ours that nobody may read.

        Raises:
            FileConflict: others fill it as fast as it is emptied.
        """
        with self._at("remove", path) as (parent, name):
            if name == b".":
                raise OSError(errno.EPERM, "is the root of the tree")
            remove_entry(self._opener, parent, name)


def _act_again(own: tuple[int, int], groups: list[int]) -> None:
    setfsids(*own)
    if groups:
        setgroups_thread(groups)
