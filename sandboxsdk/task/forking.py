"""Tasks that begin with the files of another one: forks."""

from __future__ import annotations

import msgspec

from sandboxsdk import clock, ids
from sandboxsdk.checkpoint import Checkpoint, History
from sandboxsdk.codec import to_builtins
from sandboxsdk.errors import UsageError
from sandboxsdk.home import Home
from sandboxsdk.model import (
    BASE,
    PLACED,
    Beginning,
    Restoring,
    Spec,
    TaskRecord,
    Workspace,
    check_name,
)

from .making import Hold, begin_journal, bring_into_being

FORKS_MAX = 10_000


def fork_records(
    source: TaskRecord,
    history: History,
    home: Home,
    *,
    spec: Spec,
    at: Checkpoint | str | None,
    names: list[str | None],
    throwaway: bool,
) -> list[tuple[TaskRecord, Hold]]:
    """Make tasks that begin with the files which a task has now, or had at a checkpoint.

    Nothing is copied: a fork's journal names the tree that its files are to be, and its first use
    makes them so.

    Raises:
        CheckpointNotFound, AmbiguousId, UsageError: as `History.find`.
        Conflict: a restore of the source was interrupted.
        HostFull, HostRefused: the home cannot be written; no fork was made.
    """
    made: list[tuple[TaskRecord, Hold]] = []
    with history.alone(), history.store.writing() as writer:
        points = history.points()
        if at is not None:
            found = history.find(at, points)
            plan = Restoring(tree=found.tree, checkpoint=found.id, uid=found.record.uid)
            base = points.base
            present = None
        else:
            history.check_settled(points)
            present = history.present(writer, points)
            tree = present.captured.tree.hex()
            plan = Restoring(tree=tree, checkpoint=points.head, uid=present.uid)
            base = present.base
        workspace, target = source.workspace, source.target
        if workspace.mode == "direct":
            # What works on the directory itself goes on there: a fork has files of its own.
            target = workspace.path
            workspace = Workspace(mode="private", kind="copy", exclude=workspace.exclude)
            base = Beginning(tree=plan.tree)
        assert base is not None, "a checkpoint is there only with what it began with"
        applied = points.applied.get(source.workspace.path or "")
        if applied is not None and workspace == source.workspace:
            base = msgspec.structs.replace(base, bottom=applied.after)
        placed = msgspec.structs.replace(plan, foreign=True)
        begins = [(BASE, to_builtins(base)), (PLACED, to_builtins(placed))]
        try:
            for name in names:
                record = TaskRecord(
                    id=ids.new_id(),
                    description=source.description,
                    name=name,
                    created_at=clock.now_ns(),
                    labels=source.labels,
                    parent=source.id,
                    family=source.family or source.id,
                    target=target,
                    workspace=workspace,
                    chosen=source.chosen,
                    spec=spec.storable(),
                )

                def begin(directory: str, record: TaskRecord = record) -> None:
                    begin_journal(directory, record, begins, sync=not throwaway)

                hold = bring_into_being(record.id, home, throwaway=throwaway, begin=begin)
                made.append((record, hold))
        except BaseException:
            for record, _ in made:
                home.discard(home.directory(record.id, throwaway=throwaway))
            raise
    if present is not None:
        present.remember()
    return made


def check_forks(n: object, names: object) -> list[str | None]:
    """Give a name, or None, for each fork that is asked for.

    Raises:
        UsageError: no number of forks, or names that do not fit it.
    """
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= FORKS_MAX:
        hint = f"pass 1 to {FORKS_MAX:,}"
        raise UsageError(what="n", value=n, reason="is no number of forks", hint=hint)
    if names is None:
        return [None] * n
    hint = "pass a list with one name for each fork"
    if isinstance(names, str | bytes) or not hasattr(names, "__iter__"):
        raise UsageError(what="names", value=names, reason="is no list", hint=hint)
    checked: list[str | None] = [check_name(name, what="name") for name in names]
    # Names alone say how many there are to be.
    if n not in (1, len(checked)) or not checked:
        raise UsageError(what="names", value=checked, reason=f"are not {n}", hint=hint)
    return checked
