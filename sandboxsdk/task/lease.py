"""Who may write to a task: one process at a time, by a kernel lock that dies with its holder.

The lease belongs to the process and the task: contexts nest, from any thread. Each names itself by
an object, so that giving back twice, or what was never taken, changes nothing: an exception may
come at any moment (Ctrl-C). Who is forgotten without giving back, because it came in the very end
of a block, has given back. A forked child holds nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import weakref

from sandboxsdk import clock
from sandboxsdk.codec import decode_json, encode_json
from sandboxsdk.errors import Corrupt, Denied, NotFound, TaskLocked, TaskNotFound
from sandboxsdk.host import FileLock, boot_id, command_line, host_name
from sandboxsdk.model import HolderRecord

FILE = "lease"
_NOTE_READS_MAX = 20
_leases: dict[str, Lease] = {}
_guard = threading.Lock()


class Lease:
    """The hold of this process on one task, released with the last of its users."""

    def __init__(self, directory: str, task: str) -> None:
        self.pid: int = os.getpid()
        self._directory = directory
        self._task = task
        self._lock = FileLock(os.path.join(directory, FILE))
        self._users: dict[int, weakref.ref[object]] = {}
        # Held for moments only. Neither it nor what follows is a Condition or the like: an
        # exception in the middle of these leaves them locked.
        self._guard = threading.RLock()
        # Whose turn it is to ask the kernel, and who comes after. Weak: who is interrupted in the
        # very end of its turn is noticed when it is forgotten, or by who comes next.
        self._turn: weakref.ref[_Turn] | None = None
        self._queue: list[weakref.ref[_Turn]] = []

    @property
    def descriptor(self) -> int:
        """What a helper process is given to share the hold."""
        return self._lock.descriptor

    @property
    def held(self) -> bool:
        """Whether this very process holds the task; a forked child finds that it does not."""
        return bool(self._users) and self.pid == os.getpid()

    def take(
        self,
        user: object,
        timeout: float,
        *,
        agent: str | None = None,
        alone: bool = False,
        note: bool = True,
    ) -> None:
        """Hold for `user` too, waiting for another process if one holds the task.

        Args:
            alone: refuse if somebody in this process holds it already.
            note: tell others in the lock file who holds it; without, nothing is written.

        Raises:
            TaskLocked: it still does after `timeout` seconds.
            TaskNotFound: the task was deleted.
            Corrupt: the task is there and its lock file is not.
            Denied: `alone`, and somebody here holds it.
        """
        deadline = clock.monotonic() + timeout
        turn = _Turn()
        try:
            with turn.staying:
                self._queue.append(weakref.ref(turn, self._turn_forgotten))
                self._settle()
                if not turn.gate.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
                    raise self._locked()
                if alone and self._users:
                    raise Denied(
                        path=self._task,
                        reason="the task is in use in this process",
                        hint="leave the with block of its Sandbox or Session first",
                    )
                if not self._users:
                    self._ask(max(deadline - clock.monotonic(), 0))
                    if note:
                        self._write_note(agent)
                self._add(user)
        finally:
            self._settle()

    def take_unborn(self, user: object, making: str) -> None:
        """Hold a task that is still being made in the directory `making`, before anybody can see
        it.
        """
        self._lock.path, final = os.path.join(making, FILE), self._lock.path
        self._lock.acquire(0)
        self._lock.path = final
        self._add(user)

    def give_back(self, user: object) -> None:
        """Let go for `user`; the last one lets go of the kernel's lock."""
        try:
            self._gone(id(user))
        except BaseException:
            self._gone(id(user))
            raise

    def _add(self, user: object) -> None:
        self._users[id(user)] = weakref.ref(user, functools.partial(self._forgotten, id(user)))

    def _gone(self, user: int) -> None:
        self._users.pop(user, None)
        self._settle()

    def _forgotten(self, user: int, _reference: object) -> None:
        self._users.pop(user, None)
        self._settle_later()

    def _turn_forgotten(self, _reference: object) -> None:
        self._settle_later()

    def _settle_later(self) -> None:
        """Bring everything in line now or, if somebody is at it, leave that to them: called by the
        garbage collector, in the middle of anything, this must not wait.
        """
        if not sys.is_finalizing() and self._guard.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._guard.release()

    def _settle(self) -> None:
        """Bring everything in line with who holds and who waits; doing it twice does no harm."""
        with self._guard:
            for waiting in list(self._queue):
                if _is_over(waiting):
                    self._queue.remove(waiting)
            if self._turn is not None and _is_over(self._turn):
                self._turn = None
            for user, reference in list(self._users.items()):
                # Python loses an interrupt that comes while it tells us of somebody forgotten.
                if reference() is None:
                    self._users.pop(user, None)
            if self._turn is None:
                if not self._users:
                    self._lock.release()
                if self._queue:
                    self._turn = self._queue[0]
            turn = None if self._turn is None else self._turn()
            if turn is not None and not turn.called:
                if self._turn in self._queue:
                    self._queue.remove(self._turn)
                turn.call()

    def _ask(self, timeout: float) -> None:
        try:
            taken = self._lock.acquire(timeout)
        except NotFound:
            raise self._missing() from None
        if not taken:
            raise self._locked()

    def _write_note(self, agent: str | None) -> None:
        note = HolderRecord(
            pid=os.getpid(),
            host=host_name(),
            boot_id=boot_id(),
            since=clock.now_ns(),
            agent=agent,
            command=command_line(),
        )
        self._lock.write_note(encode_json(note))

    def _missing(self) -> TaskNotFound | Corrupt:
        if os.path.isdir(self._directory):
            return Corrupt(
                path=self._lock.path,
                reason="is missing or was replaced, so nobody can tell who works on the task",
                hint="end every process that uses the task, then make this file anew, empty",
            )
        home = os.path.dirname(os.path.dirname(self._directory))
        return TaskNotFound(wanted=self._task, home=home)

    def _locked(self) -> TaskLocked:
        for _ in range(_NOTE_READS_MAX):
            try:
                note = decode_json(self._lock.read_note(), HolderRecord, path=self._lock.path)
            except Corrupt:
                # Whoever took it is about to say who it is.
                clock.pause(0.005)
                continue
            agent = f", agent {note.agent}" if note.agent else ""
            holder = f"process {note.pid} ({note.command}) on {note.host}{agent}"
            return TaskLocked(task=self._task, holder=holder, since=clock.rfc3339(note.since))
        return TaskLocked(task=self._task, holder="another process", since="an unknown time")


class _Turn:
    """One thread's place in the queue: a gate that it waits at until it is called.

    Attributes:
        called: whether it was.
        staying: held while it wants the place. A lock, because leaving a block of one is the only
            thing that no exception can come before.
    """

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        self.called = False
        self.staying = threading.Lock()

    def call(self) -> None:
        with contextlib.suppress(RuntimeError):  # opened by a call that was interrupted
            self.gate.release()
        self.called = True


def _is_over(reference: weakref.ref[_Turn]) -> bool:
    turn = reference()
    return turn is None or not turn.staying.locked()


def lease_of(directory: str, task: str) -> Lease:
    """Give this process's lease object for a task; one object per task, so that contexts nest."""
    with _guard:
        found = _leases.get(directory)
        if found is None or found.pid != os.getpid():
            found = _leases[directory] = Lease(directory, task)
        return found


def forget(directory: str) -> None:
    """Drop the object of a task that is deleted."""
    with _guard:
        _leases.pop(directory, None)


def _start_anew() -> None:
    """In a forked child: hold nothing, and wait for no thread that is the parent's."""
    global _guard  # noqa: PLW0603 - the old one may be held by a thread that is not here
    _guard = threading.Lock()
    _leases.clear()


os.register_at_fork(after_in_child=_start_anew)
