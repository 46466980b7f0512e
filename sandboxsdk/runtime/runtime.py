"""The port: what a runtime can do, and what it is told.

Implementations are neighbours in this room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import msgspec

from sandboxsdk.host import Tree
from sandboxsdk.model import Description, Finding, Limits, LimitState, Spec, Usage, View


class BoxPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a runtime needs to make a box.

    Attributes:
        id: names the box in process lists and cgroups.
        view: the files behind /workspace.
        workspace: the same in words, for descriptions.
        keepsakes: descriptors (the task's lease) to hold until every process of the box is dead.
        forbidden: paths of the host that no mount may show or lie in, above all the home.
        caches: the directory in which `Mount.cache` directories lie.
        scratch: a directory of the task for files that go with the box.
        linger: whether what a command leaves running stays until the box ends.
    """

    id: str
    spec: Spec
    view: View
    workspace: str
    keepsakes: tuple[int, ...] = ()
    forbidden: tuple[str, ...] = ()
    caches: str = ""
    scratch: str = ""
    linger: bool = False


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One command to start.

    Attributes:
        terminal: it gets a terminal, whose other end is `Running.terminal`; else its
        streams: descriptors that the runtime copies and does not close.
    """

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    user: Literal["sandbox", "root"] = "sandbox"
    terminal: bool = False
    streams: tuple[int, int, int] = (0, 1, 2)


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a command ended, as the runtime saw it, before anybody interprets it.

    Attributes:
        started: whether the program itself ran; if not, `trouble` or its stderr says why.
        exit_code: as a shell reports it, 128+n for signal n; None when nobody could tell.
        lost: the box died under it.
    """

    started: bool
    exit_code: int | None = None
    trouble: str = ""
    lost: bool = False
    cpu_seconds: float | None = None
    memory_bytes_max: int | None = None


class Running(Protocol):
    """A started command. `fileno` turns readable when there is news; then call `news`."""

    def fileno(self) -> int: ...

    def news(self) -> Ended | None:
        """Read what happened; an Ended once it and everything it started is dead."""

    def ask_pid(self) -> None:
        """Have `pid` found out; it comes with the news."""

    def await_start(self) -> Ended | None:
        """Wait until the program itself runs; an Ended if it never did."""

    def kill(self) -> None:
        """Kill it and everything it started; the end comes as news."""

    @property
    def terminal(self) -> int:
        """The caller's end of its terminal, which whoever asks for it closes; -1 without one."""

    @property
    def pid(self) -> int:
        """The process, in the host's numbers, below which all of the command's processes are; 0 if
        unknown.
        """

    def close(self) -> None: ...


class Pressure(msgspec.Struct, frozen=True):
    """Counters that tell whether a limit struck between two readings."""

    oom_kills: int = 0
    pids_refused: int = 0


class Instance(Protocol):
    """An entered box of some runtime."""

    trees: Mapping[str, Tree]

    def start(self, command: Command) -> Running: ...

    def usage(self) -> Usage: ...

    def pressure(self) -> Pressure: ...

    def update(self, limits: Limits) -> None: ...

    def busy(self) -> bool:
        """Tell whether any process of the guest is alive: a command's, or one that it left.

        Raises:
            BoxLost: nobody is there who could tell.
        """

    def frozen(self) -> AbstractContextManager[None]:
        """Have all processes of the guest stand still inside the block, and go on after it.

        What was paused or stopped before stays so. Starts of other threads wait for the end of the
        block; so do their pause, unpause and clear. A kill is obeyed, at the latest after the
        block; close does not wait. Blocks of one thread may lie in each other.

        Where the kernel offers no freezer, SIGSTOP and SIGCONT do it, which programs may notice:
        a handler of SIGCONT runs, a sleep may end early as it does for any signal.

        Raises:
            BoxBusy: a process could not be stopped within 5 s; all go on.
            BoxLost: the box is gone.
        """

    def pause(self) -> None:
        """Stop every process where it is, until `unpause`; starts are refused. Raises as `frozen`.

        A kill lets the box go on: what is frozen cannot die.
        """

    def unpause(self) -> None:
        """Let the processes go on."""

    def clear(self) -> None:
        """Kill every process of the guest; returns when all are dead. The box can be used on.

        Commands that run end as after their kill; a paused box goes on.

        Raises:
            BoxBusy: something did not die within 30 s.
            BoxLost: the box is gone.
            UsageError: this thread has frozen the box.
        """

    def remounted(self, prepare: Callable[[], View]) -> bool:
        """Take the workspace off, have `prepare` change what lies on disk, and mount what it says.

        To be called in a block of `frozen`, where no KeyboardInterrupt comes between. False, and
        nothing was done, if this box cannot, if something of the guest is alive, or if somebody
        uses the files or has used them since the block began.

        Raises:
            BoxLost: the box is gone, or its files could not be mounted again, so it was ended.
        """

    @property
    def in_use(self) -> bool:
        """Whether some thread is in the midst of using its files, also after it was closed."""

    @property
    def workspace(self) -> int:
        """Descriptor of the root of the mounted /workspace; it stays the instance's.

        Raises:
            BoxLost: the box is closed.
        """

    def seen_ids(self, uid: int, gid: int) -> tuple[int, int]:
        """Give what fchown must be told below `workspace` to make these the owners on disk.

        It works in both directions: told what fstat says there, it gives the owners on disk.
        """

    def describe(self) -> Description: ...

    def listening(self, port: int) -> bool:
        """Tell whether something in the box listens on this TCP port."""

    def alive(self) -> bool: ...

    def close(self) -> None:
        """Kill everything, wait until it is dead, leave no mount and no cgroup."""


class Runtime(Protocol):
    """Makes boxes.

    Attributes:
        name: what users call it.
        stacks: whether it can lay an upper over several layers.
    """

    name: str
    stacks: bool

    def findings(self, scratch: str | None) -> tuple[Finding, ...]:
        """Tell what works here, by trying it in `scratch`, an empty directory, if there is one."""

    def limit_states(self, limits: Limits) -> tuple[LimitState, ...]:
        """Tell how each limit would be kept, without making a box; "network" is among them."""

    def enter(self, plan: BoxPlan) -> Instance:
        """Make a box.

        Raises:
            RuntimeUnavailable: this runtime does not work on this host.
            CapabilityError: the plan asks for something that it cannot do or enforce.
            WorkspaceInvalid: a directory was moved or replaced meanwhile.
        """
