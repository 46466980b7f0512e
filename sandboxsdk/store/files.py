"""The files of a store, and nothing of what is in them.

What stands in place of a file of ours is never followed, waited for or written: links, FIFOs,
devices, files of others, files with a second name.

A hold is a lock of the whole store. Writers share it, and whoever takes something away excludes
them. It is carried by a descriptor of its own, so it dies with its process and is dropped in a
forked child.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import stat
import threading
import weakref
from collections.abc import Callable, Iterator

import msgspec

from sandboxsdk import clock, disk
from sandboxsdk.codec import decode_json, encode_json
from sandboxsdk.disk import translated
from sandboxsdk.errors import Corrupt, Denied, NotFound, Unavailable
from sandboxsdk.ids import is_id

FORMAT = 1
PACK_SUFFIX = ".pack"
RESERVE_BYTES = 1024 * 1024
_SAFE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_FORMAT_BYTES_MAX = 4096
# A directory's time that is younger than this may hide a change that came in the same tick.
_TICK_NS = 1_000_000_000
_NO_FILE_OF_OURS = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENOTDIR, errno.ENODEV)

# Files that carry locks, to be closed in a forked child: a copy left open there would keep the lock
# after its parent's death. The guard is held while one is opened, and by a fork.
_carriers: weakref.WeakSet[io.FileIO] = weakref.WeakSet()
_noting = threading.RLock()
_fork_hook_installed = False


class _Format(msgspec.Struct):
    format: int


class StoreFiles:
    """The directory of a store.

    Args:
        path: of the directory.
        read_only: make and change nothing.

    Raises:
        NotFound: there is none, and none may be made.
        Denied: it belongs to somebody else, or others may write into it.
        Corrupt: something else stands in place of one of its files.
        Unavailable: it was written by a newer version.
        HostFull, HostRefused: it cannot be made or opened.
    """

    def __init__(self, path: str, *, read_only: bool) -> None:
        _install_fork_hook()
        self.path: str = path
        self.read_only: bool = read_only
        self._listed: tuple[int, frozenset[str]] | None = None
        with translated("open store", path):
            if not read_only:
                _make_directory(path)
            self.directory: _Directory = _Directory(path)
            try:
                if not read_only:
                    _make_directory(self.shown("packs"))
                self.packs: _Directory = _Directory(self.shown("packs"))
                self._check_format()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Let go of the directories."""
        self.directory.close()
        if hasattr(self, "packs"):
            self.packs.close()

    def shown(self, name: str) -> str:
        """Give the whole path of a file, for messages and for SQLite."""
        return os.path.join(self.path, name)

    def shown_pack(self, pack: str) -> str:
        return os.path.join(self.path, "packs", pack + PACK_SUFFIX)

    def _check_format(self) -> None:
        shown = self.shown("format")
        try:
            with self.open("format") as file:
                data = os.pread(file.fileno(), _FORMAT_BYTES_MAX, 0)
        except FileNotFoundError:
            # Written last when a store is made, when all else has a name on disk.
            if self.read_only:
                raise NotFound(reason=f"there is no store at {self.path}") from None
            disk.sync(self.directory.fd)
            self._sync_parent()
            data = encode_json(_Format(FORMAT))
            disk.replace("format", data, dir_fd=self.directory.fd, durable=True)
        written = decode_json(data, _Format, path=shown).format
        if written < 1:
            raise Corrupt(path=shown, reason=f"says format {written}")
        if written > FORMAT:
            raise Unavailable(
                reason=f"{self.path} was written by a newer version (format {written})",
                hint="upgrade sandboxsdk, or use another home",
            )

    def _sync_parent(self) -> None:
        parent = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            disk.sync(parent)
        finally:
            os.close(parent)

    def open(self, name: str, *, write: bool = False) -> io.FileIO:
        """Open a file beside the packs.

        Raises:
            FileNotFoundError, OSError: it is not there, or cannot be opened.
            Corrupt: something else stands in its place.
        """
        return _open(name, self.directory.fd, self.shown(name), write=write)

    def open_pack(self, pack: str, *, write: bool = False) -> io.FileIO:
        """Open a pack. Raises as `open`."""
        return _open(pack + PACK_SUFFIX, self.packs.fd, self.shown_pack(pack), write=write)

    def create_pack(self, pack: str) -> io.FileIO:
        """Make a pack that was not there, empty."""
        name = pack + PACK_SUFFIX
        return _noted(lambda: disk.create(name, dir_fd=self.packs.fd), "r+")

    def remove_pack(self, pack: str) -> None:
        """Remove a pack's name; that it is gone is on disk after `sync_packs`."""
        disk.remove(pack + PACK_SUFFIX, dir_fd=self.packs.fd)

    def sync_packs(self) -> None:
        """Have the names of the packs on disk when this returns."""
        disk.sync(self.packs.fd)

    def pack_sizes(self) -> dict[str, int]:
        """Give the length of each pack in bytes; of one that cannot be read, -1."""
        sizes: dict[str, int] = {}
        for pack in self._pack_names():
            try:
                found = os.stat(pack + PACK_SUFFIX, dir_fd=self.packs.fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            sizes[pack] = -1 if _objection(found) else found.st_size
        return sizes

    def _pack_names(self) -> frozenset[str]:
        """List the packs, again only if the directory has changed."""
        now, changed = clock.now_ns(), os.fstat(self.packs.fd).st_mtime_ns
        if self._listed is not None and self._listed[0] == changed:
            return self._listed[1]
        with os.scandir(self.packs.fd) as entries:
            names = frozenset(name for entry in entries if (name := pack_of(entry.name)))
        self._listed = (changed, names) if changed < now - _TICK_NS else None
        return names

    def junk(self, limit: int) -> list[str]:
        """Give names among the packs that are no packs, at most `limit` of them."""
        found: list[str] = []
        with os.scandir(self.packs.fd) as entries:
            for entry in entries:
                if not pack_of(entry.name) and len(found) < limit:
                    found.append(entry.name)
        return sorted(found)

    @contextlib.contextmanager
    def hold(self, *, exclusive: bool = False, wait: bool = True) -> Iterator[bool]:
        """Hold the store for the block; without `wait`, tell whether it could be had at once.

        When it is open to be read only and nobody has made the lock yet, nobody is to be excluded.
        """
        file: io.FileIO | None = None
        try:
            with translated("lock", self.shown("lock")):
                file = self._lock_file()
                held = file is None or _locked(file, exclusive=exclusive, wait=wait)
            yield held
        finally:
            if file is not None:
                file.close()

    def _lock_file(self) -> io.FileIO | None:
        try:
            return _noted_file("lock", self.directory.fd, self.shown("lock"))
        except FileNotFoundError:
            if self.read_only:
                return None
        with contextlib.suppress(FileExistsError):
            os.close(disk.create("lock", dir_fd=self.directory.fd))
        return _noted_file("lock", self.directory.fd, self.shown("lock"))

    def lock_pack(self, file: io.FileIO) -> bool:
        """Take the lock of an open pack if nobody has it; it goes when the file is closed."""
        return _locked(file, exclusive=True, wait=False)

    # --- The reserve ------------------------------------------------------------------------------

    def make_reserve(self) -> None:
        """Keep some space for a time when there is none; not having it is no error."""
        if os.path.lexists(self.shown("reserve")):
            return
        try:
            fd = disk.create("reserve", dir_fd=self.directory.fd)
        except OSError:
            return
        try:
            disk.write(fd, bytes(RESERVE_BYTES), 0)
        except OSError:
            os.close(fd)
            self.drop_reserve()
        else:
            os.close(fd)

    def drop_reserve(self) -> bool:
        """Give the reserve back; False if there was none."""
        try:
            disk.remove("reserve", dir_fd=self.directory.fd)
        except OSError:
            return False
        return True

    def free_bytes(self) -> int:
        """Bytes that the file system still has for us."""
        found = os.fstatvfs(self.directory.fd)
        return found.f_bavail * found.f_frsize

    def disk_bytes(self) -> int:
        """Bytes of disk that everything here takes."""
        total = 0
        for fd in (self.directory.fd, self.packs.fd):
            with os.scandir(fd) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        return total


class _Directory:
    """An open directory that is ours alone."""

    def __init__(self, path: str) -> None:
        try:
            self.fd: int = disk.open_directory(path)
        except FileNotFoundError:
            raise NotFound(reason=f"there is no store at {path}") from None
        except OSError as error:
            if error.errno in _NO_FILE_OF_OURS:
                raise Corrupt(path=path, reason="is not a directory") from error
            raise
        found = os.fstat(self.fd)
        if found.st_uid != os.geteuid():
            self.close()
            raise Denied(path=path, reason=f"belongs to user {found.st_uid}")
        if found.st_mode & 0o022:
            self.close()
            hint = f"take the right away from them: chmod go-w {path}"
            raise Denied(path=path, reason="others may write into it", hint=hint)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def pack_of(name: str) -> str:
    """Give the id of the pack that a file name names, or nothing."""
    stem = name.removesuffix(PACK_SUFFIX)
    return stem if stem != name and is_id(stem) else ""


def read_at(fd: int, length: int, offset: int) -> bytes:
    """Give these bytes, fewer at the end of the file. `length` is bounded by the caller."""
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _make_directory(path: str) -> None:
    if not os.path.lexists(path):
        with contextlib.suppress(FileExistsError):
            disk.make_directory(path)


def _objection(found: os.stat_result) -> str:
    """Say why this is no file of ours, or nothing."""
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}"
    return "has a second name (a hard link)" if found.st_nlink > 1 else ""


def check_file(path: str) -> None:
    """Look at a file that somebody else will open by its path.

    Raises:
        Corrupt: it is there, and is no file of ours.
    """
    with contextlib.suppress(FileNotFoundError):
        objection = _objection(os.stat(path, follow_symlinks=False))
        if objection:
            raise Corrupt(path=path, reason=objection)


def _open(name: str, dir_fd: int, shown: str, *, write: bool) -> io.FileIO:
    """Open a file of ours; one that is opened for writing may carry a lock."""
    # Looked at first: opening a device may already do something.
    objection = _objection(os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
    if objection:
        raise Corrupt(path=shown, reason=objection)
    flags = _SAFE | (os.O_RDWR if write else os.O_RDONLY)
    try:
        file = _noted(lambda: os.open(name, flags, dir_fd=dir_fd), "r+" if write else "r")
    except OSError as error:
        if error.errno in _NO_FILE_OF_OURS:
            raise Corrupt(path=shown, reason="is not a regular file") from error
        raise
    objection = _objection(os.fstat(file.fileno()))
    if objection:
        file.close()
        raise Corrupt(path=shown, reason=objection)
    return file


def _noted_file(name: str, dir_fd: int, shown: str) -> io.FileIO:
    return _open(name, dir_fd, shown, write=False)


def _noted(opened: Callable[[], int], mode: str) -> io.FileIO:
    with _noting:
        file = io.FileIO(opened(), mode)
        _carriers.add(file)
    return file


def _locked(file: io.FileIO, *, exclusive: bool, wait: bool) -> bool:
    how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(file, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _install_fork_hook() -> None:
    global _fork_hook_installed  # noqa: PLW0603 - a process has one fork hook
    with _noting:
        if not _fork_hook_installed:
            _fork_hook_installed = True
            os.register_at_fork(
                before=_noting.acquire,
                after_in_parent=_noting.release,
                after_in_child=_drop_all,
            )


def _drop_all() -> None:
    """In a forked child: close what carries its parent's locks."""
    for file in list(_carriers):
        file.close()
    _noting.release()
