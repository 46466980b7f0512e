"""The task: a description, a workspace and settings that outlive processes.

Its journal is its truth.
"""

from __future__ import annotations

import builtins
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from sandboxsdk import clock, ids
from sandboxsdk.checkpoint import Asked, Checkpoint, History, apply, undo
from sandboxsdk.errors import (
    CapabilityError,
    SandboxError,
    TransitionRefused,
    UsageError,
)
from sandboxsdk.home import Home
from sandboxsdk.journal import FILE, Entry, Journal
from sandboxsdk.model import (
    ApplyReport,
    Beginning,
    Change,
    Image,
    Limits,
    Mount,
    Network,
    Secret,
    Spec,
    Status,
    TaskRecord,
    Workspace,
    check_allow,
    check_description,
    check_env,
    check_labels,
    check_many,
    check_name,
    check_path,
    may_become,
)
from sandboxsdk.snapshot import Moved
from sandboxsdk.workspace import (
    OpenWorkspace,
    Target,
    note_base_names,
    open_workspace,
    read_noted_names,
    resolve,
    settle,
)

from . import history, lease
from .arguments import check_home, check_parent
from .finding import find_task, list_tasks
from .forking import check_forks, fork_records
from .making import Hold, begin_journal, bring_into_being
from .moving import export_task, import_task
from .running import running_on, still
from .session import Session, check_timeout

# How long a call that only looks waits for another process.
_LOOK_SECONDS = 30.0


class Task:
    """What lasts. Make one with `create`, find one with `open`, not with the constructor."""

    def __init__(
        self,
        record: TaskRecord,
        *,
        home: Home,
        throwaway: bool = False,
        secrets: Sequence[Secret] = (),
        hold: Hold | None = None,
    ) -> None:
        self._record = record
        self._home = home
        self._throwaway = throwaway
        self._secrets = {secret.name: secret for secret in secrets}
        self._hold = hold

    @classmethod
    def create(
        cls,
        description: str,
        *,
        workspace: str | os.PathLike[str] | Workspace | None = None,
        name: str | None = None,
        image: Image | None = None,
        limits: Limits | None = None,
        network: Network | None = None,
        secrets: Sequence[Secret] = (),
        env: Mapping[str, str] | None = None,
        mounts: Sequence[Mount] = (),
        runtime: str = "auto",
        lock: Literal["exclusive", "collaborative"] = "exclusive",
        labels: Mapping[str, str] | None = None,
        template: str | None = None,
        parent: Task | str | None = None,
        home: Home | None = None,
    ) -> Task:
        """Make a task; nothing is started, and the workspace is not read.

        Args:
            description: what is to be done, in words.
            workspace: a directory to work on in private, a `Workspace`, or None for an empty one.
            name: a short name to open it by; need not be unique.

        Raises:
            UsageError: a name, label, limit or runtime that cannot be.
            WorkspaceInvalid: the directory does not exist, is a file, is `/`, holds or lies in the
                home.
            HostFull, HostRefused: the home cannot be written.
        """
        spec = Spec(runtime=runtime).overridden(  # type: ignore[arg-type]  # Spec checks it
            image=image,
            limits=limits,
            network=network,
            secrets=check_many(secrets, Secret, what="secrets"),
            env=check_env(env),
            mounts=check_many(mounts, Mount, what="mounts"),
        )
        if template is not None:
            reason = "this version has no templates"
            raise CapabilityError(wanted="template", reason=reason, hint="leave template out")
        if lock == "collaborative":
            reason, hint = "this version has exclusive tasks only", "leave lock out"
            raise CapabilityError(wanted="lock='collaborative'", reason=reason, hint=hint)
        if lock != "exclusive":
            hint = 'the one that this version has is "exclusive"'
            raise UsageError(what="lock", value=lock, reason="is unknown", hint=hint)
        if not isinstance(workspace, Workspace):
            workspace = Workspace.private(workspace)
        return make(
            description,
            home=check_home(home),
            workspace=workspace,
            spec=spec,
            name=name,
            labels=labels,
            parent=parent.id if isinstance(parent, Task) else parent,
        )

    @classmethod
    def open(cls, id_or_name_or_unique_prefix: str, *, home: Home | None = None) -> Task:
        """Find a task by its id, its name, or the beginning of its id.

        Raises:
            TaskNotFound: there is none.
            AmbiguousId: there are several.
            Corrupt: its journal is damaged.
        """
        home = check_home(home)
        return cls(find_task(home, id_or_name_or_unique_prefix), home=home)

    @classmethod
    def list(
        cls,
        *,
        status: Status | None = None,
        labels: Mapping[str, str] | None = None,
        parent: str | None = None,
        text: str | None = None,
        limit: int = 100,
        offset: int = 0,
        home: Home | None = None,
    ) -> list[TaskRecord]:
        """Give the records of tasks, newest first; each filter that is given must fit.

        Args:
            text: part of the name or description, in any case.

        Raises:
            UsageError: a filter that cannot be.
        """
        return list_tasks(
            check_home(home),
            status=status,
            labels=labels,
            parent=parent,
            text=text,
            limit=limit,
            offset=offset,
        )

    @property
    def id(self) -> str:
        return self._record.id

    @property
    def name(self) -> str | None:
        return self._record.name

    @property
    def description(self) -> str:
        return self._record.description

    @property
    def status(self) -> Status:
        return self.record.status

    @property
    def labels(self) -> Mapping[str, str]:
        return self._record.labels

    @property
    def created_at(self) -> int:
        """UTC nanoseconds."""
        return self._record.created_at

    @property
    def parent(self) -> str | None:
        return self._record.parent

    @property
    def record(self) -> TaskRecord:
        """The task as its journal tells it now.

        Raises:
            TaskNotFound: it was deleted.
        """
        self._record = history.read(self.directory)
        return self._record

    @property
    def home(self) -> Home:
        return self._home

    @property
    def throwaway(self) -> bool:
        """Whether it is deleted when its box closes."""
        return self._throwaway

    def __repr__(self) -> str:
        return f"Task({self.id!r}, {self.description[:60]!r})"

    def attach(
        self,
        agent: str | None = None,
        model: str | None = None,
        session: str | None = None,
        *,
        timeout: float = 30.0,
    ) -> Session:
        """Hold the task for this process; a context manager. Contexts nest, from any thread.

        Args:
            timeout: seconds to wait for another process that holds it.

        Raises (on entering):
            TaskLocked: another process still holds it.
            TaskNotFound: it was deleted.
            Denied: the home is open to be read only.
        """
        self._home.check_writable()
        return Session(
            self.directory, self.id, agent=agent, model=model, session=session, timeout=timeout
        )

    def checkpoints(self) -> builtins.list[Checkpoint]:
        """Give the task's checkpoints, newest first; a tree through `.parent`.

        Raises:
            TaskNotFound: it was deleted.
            Corrupt: its journal is damaged.
        """
        return self.checkpoint_history().list()

    def checkpoint_by(self, id_or_name: str) -> Checkpoint:
        """Give the checkpoint with this id, else tag, else the newest with this name, else the only
        one whose id begins so.

        Raises:
            CheckpointNotFound: there is none.
            AmbiguousId: several ids begin so.
        """
        return self.checkpoint_history().find(id_or_name)

    def diff(
        self, a: Checkpoint | str | None = None, b: Checkpoint | str | None = None
    ) -> builtins.list[Change]:
        """Tell what changed from a to b.

        Args:
            a: a checkpoint, or its id, tag or name; None is the task's beginning.
            b: the same; None is now.

        Raises:
            CheckpointNotFound, AmbiguousId: there is no such checkpoint, or more than one.
            TaskLocked: "now" is asked for, and another process works on the task.
            CapabilityError: what a direct workspace held before its first checkpoint, nobody knows.
            Conflict: "now" is asked for in the middle of a restore that a crash has interrupted.
        """
        checkpoints = self.checkpoint_history()
        if b is not None:
            return [*checkpoints.diff(a, b)]
        with self._looking():
            return [*checkpoints.diff(a, None)]

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        """Hold the task without a session: looking is not working, and leaves no trace."""
        held = lease.lease_of(self.directory, self.id)
        user = Hold()
        try:
            held.take(user, _LOOK_SECONDS, note=not self._home.read_only)
            yield
        finally:
            held.give_back(user)

    def patch(self, a: Checkpoint | str | None = None, b: Checkpoint | str | None = None) -> str:
        """Give what changed from a to b as a patch that `git apply` accepts, and `patch -p1` too
        when nothing binary changed and no file became a directory; "" if nothing changed.

        What a patch cannot carry (empty directories, FIFOs, most mode bits) is named in its first
        lines, and is in `diff`.

        Args:
            a, b: as for `diff`.

        Raises:
            As `diff`.
        """
        with self._looking():
            return self.checkpoint_history().patch(a, b)

    def apply(
        self,
        *,
        to: str | os.PathLike[str] | None = None,
        force: bool = False,
        allow: Iterable[str] = (),
    ) -> ApplyReport:
        """Write what the task changed back to the directory that it works on.

        All of it or, if the directory has something else by now at a path that the task changed,
        nothing. What is replaced is kept as a checkpoint, and `undo()` of the report takes it back.
        If it is interrupted, the next call ends it.

        Args:
            to: another directory, which has what the task began with.
            force: override conflicts; what is replaced is kept like everything else.
            allow: paths to let through though they make the directory run code on this machine,
                such as ".vscode" or ".git/hooks"; else they are held back and listed.

        Raises:
            ApplyConflict: the directory was changed since at paths that the task changed.
            UsageError: there is no directory to apply to, or `allow` is no list of paths.
            WorkspaceInvalid: the directory is gone, or none any more.
            Conflict: files changed while they were read, or a restore was interrupted.
            TaskLocked: another process works on the task.
            Denied, HostFull, HostRefused: the directory or the home cannot be written.
        """
        self._home.check_writable()
        asked = Asked(force=force, allow=check_allow(allow))
        target = self._target(to)
        with self._looking():
            report = apply(self.checkpoint_history(), target, asked, self._moved)
        return self._undoable(report, target)

    def _undoable(self, report: ApplyReport, target: Target) -> ApplyReport:
        def undoing() -> ApplyReport:
            if report.saved is None:
                return report  # Nothing was written.
            with self._looking():
                undone = undo(self.checkpoint_history(), target, report.id)
            return self._undoable(undone, target)

        return msgspec.structs.replace(report, undoing=undoing)

    def _target(self, to: str | os.PathLike[str] | None) -> Target:
        """Give the directory that changes are applied to."""
        workspace = self._record.workspace
        path = self._record.target
        if to is not None:
            path = check_path(to, what="to")
        elif workspace.mode == "private":
            path = path or workspace.path
        if path is None:
            direct = workspace.mode == "direct"
            reason = (
                "the task works on its directory itself, which has its changes already"
                if direct
                else "the task began with no directory to write back to"
            )
            hint = "name a directory: task.apply(to=...)"
            raise UsageError(what="to", value=to, reason=reason, hint=hint)
        wanted = Workspace(mode="direct", path=path, exclude=workspace.exclude)
        return Target(resolve(wanted, home=self._home.path), scans=self._home.scans)

    def _moved(self, base: Beginning, had: Callable[[bytes], bool]) -> Moved:
        """Say what the user changed between the task's creation and the capture of its base."""
        return Moved(base.moved, read_noted_names(self.directory), had)

    def fork(
        self,
        n: int = 1,
        *,
        at: Checkpoint | str | None = None,
        names: Sequence[str] | None = None,
    ) -> builtins.list[Task]:
        """Make tasks that begin with the files which this one has now, or had at a checkpoint.

        They last, go their own ways, and have the settings of this one. Checkpoints can be restored
        from one to the other.

        Args:
            n: how many.
            at: a checkpoint, or its id, tag or name; None is now.
            names: one for each.

        Raises:
            CheckpointNotFound, AmbiguousId: there is no such checkpoint, or more than one.
            UsageError: no number of forks, or names that do not fit it.
            TaskLocked: another process works on the task.
            HostFull, HostRefused: the home cannot be written; no fork was made.
        """
        return self.forked(check_forks(n, names), spec=self.spec, at=at, throwaway=False)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the task, its checkpoints and its files as they are now into one new file.

        Secret values are not in it. `Task.import_` reads it and checks every bit.

        Raises:
            FileConflict: there is something at this path.
            FileMissing: the directory that it lies in is not there.
            UsageError: it lies in the home.
            TaskLocked: another process works on the task.
            LimitExceeded: the task's history is too long for one file.
            HostFull, HostRefused, Denied: it cannot be written; nothing is left of it.
        """
        self._home.check_writable()
        wanted = check_path(path, what="path")
        with self._looking():
            export_task(self.checkpoint_history(), wanted, os.path.join(self.directory, FILE))

    @classmethod
    def import_(cls, path: str | os.PathLike[str], *, home: Home | None = None) -> Task:
        """Bring a task that was exported into a home, with its id and its checkpoints.

        Its files lie in the home from then on; `apply` needs `to=`. Mounts, image, runtime, network
        and secrets are not taken over: pass them to its `Sandbox`.

        Raises:
            Conflict: the task is here already.
            Corrupt: the file is truncated, damaged or forged; nothing was imported.
            Unavailable: a newer version wrote it.
            Denied, HostFull, HostRefused: it cannot be read, or the home not written.
        """
        home = check_home(home)
        return cls(import_task(check_path(path, what="path"), home), home=home)

    def complete(self, summary: str = "") -> None:
        """Say that the task is done.

        Raises:
            TransitionRefused: it has ended already.
            TaskLocked: another process works on it.
        """
        self._become("completed", summary)

    def fail(self, reason: str = "") -> None:
        """Say that the task is given up; raises as `complete`."""
        self._become("failed", reason)

    def cancel(self, reason: str = "") -> None:
        """Say that the task is not wanted any more; raises as `complete`."""
        self._become("cancelled", reason)

    def _become(self, kind: str, why: str) -> None:
        self._home.check_writable()
        said = {"why": check_description(why)} if why else {}
        journal = Journal(os.path.join(self.directory, FILE))
        with self._looking(), journal.alone():
            status = self.record.status
            if not may_become(status, kind):
                raise TransitionRefused(task=self.id, status=status, wanted=kind)
            journal.append(kind, said, sync=True)

    def history(self) -> builtins.list[Entry]:
        """Give what happened to the task, oldest first.

        Raises:
            TaskNotFound: it was deleted.
            Corrupt: its journal is damaged.
        """
        return history.entries(self.directory)

    def delete(self, *, timeout: float = 30.0) -> None:
        """Delete the task and what it changed; the user's directory stays as it is.

        Raises:
            TaskLocked: another process works on it.
            Denied: this process does, or the home is open to be read only.
            TaskNotFound: it is deleted already.
        """
        check_timeout(timeout)
        self._home.check_writable()
        held = lease.lease_of(self.directory, self.id)
        user = Hold()
        try:
            held.take(user, timeout, alone=True)
            self._home.discard(self.directory)
            lease.forget(self.directory)
        finally:
            held.give_back(user)

    # What follows is for the rooms above, not for users.

    @property
    def directory(self) -> str:
        return self._home.directory(self.id, throwaway=self._throwaway)

    @property
    def spec(self) -> Spec:
        """The stored settings, with the secret values that this process was given."""
        stored = self._record.spec
        secrets = tuple(self._secrets.get(secret.name, secret) for secret in stored.secrets)
        return msgspec.structs.replace(stored, secrets=secrets)

    def workspace(self) -> OpenWorkspace:
        return open_workspace(
            self._record.workspace,
            directory=self.directory,
            scans=self._home.scans,
            layers=self._home.layers,
            since=None if self._record.workspace.path is None else self._record.created_at,
            forked=self._record.family is not None,
            chosen=self._record.chosen,
        )

    def checkpoint_history(self) -> History:
        return History(
            home=self._home,
            directory=self.directory,
            task=self.id,
            workspace=self.workspace,
            hold=self._looking,
            family=self._record.family or self.id,
            relatives=self._relatives,
            still=lambda: still(self.directory),
            boxes=lambda: running_on(self.directory),
        )

    def _relatives(self) -> Iterator[History]:
        """Give the histories of the tasks that were forked from the same one."""
        family = self._record.family or self.id
        for throwaway in (False, True):
            for task in self._home.task_ids(throwaway=throwaway):
                if task == self.id:
                    continue
                with contextlib.suppress(SandboxError):
                    record = history.read(self._home.directory(task, throwaway=throwaway))
                    if family in (record.family, record.id):
                        yield Task(
                            record, home=self._home, throwaway=throwaway
                        ).checkpoint_history()

    def forked(
        self,
        names: builtins.list[str | None],
        *,
        spec: Spec,
        at: Checkpoint | str | None,
        throwaway: bool,
    ) -> builtins.list[Task]:
        """Make a fork for each name, with these settings."""
        self._home.check_writable()
        with self._looking():
            made = fork_records(
                self.record,
                self.checkpoint_history(),
                self._home,
                spec=spec,
                at=at,
                names=names,
                throwaway=throwaway,
            )
        return [
            Task(record, home=self._home, throwaway=throwaway, secrets=spec.secrets, hold=hold)
            for record, hold in made
        ]

    def discard(self) -> None:
        """Delete a throwaway task, which this process has held since it was made.

        In a child that was forked since, nothing: it is the parent's.
        """
        held = lease.lease_of(self.directory, self.id)
        if not held.held:
            return
        try:
            self._home.discard(self.directory)
        finally:
            held.give_back(self._hold)
            lease.forget(self.directory)

    def lease_descriptor(self) -> int:
        return lease.lease_of(self.directory, self.id).descriptor


def make(
    description: str,
    *,
    home: Home,
    workspace: Workspace,
    spec: Spec,
    name: str | None = None,
    labels: Mapping[str, str] | None = None,
    parent: str | None = None,
    throwaway: bool = False,
) -> Task:
    """Check everything, then bring the task into being by one rename; a crash before leaves only
    litter.
    """
    home.check_writable()
    workspace, chosen = settle(workspace, home=home.path)
    record = TaskRecord(
        id=ids.new_id(),
        description=check_description(description),
        name=None if name is None else check_name(name, what="name"),
        created_at=clock.now_ns(),
        labels=check_labels(labels),
        parent=check_parent(parent, home),
        workspace=workspace,
        chosen=chosen,
        spec=spec.storable(),
    )
    private = record.workspace.mode == "private" and record.workspace.path is not None

    def begin(directory: str) -> None:
        if private:
            note_base_names(record.workspace, directory)
        begin_journal(directory, record, sync=not throwaway)

    hold = bring_into_being(record.id, home, throwaway=throwaway, begin=begin)
    if private:
        # Whatever anybody changes in the directory from now on is younger than the task.
        clock.pass_tick(record.created_at)
    return Task(record, home=home, throwaway=throwaway, secrets=spec.secrets, hold=hold)
