"""A lock that the kernel holds for a process and frees when the process is gone, whatever happened
to it.

flock(2) on a file that is never unlinked while somebody may wait for it. Waiters block in the
kernel, one thread each, so they are served in the order they came; polling would serve them at
random. A wait that is given up cannot be called back from the kernel: it goes on, lets go of what
it gets, and is joined by the next one for the same lock, so there is never more than one.
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

from sandboxsdk.errors import Corrupt, HostRefused, NotFound

from .thread import Worker

# Locks and waits of this process, to be dropped in a forked child: a child must hold nothing, and a
# copy of a descriptor left open in it would keep the lock after its parent's death.
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()
_waits: set[_Wait] = set()
# Held while a descriptor is opened and noted down, and by a fork, so that no child misses one.
_noting = threading.RLock()
_fork_hook_installed = False
_NO_FILE_OF_OURS = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENOTDIR)


class FileLock:
    """An exclusive lock on `path`; one holder per object, released by `release` or by death.

    An exception may come at any moment (Ctrl-C): descriptors are kept by file objects, which close
    them when nothing refers to them any more, and no wait is left half-done.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: io.FileIO | None = None
        self._wait: _Wait | None = None

    @property
    def descriptor(self) -> int:
        """The descriptor that carries the lock, or -1; who is given a copy shares the hold."""
        file = self._file
        return -1 if file is None else file.fileno()

    def acquire(self, timeout: float) -> bool:
        """Take the lock within `timeout` seconds; False when another holder kept it.

        Raises:
            NotFound: the file is gone, or was replaced while we waited.
            Corrupt: something else than a file stands in its place.
            HostRefused: the file cannot be opened or locked.
        """
        _install_fork_hook()
        taken = False
        try:
            try:
                with _noting:
                    _held.add(self)
                    self._file = self._rejoined() or self._opened()
                taken = self._lock(self._file, timeout)
            except OSError as error:
                raise HostRefused(what="lock", path=self.path, reason=error.strerror) from error
            if taken and not self._same_file(self._file):
                taken = False
                raise NotFound(reason=f"{self.path} was removed")
        finally:
            if not taken:
                self.release()
        return taken

    def write_note(self, data: bytes) -> None:
        """Leave a note in the file for those who wait; only information, it decides nothing."""
        # A full disk must not keep anybody from a lock. Written before it is cut to length, so that
        # a reader meets an empty file only where nobody left a note.
        with contextlib.suppress(OSError):
            os.pwrite(self.descriptor, data, 0)
            os.ftruncate(self.descriptor, len(data))

    def read_note(self, limit: int = 64 * 1024) -> bytes:
        """Read what the holder left, or nothing."""
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(self.path, flags)
        except OSError:
            return b""
        try:
            return os.pread(descriptor, limit, 0)
        except OSError:
            return b""
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Let go; somebody who was given a copy of the descriptor may still hold on."""
        with _noting:
            file, self._file = self._file, None
            _held.discard(self)
            if file is not None:
                file.close()

    def _opened(self) -> io.FileIO:
        try:
            file = io.FileIO(self.path, "r+", opener=_open)
        except FileNotFoundError:
            raise NotFound(reason=f"{self.path} does not exist") from None
        except OSError as error:
            if error.errno in _NO_FILE_OF_OURS:
                raise Corrupt(path=self.path, reason="is not a regular file") from error
            raise
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise Corrupt(path=self.path, reason="is not a regular file")
        return file

    def _rejoined(self) -> io.FileIO | None:
        """Give the file of the wait that was given up before, if there is one for this file."""
        if self._wait is not None:
            file = self._wait.join()
            if file is not None and self._same_file(file):
                return file
            self._wait = None
            if file is not None:
                file.close()
        return None

    def _lock(self, file: io.FileIO, timeout: float) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if timeout <= 0:
                return False
        else:
            return True
        wait = self._wait
        if wait is None:
            wait = _Wait(file)
            wait.start()
            self._wait = wait
        # Taken or not: if it is not used, because the time is over or an exception came, the file
        # is closed, and what the thread gets then, it lets go of at once.
        wait.wait(timeout)
        if wait.over:
            self._wait = None
        if wait.error is not None:
            raise wait.error
        return wait.over

    def _same_file(self, file: io.FileIO) -> bool:
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        here = os.fstat(file.fileno())
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


class _Wait:
    """A thread blocked in flock(2) on a copy of the descriptor.

    The copy names the same open file, so what the thread locks is locked for the original too.

    Attributes:
        over: whether the wait is over.
        error: why flock failed.
    """

    def __init__(self, file: io.FileIO) -> None:
        self.over = False
        self.error: OSError | None = None
        self._worker = Worker(self._run, self._end)
        with _noting:
            self._copy = _copy_of(file)
            _waits.add(self)

    def start(self) -> None:
        try:
            self._worker.start()
        except BaseException:
            self._worker.give_up()
            raise

    def wait(self, timeout: float) -> None:
        self._worker.wait(timeout)

    def join(self) -> io.FileIO | None:
        """Give a file of one's own to wait with; None if the wait is over."""
        with _noting:
            return None if self._copy.closed else _copy_of(self._copy)

    def drop(self) -> None:
        """In a forked child: close the copy; the thread is the parent's, and so are its locks."""
        _waits.discard(self)
        self._copy.close()

    def _run(self) -> None:
        try:
            fcntl.flock(self._copy, fcntl.LOCK_EX)
        except OSError as error:
            self.error = error

    def _end(self) -> None:
        """Close the copy: if nobody else has one, this frees the lock."""
        with _noting:
            # Said before it is closed: whoever sees it has a file of its own.
            self.over = True
            _waits.discard(self)
            self._copy.close()


def _open(path: str, _flags: int) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, os.O_RDWR | flags)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        # Nobody can leave a note there, and a lock needs none.
        return os.open(path, os.O_RDONLY | flags)


def _copy_of(file: io.FileIO) -> io.FileIO:
    return io.FileIO(os.dup(file.fileno()), "r+")


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
    """In a forked child, which holds `_noting` since before: close the parent's."""
    for wait in list(_waits):
        wait.drop()
    for lock in list(_held):
        lock.release()
    _noting.release()
