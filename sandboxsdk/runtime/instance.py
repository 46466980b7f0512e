"""An entered box that a holder keeps: the caller's end."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from sandboxsdk import holder
from sandboxsdk.errors import BoxBusy, BoxLost, HostRefused, UsageError
from sandboxsdk.host import Passage, Tree, remove_tree
from sandboxsdk.model import Description, Limits, LimitState, Usage, View

from .arguments import HOME, WORKSPACE
from .cgroup import BoxCgroup
from .freezing import Asking, CgroupFreezer, Freezer, HolderFreezer
from .gate import Gate
from .listening import listens
from .running import DEAD_SECONDS_MAX, HeldRunning, pid_of, readable
from .runtime import BoxPlan, Command, Pressure

# More than are open at once while a view is exchanged.
_RESERVED = 12


class Dialect(Protocol):
    """What tells one kind of held box from another: how a command is put, and what is claimed."""

    @property
    def seccomp(self) -> bytes:
        """The system-call filter."""

    @property
    def ids(self) -> tuple[int, int] | None:
        """Uid and gid that files are made with, where they are not the caller's."""

    @property
    def remounts(self) -> bool:
        """Whether its holder mounts the workspace."""

    def arguments(self, command: Command) -> bytes:
        """Give what the holder hands to the program that runs the command."""

    def rlimits(self, limits: Limits) -> list[tuple[int, int]]: ...

    def states(self, limits: Limits) -> tuple[LimitState, ...]: ...

    def describe(self, states: tuple[LimitState, ...]) -> Description: ...


class HeldInstance:
    """A box: the caller's end of a holder. Safe to use from several threads."""

    def __init__(
        self,
        plan: BoxPlan,
        dialect: Dialect,
        *,
        channel: holder.Channel,
        gone: int,
        descriptors: list[int],
        cgroup: BoxCgroup | None,
        scratch: str = "",
    ) -> None:
        self._plan = plan
        self._dialect = dialect
        self._limits = plan.spec.limits
        self._channel = channel
        self._gone = gone
        self._pidfd, *roots = descriptors
        self._roots = roots
        self._cgroup = cgroup
        self._scratch = scratch
        self._pressure = Pressure()
        self._asking = Asking(plan.id, channel)
        self._freezer: Freezer = HolderFreezer(self._asking)
        if cgroup is not None and cgroup.can_freeze:
            self._freezer = CgroupFreezer(plan.id, cgroup)
        self._gate = Gate(plan.id, self._settle)
        # Who uses files through us: nobody may while the workspace is off.
        self._passage = Passage()
        self._mark = -1
        # Held while the workspace is off: our descriptor of it is another one then.
        self._mounting = threading.Lock()
        self._paused = False
        self._stands = False
        # Commands of which something may be alive; those of a lingering box until it was asked.
        self._unended: set[int] = set()
        self._serials = itertools.count()
        self._guard = threading.Lock()
        self._open = True
        self.pid: int = os.getpid()
        names = (WORKSPACE, "/tmp", HOME)  # noqa: S108 - the guest's own
        self.trees: Mapping[str, Tree] = {
            name: Tree(root, ids=dialect.ids, passage=self._passage)
            for name, root in zip(names, roots, strict=True)
        }
        for tree, root in zip(self.trees.values(), roots, strict=True):
            # The number goes with its last user: see `close`.
            weakref.finalize(tree, os.close, root).atexit = False

    def start(self, command: Command) -> HeldRunning:
        """Start a command; while another thread freezes or clears the box, that waits.

        Raises:
            BoxLost: the holder is gone.
            HostRefused: the kernel refused (descriptors, memory).
            UsageError: the box is paused, or frozen by this thread, or there are more arguments
                than bubblewrap takes.
        """
        serial = next(self._serials)
        options = self._dialect.arguments(command)
        message = {
            "op": "exec",
            "command": list(command.argv),
            "terminal": command.terminal,
            "linger": self._plan.linger,
            "rlimits": self._dialect.rlimits(self._limits),
        }
        opened: list[int] = []
        streams = () if command.terminal else command.streams
        try:
            mine, theirs = holder.pair()
            try:
                # One by one: if the second cannot be made, the first is closed.
                opened.append(_memory(options))
                opened.append(_memory(self._dialect.seccomp))
                with self._gate.starting():
                    self._refuse_paused()
                    self._channel.send(message, [theirs.fileno(), *opened, *streams])
                    self._unended.add(serial)
            except UsageError:
                mine.close()
                raise
            except OSError as error:
                mine.close()
                if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.EBADF, errno.ENOTCONN):
                    raise BoxLost(box=self._plan.id, reason="its holder is gone") from error
                raise
            finally:
                theirs.drop()
                for descriptor in opened:
                    os.close(descriptor)
        except OSError as error:
            raise HostRefused(what="start", path=command.argv[0], reason=str(error)) from error
        running = HeldRunning(
            mine,
            self._pidfd,
            command.argv[0],
            let_die=self._let_die,
            on_end=lambda: self._forget(serial),
        )
        if command.terminal and running.await_terminal() is not None:
            running.close()
            raise HostRefused(what="open", path="a terminal", reason="the box gave none")
        return running

    def usage(self) -> Usage:
        return self._cgroup.usage() if self._cgroup is not None else Usage(source="watch")

    def pressure(self) -> Pressure:
        if self._cgroup is None:
            return self._pressure
        # The counters go with the box; what it was that ended a command, the command itself says.
        with contextlib.suppress(HostRefused):
            counters = self._cgroup.counters()
            self._pressure = Pressure(counters.oom_kills, counters.pids_refused)
        return self._pressure

    def update(self, limits: Limits) -> None:
        """Change limits while the box runs; rlimits hold for commands started from now on."""
        if self._cgroup is not None:
            self._cgroup.update(limits)
        self._limits = limits

    def busy(self) -> bool:
        """Tell whether any process of the guest is alive. See `Instance.busy`."""
        with self._gate.looking():
            asked = set(self._unended)
        if not asked or not self._open:
            return False
        try:
            busy = self._asking.busy()
        except BoxLost:
            if self.alive():
                raise
            busy = False
        if not busy:
            self._forget(*asked, left=False)
        return busy

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Have all stand still inside the block. See `Instance.frozen`."""
        with self._gate.shut():
            self._stand()
            self._mark = self._passage.mark()
            yield

    def remounted(self, prepare: Callable[[], View]) -> bool:
        """Mount the workspace anew, as `prepare` says. See `Instance.remounted`."""
        if self._plan.view.kind != "overlay" or not self._dialect.remounts:
            return False
        with self._mounting, self._passage.closed(self._mark) as alone:
            if not alone or not self._open:
                return False
            return self._remount(self._roots[0], prepare)

    def _remount(self, root: int, prepare: Callable[[], View]) -> bool:
        # What needs descriptors of ours comes before anything is changed: there may be none left.
        reserve = _Reserve()
        with self._asking.prepared() as take_off, self._asking.prepared() as put_on, reserve:
            # Our own descriptor would keep the mount in use.
            os.dup2(self._pidfd, root, inheritable=False)
            try:
                message, descriptors = take_off({"op": "unmount"}, DEAD_SECONDS_MAX)
                done = not message["busy"]
                if done:
                    reserve.give_back()
                    view = prepare()
                    mount = {"op": "mount", **layers_of(view)}
                    _, descriptors = put_on(mount, DEAD_SECONDS_MAX)
                (descriptor,) = descriptors
            except BaseException as error:
                # What runs next would find no files.
                self._channel.close()
                reason = f"its files could not be mounted again ({error})"
                raise BoxLost(box=self._plan.id, reason=reason) from error
            os.dup2(descriptor, root, inheritable=False)
            os.close(descriptor)
        return done

    @property
    def in_use(self) -> bool:
        """Whether some thread uses files through it. See `Instance.in_use`."""
        return self._passage.in_use

    def pause(self) -> None:
        """Stop every process where it is, until `unpause` or a kill.

        Raises:
            BoxBusy: something could not be stopped in time; all go on.
        """
        with self._gate.shut():
            self._stand()
            self._paused = True

    def unpause(self) -> None:
        """Let the processes go on; inside a `frozen` block, after it."""
        with self._gate.shut():
            self._paused = False

    def clear(self) -> None:
        """Kill all that runs in the box. See `Instance.clear`."""
        with self._gate.shut(again=False):
            asked = set(self._unended)
            self._paused = False
            if not asked:
                return
            channel = self._asking.ask("clear")
            try:
                # What is frozen cannot die.
                self._settle()
                message = self._asking.answer(channel, DEAD_SECONDS_MAX)
            finally:
                channel.close()
            if message is None:
                what = f"it could not be cleared within {DEAD_SECONDS_MAX:g} s"
                raise BoxBusy(box=self._plan.id, what=what)
            self._forget(*asked, left=False)

    @property
    def workspace(self) -> int:
        """Descriptor of the mounted workspace. See `Instance.workspace`."""
        if not self._roots:
            raise BoxLost(box=self._plan.id, reason="it was closed")
        return self._roots[0]

    def seen_ids(self, uid: int, gid: int) -> tuple[int, int]:
        """Give the ids that mean these on disk. See `Instance.seen_ids`."""
        if self._dialect.ids is None:
            return uid, gid
        view = self._plan.view
        (box_uid, box_gid), (own_uid, own_gid) = self._dialect.ids, view.owner
        return (
            {own_uid: box_uid, box_uid: own_uid}.get(uid, uid),
            {own_gid: box_gid, box_gid: own_gid}.get(gid, gid),
        )

    def _refuse_paused(self) -> None:
        if self._paused:
            # A process that joins a frozen cgroup cannot even be killed.
            hint = "call box.unpause() first"
            raise UsageError(what="box", value=self._plan.id, reason="is paused", hint=hint)

    def _stand(self) -> None:
        """Stop what runs, unless it stands; with the gate shut."""
        asked = set(self._unended)
        if self._stands or not asked:
            return
        # Whatever comes in between, a half-finished stop must be undone when the gate opens.
        self._stands = True
        if not self._freezer.stop():
            self._forget(*asked, left=False)

    def _settle(self) -> None:
        """Let go on what stands, if nobody wants it to: called when the gate opens."""
        if self._stands and not self._paused:
            self._stands = False
            self._freezer.go_on()

    def _forget(self, *serials: int, left: bool = True) -> None:
        """Take note of commands that are over; what a lingering box `left` may still be there."""
        if not (left and self._plan.linger):
            with self._gate.looking():
                self._unended.difference_update(serials)

    def _let_die(self) -> None:
        """Let a paused box go on in which something is killed: what is frozen cannot die."""
        with self._gate.changing():
            self._paused = False

    def limit_states(self) -> tuple[LimitState, ...]:
        return self._dialect.states(self._limits)

    def describe(self) -> Description:
        return self._dialect.describe(self.limit_states())

    def listening(self, port: int) -> bool:
        return listens(pid_of(self._pidfd), port)

    def alive(self) -> bool:
        return self._open and not readable(self._pidfd, 0.0)

    def close(self) -> None:
        """End the box; returns when every process of it is dead and nothing of it is left on the
        host.
        """
        with self._guard:
            if not self._open:
                return
            self._open = False
        try:
            if self.pid != os.getpid():
                # A forked child: the box is the parent's.
                self._channel.drop()
                self._freezer.disown()
            else:
                self._end()
                # Nothing is left to go on; this lets go of what kept it.
                self._let_die()
        finally:
            self._let_go()

    def _end(self) -> None:
        if self._cgroup is not None:
            # What is frozen cannot die.
            with contextlib.suppress(HostRefused):
                self._cgroup.thaw()
        self._channel.close()
        dead = readable(self._pidfd, DEAD_SECONDS_MAX)
        dead = dead and readable(self._gone, DEAD_SECONDS_MAX)
        if self._cgroup is not None:
            self._cgroup.remove()
        if self._scratch:
            _remove(self._scratch)
        if not dead:
            reason = f"its processes did not die within {DEAD_SECONDS_MAX:g} s"
            raise BoxLost(box=self._plan.id, reason=reason)

    def _let_go(self) -> None:
        """Close our descriptors, also when the box could not be ended as it should."""
        with self._mounting:
            for root in self._roots:
                # The box's files are let go of, but not the number: a thread in the midst of an
                # upload would go on in whatever directory of the host got it next.
                os.dup2(self._pidfd, root, inheritable=False)
            self.trees = {}
            self._roots = []
        for descriptor in (self._pidfd, self._gone):
            os.close(descriptor)


class _Reserve:
    """Descriptors that are free when they are needed: of a process that has too few, another thread
    might take the last ones in between.

    Raises:
        HostRefused: there are too few.
    """

    def __init__(self) -> None:
        self._held: list[int] = []

    def __enter__(self) -> None:
        try:
            for _ in range(_RESERVED):
                self._held.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
        except OSError as error:
            self.give_back()
            raise HostRefused(what="open", path="a descriptor", reason=str(error)) from error

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def give_back(self) -> None:
        while self._held:
            os.close(self._held.pop())


def layers_of(view: View) -> dict[str, Any]:
    """Say which layers are to be mounted, as a holder is told."""
    return {"stack": list(view.stack), "upper": view.upper, "work": view.work}


def _remove(directory: str) -> None:
    """Remove a directory of ours with whatever commands put into it."""
    parent = os.open(os.path.dirname(directory), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(parent, os.path.basename(directory))
    finally:
        os.close(parent)


def _memory(data: bytes) -> int:
    descriptor = os.memfd_create("sandboxsdk", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
