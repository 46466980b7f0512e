"""The Sandbox: what a user holds in a with block. It decides little and delegates everything."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import msgspec

from sandboxsdk.checkpoint import Checkpoint
from sandboxsdk.errors import CommandFailed, UsageError
from sandboxsdk.home import Home
from sandboxsdk.ids import new_id
from sandboxsdk.model import (
    Change,
    Description,
    ExecResult,
    Image,
    Limits,
    Mount,
    Network,
    RestoreReport,
    Secret,
    Spec,
    Usage,
    Workspace,
    check_many,
    check_one,
)
from sandboxsdk.runtime import Instance, Runtime, Watch
from sandboxsdk.task import Session, Task, check_forks, make

from . import checkpoints, execution
from .command import (
    Typed,
    check_max_output,
    input_bytes,
    resolve_command,
    shown,
    time_limit,
)
from .execution import MAX_OUTPUT, OnOutput
from .files import Files
from .opening import Opening
from .outcome import failure_hint
from .process import Process
from .pump import Pump
from .requirement import check_required

EVENTS = ("entered", "exec", "spawn", "lost", "closed", "checkpoint", "restore", "progress")


class Sandbox:
    """A box around a task, a directory, or nothing; it runs commands while its with block lasts.

    Args:
        task_or_path: a Task works on its own lasting workspace; a path or None makes a throwaway
            task that is deleted at the end of the block unless `keep`.
        image, limits, network, secrets, env, mounts, runtime: replace what the task says, for this
        box.
        require: names of what must be enforced: "memory", "pids", "cpus", "disk", "network".
        session: what a command leaves running stays until the block ends.
        keep: keep the task of a throwaway box.

    Raises:
        UsageError: a setting that cannot be.
        CapabilityError: something in `require` is not enforced here.
        WorkspaceInvalid: the path cannot be a workspace.
    """

    def __init__(
        self,
        task_or_path: Task | str | os.PathLike[str] | Workspace | None = None,
        *,
        image: Image | None = None,
        limits: Limits | None = None,
        network: Network | None = None,
        secrets: Sequence[Secret] = (),
        env: Mapping[str, str] | None = None,
        mounts: Sequence[Mount] = (),
        runtime: str = "auto",
        require: Sequence[str] = (),
        session: bool = False,
        keep: bool = False,
        home: Home | None = None,
    ) -> None:
        self.id: str = new_id()
        given_task = task_or_path if isinstance(task_or_path, Task) else None
        if home is not None:
            check_one(home, Home, what="home")
        self._home = given_task.home if given_task else home or Home.default()
        base = given_task.spec if given_task else Spec()
        self._spec = base.overridden(
            image=image,
            limits=limits,
            network=network,
            secrets=check_many(secrets, Secret, what="secrets") or None,
            env=env,
            mounts=check_many(mounts, Mount, what="mounts") or None,
            runtime=runtime if runtime != "auto" else None,
        )
        self._given = task_or_path
        self._task = given_task
        self._session_mode = session
        self._keep = keep
        self._runtime: Runtime = self._home.runtime(self._spec.runtime)
        check_required(require, lambda: self._runtime.limit_states(self._spec.limits))
        self._guard = threading.RLock()
        self._session: Session | None = None
        self._entered_by = 0
        self._opening = Opening(
            self.id,
            self._home,
            self._runtime,
            self._spec,
            linger=session,
            tell=self._tell,
            inside=self._inside,
        )
        self._processes: list[Process] = []
        # Forks of this box, which end with its block; and whether its own parent has entered it.
        self._forks: list[Sandbox] = []
        self._entered_as_fork = False
        self._callbacks: list[tuple[str, Callable[[Mapping[str, Any]], object]]] = []

    def __enter__(self) -> Self:
        if self._entered_as_fork:
            self._entered_as_fork = False
            self._inside()
            return self
        if self._session is not None:
            raise UsageError(what="with", value=self.id, reason="this box is entered already")
        if self._task is None and isinstance(self._given, Task):
            hint = "fork again: box.fork()"
            reason = "was a fork, which is gone with its block"
            raise UsageError(what="with", value=self.id, reason=reason, hint=hint)
        if self._task is None:
            self._home.sweep()
            self._task = self._make_task()
        try:
            session = self._task.attach()
            session.__enter__()
        except BaseException:
            self._drop_throwaway()
            raise
        self._entered_by = os.getpid()
        self._session = session
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._entered_by != os.getpid():
            # A forked child that leaves the block: box, lease and files are its parent's.
            self._session = None
            return
        with self._guard:
            # From here on no other thread can start the box again.
            session, self._session = self._session, None
            forks, self._forks = self._forks, []
        try:
            with ExitStack() as stack:
                # The last of them, whatever becomes of the others.
                stack.callback(self._stop)
                for fork in forks:
                    stack.callback(fork._leave)  # noqa: SLF001 - one of ours
        finally:
            if session is not None:
                session.__exit__(kind, error, trace)
            self._drop_throwaway()

    @property
    def task(self) -> Task:
        """The task behind the box; a throwaway one exists only inside the block."""
        if self._task is None:
            raise UsageError(what="task", value=None, reason="a throwaway box has one in its block")
        return self._task

    @property
    def runtime(self) -> str:
        """Name of the runtime that runs it."""
        return self._runtime.name

    def exec(
        self,
        command: Typed,
        *,
        timeout: float | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        user: str | int | None = None,
        input: str | bytes | None = None,  # noqa: A002 - the word users know from subprocess
        check: bool = False,
        on_output: OnOutput = None,
        max_output: int = MAX_OUTPUT,
    ) -> ExecResult:
        """Run a command and wait until it and everything it started are dead.

        Args:
            command: a str is run by /bin/sh -c, a list as it is.
            timeout: seconds; then everything is killed.
            cwd: below /workspace unless absolute.
            user: "sandbox" or "root" (uid 0 of the box, with no rights on the host).
            input: what it reads from its standard input; nothing if None.
            check: raise if it does not exit with 0.
            on_output: called with (stream, bytes) in this thread, or "inherit" to copy to our own
                streams.
            max_output: bytes kept per stream; the rest is thrown away and `truncated` set.

        Raises:
            CommandFailed: check was asked for and failed.
            ExecTimeout: the time was over; `.result` has the output so far.
            ExecStartError: there is no such program or directory.
            BoxLost: the box died before.
        """
        resolved = self._resolve(command, cwd=cwd, call_env=env, user=user)
        limit = time_limit(timeout, self._spec.limits.wall_time)
        data = b"" if input is None else input_bytes(input)
        check_max_output(max_output)
        instance, watch = self._watched()
        text = shown(command)
        result = execution.run(
            instance,
            resolved,
            text=text,
            data=data,
            timeout=limit,
            max_output=max_output,
            on_output=on_output,
            watch=watch,
        )
        self._tell("exec", {"command": text, "result": result})
        if result.reason == "lost":
            self._tell("lost", {"command": text})
        if check and not result.ok:
            raise CommandFailed(command=text, result=result, hint=failure_hint(result))
        return result

    def spawn(
        self,
        command: Typed,
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        user: str | int | None = None,
        pty: bool = False,
        rows: int = 24,
        columns: int = 80,
        max_output: int = MAX_OUTPUT,
    ) -> Process:
        """Start a command that stays until its block, or the box's, ends.

        Args:
            pty: give it a terminal; then all output is "stdout".
            rows, columns: the terminal's size.
            max_output: unread bytes kept per stream.

        Raises:
            ExecStartError: there is no such program or directory.
        """
        resolved = self._resolve(command, cwd=cwd, call_env=env, user=user, terminal=pty)
        check_max_output(max_output)
        instance, watch = self._watched()
        before = instance.pressure()
        terminal = -1
        if pty:
            running, readers, writer = execution.start_on_terminal(
                instance, resolved, rows=rows, columns=columns
            )
            terminal = writer
        else:
            running, readers, writer = execution.start(instance, resolved, with_input=True)
        text = shown(command)
        with execution.abandoned_on_error(running, readers, writer):
            ended = running.await_start()
        if ended is not None and not ended.started and not ended.lost:
            raise execution.unstarted(running, readers, writer, ended, text)
        with execution.abandoned_on_error(running, readers, writer):
            process = Process(
                instance,
                running,
                lambda take: Pump(running, readers, writer, take),
                text=text,
                max_output=max_output,
                wall_time=self._spec.limits.wall_time,
                watch=watch,
                before=before,
                terminal=terminal,
                on_end=self._forget,
            )
        with self._guard:
            self._processes.append(process)
        if process.over:
            # Its thread may have looked for it before it was there.
            self._forget(process)
        self._tell("spawn", {"command": text})
        return process

    def checkpoint(
        self,
        name: str | None = None,
        *,
        description: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> Checkpoint:
        """Keep the files of /workspace as they are; they survive a power cut when this returns.

        What runs in the box stands still meanwhile. As a context manager the checkpoint rolls the
        files back, to itself, if the block raises.

        Args:
            name: a short name to find it by; need not be unique.

        Raises:
            Denied: a file may not be read; the path says which. Nothing was made.
            HostFull, HostRefused: it cannot be written. Nothing was made.
        """
        task = self._inside()
        self._entered()
        return checkpoints.take(
            task,
            name=name,
            description=description,
            labels=labels,
            tell=self._tell,
            roll_back=self._roll_back,
        )

    def restore(
        self,
        checkpoint_or_name: Checkpoint | str,
        *,
        save_current: bool = True,
        kill: bool = False,
    ) -> RestoreReport:
        """Make the files of /workspace what they were at a checkpoint.

        Args:
            save_current: keep what is replaced as a checkpoint; the report names it.
            kill: end the processes that run in the box first.

        Raises:
            BoxBusy: processes run, and `kill` is not set.
            CheckpointNotFound, AmbiguousId: there is no such checkpoint, or more than one.
            UsageError: it is a checkpoint of a task that was not forked from the same one.
            Corrupt: part of it is missing or damaged; nothing was touched.
            HostFull, HostRefused: it could not be finished; the next use of the box tries again.
        """
        save = {"before-restore": "yes"} if save_current else None
        task = self._inside()
        with self._opening.restoring():
            instance = self._opening.instance(task, finish=False)
            return checkpoints.restore(
                task, instance, checkpoint_or_name, save=save, kill=kill, tell=self._tell
            )

    def fork(
        self, n: int = 1, *, at: Checkpoint | str | None = None, keep: bool = False
    ) -> list[Sandbox]:
        """Make boxes that begin with the files which this one has now, or had at a checkpoint.

        They have its settings, see nothing of each other, and can be used at once. Each ends with
        its own `with` block or with this box's, and is deleted then with all that it has.
        Checkpoints can be restored from one to the other: `box.restore(best.checkpoint())`.

        Args:
            n: how many.
            at: a checkpoint, or its id, tag or name; None is now: what runs stands still meanwhile.
            keep: keep the tasks of the forks.

        Raises:
            CheckpointNotFound, AmbiguousId: there is no such checkpoint, or more than one.
            HostFull, HostRefused: the home cannot be written; no fork was made.
        """
        task = self._inside()
        names = check_forks(n, None)
        self._opening.finish(task)
        made = task.forked(names, spec=self._spec, at=at, throwaway=not keep)
        forks: list[Sandbox] = []
        try:
            for one in made:
                fork = Sandbox(one, session=self._session_mode)
                forks.append(fork.__enter__())
                fork._entered_as_fork = True
        except BaseException:
            with ExitStack() as stack:
                for one in made[len(forks) :]:
                    stack.callback(one.discard if one.throwaway else one.delete)
                for fork in forks:
                    stack.callback(fork._leave)  # noqa: SLF001 - one of ours
            raise
        with self._guard:
            self._forks += forks
        return forks

    def _leave(self) -> None:
        """End a fork with its parent, unless its own block has done so."""
        if self._session is not None:
            self.__exit__(None, None, None)

    def _roll_back(self, checkpoint: Checkpoint) -> RestoreReport:
        """Undo what was done since; a box that died meanwhile is started anew for it."""
        task = self._inside()
        save = {"rolled-back": checkpoint.id}
        with self._opening.restoring():
            instance = self._opening.revived(task)
            return checkpoints.restore(
                task, instance, checkpoint, save=save, kill=True, tell=self._tell, rollback=True
            )

    def diff(self, since: Checkpoint | str | None = None) -> list[Change]:
        """Tell what differs from a checkpoint (None: from the task's beginning).

        From the beginning it costs what changed, not what exists.

        Raises:
            CheckpointNotFound, AmbiguousId: there is no such checkpoint, or more than one.
        """
        task = self._inside()
        self._opening.finish(task)
        return [*task.checkpoint_history().diff(since, None)]

    @property
    def files(self) -> Files:
        """The files of the box: /workspace, /tmp and /home/sandbox. No symlink is ever followed."""
        return Files(lambda: self._entered().trees)

    def stats(self) -> Usage:
        """Tell what the box uses now."""
        instance = self._entered()
        usage = instance.usage()
        disk = self._opening.workspace(self._inside()).disk_bytes()
        latest = self._opening.watch.latest if self._opening.watch is not None else None
        memory, pids = usage.memory_bytes, usage.pids
        if memory is None and latest is not None:
            memory, pids = latest.rss_bytes, latest.threads
        return msgspec.structs.replace(usage, memory_bytes=memory, pids=pids, disk_bytes=disk)

    def update(self, limits: Limits) -> None:
        """Change the limits of the open box.

        Raises:
            HostRefused: the kernel refuses, e.g. a memory limit below what is in use.
        """
        self._entered().update(limits)
        self._spec = self._opening.spec = self._spec.overridden(limits=limits)
        if self._opening.watch is not None:
            self._opening.watch.update(limits)

    def pause(self) -> None:
        """Stop every process of the box where it is, until `unpause`."""
        self._entered().pause()

    def unpause(self) -> None:
        """Let the processes go on."""
        self._entered().unpause()

    def describe(self) -> Description:
        """Tell what isolates this box and how each limit is kept."""
        described = self._entered().describe()
        notes = (*described.notes, *self._opening.workspace(self._inside()).notes())
        return msgspec.structs.replace(described, notes=notes)

    def on(self, event: str, callback: Callable[[Mapping[str, Any]], object]) -> None:
        """Have `callback` called with the facts of an event, in the thread where it happens.

        Args:
            event: "entered", "exec", "spawn", "lost", "closed", "checkpoint", "restore", or
                "progress" (of a long checkpoint: files and bytes seen so far).

        Raises:
            UsageError: there is no such event.
        """
        if event not in EVENTS:
            hint = f"one of: {', '.join(EVENTS)}"
            raise UsageError(what="event", value=event, reason="is unknown", hint=hint)
        self._callbacks.append((event, callback))

    def __repr__(self) -> str:
        state = "open" if self._session is not None else "closed"
        return f"Sandbox({self._given!r}, id={self.id!r}, {state})"

    def _drop_throwaway(self) -> None:
        if self._task is not None and self._task.throwaway:
            throwaway, self._task = self._task, None
            throwaway.discard()

    def _make_task(self) -> Task:
        given = self._given
        workspace = given if isinstance(given, Workspace) else Workspace.private(given)
        return make(
            f"box {self.id}",
            home=self._home,
            workspace=workspace,
            spec=self._spec,
            throwaway=not self._keep,
        )

    def _resolve(self, command: Typed, **how: Any) -> Any:
        return resolve_command(command, env=self._spec.env, **how)

    def _inside(self) -> Task:
        if self._session is None or self._task is None:
            hint = "write `with Sandbox(...) as box:` and use it inside"
            raise UsageError(what="box", value=self.id, reason="is not entered", hint=hint)
        if self._entered_by != os.getpid():
            hint = "a forked child enters a Sandbox of its own"
            reason = "was entered by another process"
            raise UsageError(what="box", value=self.id, reason=reason, hint=hint)
        return self._task

    def _entered(self) -> Instance:
        """Give the running instance, starting it at the first use."""
        return self._opening.instance(self._inside())

    def _watched(self) -> tuple[Instance, Watch]:
        return self._opening.watched(self._inside())

    def _stop(self) -> None:
        with self._guard:
            processes, self._processes = self._processes, []
        for process in processes:
            process.kill()
        self._opening.stop()
        for process in processes:
            process.join()

    def _forget(self, process: Process) -> None:
        with self._guard:
            if process in self._processes:
                self._processes.remove(process)

    def _tell(self, event: str, facts: Mapping[str, Any]) -> None:
        for wanted, callback in list(self._callbacks):
            if wanted == event:
                callback(facts)
