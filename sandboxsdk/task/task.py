"""The task: a description, a workspace and settings that outlive processes.

Its journal is its truth.
"""

from __future__ import annotations

import builtins
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from sandboxsdk import clock, ids
from sandboxsdk.checkpoint import Checkpoint, History
from sandboxsdk.errors import (
    AmbiguousId,
    CapabilityError,
    TaskNotFound,
    UsageError,
)
from sandboxsdk.home import Home
from sandboxsdk.journal import Entry
from sandboxsdk.model import (
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
    check_description,
    check_env,
    check_labels,
    check_many,
    check_name,
)
from sandboxsdk.workspace import OpenWorkspace, open_workspace, resolve

from . import history, lease
from .arguments import Filter, check_home, check_parent
from .making import Hold, bring_into_being, read_all
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
        wanted = id_or_name_or_unique_prefix
        if not isinstance(wanted, str) or not wanted:
            hint = "list the tasks of this home with Task.list() or `python -m sandboxsdk ls`"
            reason = "is not an id, a name or a prefix"
            raise UsageError(what="task", value=wanted, reason=reason, hint=hint)
        if ids.is_id(wanted) and os.path.isdir(home.directory(wanted)):
            return cls(history.read(home.directory(wanted)), home=home)
        known = home.task_ids()
        matches = [record for record in read_all(home, known) if record.name == wanted]
        if not matches:
            matches = [
                history.read(home.directory(task)) for task in known if task.startswith(wanted)
            ]
        if not matches:
            raise TaskNotFound(wanted=wanted, home=home.path)
        if len(matches) > 1:
            raise AmbiguousId(wanted=wanted, matches=", ".join(r.id for r in matches))
        return cls(matches[0], home=home)

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
        home = check_home(home)
        wanted = Filter(status=status, labels=labels, parent=parent, text=text)
        for what, number in (("limit", limit), ("offset", offset)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                hint = "pass 0 or more"
                raise UsageError(what=what, value=number, reason="is not a number", hint=hint)
        found = [record for record in read_all(home, home.task_ids()) if wanted.fits(record)]
        found.sort(key=lambda record: (-record.created_at, record.id))
        return found[offset : offset + limit]

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
        scans = self._home.scans
        return open_workspace(self._record.workspace, directory=self.directory, scans=scans)

    def checkpoint_history(self) -> History:
        return History(
            home=self._home,
            directory=self.directory,
            task=self.id,
            workspace=self.workspace,
            hold=self._looking,
        )

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
    record = TaskRecord(
        id=ids.new_id(),
        description=check_description(description),
        name=None if name is None else check_name(name, what="name"),
        created_at=clock.now_ns(),
        labels=check_labels(labels),
        parent=check_parent(parent, home),
        workspace=resolve(workspace, home=home.path),
        spec=spec.storable(),
    )
    hold = bring_into_being(record, home, throwaway=throwaway)
    return Task(record, home=home, throwaway=throwaway, secrets=spec.secrets, hold=hold)
