"""One tree of errors: the second level says what the caller can do, the leaves say what happened.

Every error has `code` (a stable string), `hint` (what to do about it), `retryable`, and its facts
as keyword fields, which survive pickling. Knows nothing of sandboxes; everything above raises from
here.
"""

from __future__ import annotations

import pickle
from typing import Any, ClassVar, Self, final

_SHOWN_LENGTH_MAX = 2_000
_PATHS_SHOWN_MAX = 20


class SandboxError(Exception):
    """Root of everything this library raises on purpose.

    Attributes:
        code: stable, machine-readable name of the error.
        hint: one sentence on what to do about it.
        retryable: whether the same call may succeed later, unchanged.
        fields: the facts, by name; each is an attribute too.
    """

    code: ClassVar[str] = "sandbox_error"
    hint: str = ""
    retryable: ClassVar[bool] = False
    message: ClassVar[str] = "{reason}"

    def __init__(self, *, hint: str | None = None, **fields: Any) -> None:
        self.fields = fields
        if hint is not None:
            self.hint = hint
        for name, value in fields.items():
            setattr(self, name, value)
        super().__init__()

    def __str__(self) -> str:
        # A reason may quote a program's lines; a newline anywhere else would fake a line of ours.
        shown = {name: _Shown(value, lines=name == "reason") for name, value in self.fields.items()}
        text = self.message.format_map(_Missing(shown))
        return f"{text}\n  hint: {_escaped(self.hint)}" if self.hint else text

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {name: _portable(value) for name, value in self.fields.items()}
        return _rebuild, (type(self), fields, self.hint)


class _Missing(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return f"<{key}>"


class _Shown(str):
    """A fact as text; `!r` shows what the caller wrote, quoted if it was text."""

    __slots__ = ("_quoted",)
    _quoted: str

    def __new__(cls, value: object, *, lines: bool = False) -> Self:
        made = super().__new__(cls, _shown(value, lines=lines))
        made._quoted = _quoted(value)
        return made

    def __repr__(self) -> str:
        return self._quoted


def _rebuild(kind: type[SandboxError], fields: dict[str, Any], hint: str) -> SandboxError:
    return kind(hint=hint, **fields)


def _portable(value: Any) -> Any:
    """Give what can cross to another process: the value, or its text if it cannot."""
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001 - whatever a caller's own type does when it is pickled
        return _quoted(value)
    return value


def _shown(value: object, *, lines: bool = True) -> str:
    """Escape control characters: names from inside a sandbox must not move the reader's cursor."""
    return _escaped(value if isinstance(value, str) else _quoted(value), lines=lines)


def _quoted(value: object) -> str:
    try:
        text = repr(value) if isinstance(value, str | bytes) else str(value)
    except Exception:  # noqa: BLE001 - an int of 5,000 digits, or a caller's own type
        text = f"<{type(value).__name__}>"
    return _escaped(text)


def _escaped(text: str, *, lines: bool = False) -> str:
    if len(text) > _SHOWN_LENGTH_MAX:
        text = f"{text[:_SHOWN_LENGTH_MAX]}..."
    return "".join(c if c.isprintable() or (lines and c == "\n") else repr(c)[1:-1] for c in text)


class UsageError(SandboxError, ValueError):
    """The call itself is wrong; change it. Fields: what, value, reason."""

    code = "usage"
    hint = "change what is passed; help() of the function says what it takes"
    message = "{what}: {reason} (got {value!r})"


class NotFound(SandboxError, LookupError):
    """What was named does not exist, or the name means more than one thing."""

    code = "not_found"
    hint = "look at what there is, and name one of those"


class Conflict(SandboxError):
    """The state of things contradicts the call."""

    code = "conflict"
    hint = "look at the state of things and decide which side is right"


class Denied(SandboxError, PermissionError):
    """Refused for safety or for lack of permission. Fields: path, reason."""

    code = "denied"
    hint = "use another path, or change who may use this one"
    message = "{path}: {reason}"

    def __str__(self) -> str:
        # PermissionError would print its own two-argument form.
        return SandboxError.__str__(self)


class LimitExceeded(SandboxError):
    """A limit or a deadline was reached."""

    code = "limit_exceeded"
    hint = "raise the limit, or use less"


class Unavailable(SandboxError):
    """Something outside is missing, blocked or gone."""

    code = "unavailable"
    hint = "`python -m sandboxsdk doctor` says what works here, and the remedy for what does not"


class Corrupt(SandboxError):
    """Stored bytes are not what was stored. Fields: path, reason, line (of a journal), digest."""

    code = "corrupt"
    hint = "put this file back from a backup, or move its directory out of the home"
    message = "{path}: {reason}"


@final
class WorkspaceInvalid(UsageError):
    """This directory cannot be a workspace. Fields: path, reason."""

    code = "workspace_invalid"
    message = "workspace {path}: {reason}"


@final
class TaskNotFound(NotFound):
    """No task has this id, name or id prefix. Fields: wanted, home."""

    code = "task_not_found"
    hint = "list the tasks of this home with `python -m sandboxsdk ls`"
    message = "no task {wanted} in {home}"


@final
class AmbiguousId(NotFound):
    """A name or prefix fits several tasks. Fields: wanted, matches (ids)."""

    code = "ambiguous_id"
    hint = "name one by its id, or by more characters of it"
    message = "{wanted} fits several tasks: {matches}"


@final
class CheckpointNotFound(NotFound):
    """No checkpoint of this task has this id, tag or name. Fields: wanted, task."""

    code = "checkpoint_not_found"
    hint = "see what there is with task.checkpoints() or `python -m sandboxsdk log TASK`"
    message = "no checkpoint {wanted} in task {task}"


@final
class FileMissing(NotFound, FileNotFoundError):
    """A path of the workspace does not exist. Fields: path."""

    code = "file_missing"
    hint = "look at what there is: files.list() of a box, files() of a checkpoint"
    message = "{path}: no such file or directory"

    def __str__(self) -> str:
        return SandboxError.__str__(self)


@final
class TaskLocked(Conflict):
    """Another process holds the task. Fields: task, holder, since."""

    code = "task_locked"
    retryable = True
    hint = (
        "wait for it, pass another timeout= to attach() or delete(), or end that process: "
        "its hold ends with it"
    )
    message = "task {task} is held by {holder} since {since}"


_ENDINGS = {
    "oom": "by its memory limit (reason: oom)",
    "disk": "by its disk limit (reason: disk)",
    "pids": "by its limit of processes (reason: pids)",
    "timeout": "by its time limit (reason: timeout)",
    "killed": "by a kill (reason: killed)",
    "lost": "with its box (reason: lost)",
}


@final
class CommandFailed(Conflict):
    """A command with check=True did not exit with 0. Fields: command, result."""

    code = "command_failed"
    hint = "look at .result, or leave out check=True to get the result instead"

    def __str__(self) -> str:
        result = self.fields["result"]
        how = _ENDINGS.get(result.reason, f"with exit code {result.exit_code}")
        if result.reason == "signal":
            how = f"by signal {result.signal}"
        tail = result.stderr[-2000:].strip() or result.stdout[-2000:].strip()
        head = f"command {_shown(self.fields['command'])} ended {how}"
        text = f"{head}\n{_shown(tail)}" if tail else head
        return f"{text}\n  hint: {_escaped(self.hint)}" if self.hint else text


@final
class BoxBusy(Conflict):
    """Processes of the box are running, and may not while this is done. Fields: box, what."""

    code = "box_busy"
    retryable = True
    hint = "end them first (process.kill(), or leave their blocks), or pass kill=True"
    message = "box {box}: {what} while processes are running in it"


@final
class FileConflict(Conflict, FileExistsError):
    """A path exists, or is of another type than the call needs. Fields: path, reason."""

    code = "file_conflict"
    hint = "remove it first, or use another path"
    message = "{path}: {reason}"

    def __str__(self) -> str:
        return SandboxError.__str__(self)


@final
class ApplyConflict(Conflict):
    """What a task changed, the directory has otherwise by now; nothing was written. Fields: to,
    paths.
    """

    code = "apply_conflict"
    hint = (
        "merge these by hand (task.patch() shows the changes), or pass force=True: what it replaces"
        " is kept as a checkpoint"
    )

    def __str__(self) -> str:
        paths = [_shown(path, lines=False) for path in self.fields.get("paths", ())]
        where = _shown(self.fields.get("to", "the directory"), lines=False)
        text = f"{where} was changed since at {len(paths):,} of the paths that the task changed: "
        text += ", ".join(paths[:_PATHS_SHOWN_MAX])
        if len(paths) > _PATHS_SHOWN_MAX:
            text += f" and {len(paths) - _PATHS_SHOWN_MAX:,} more"
        return f"{text}\n  hint: {_escaped(self.hint)}" if self.hint else text


@final
class TransitionRefused(Conflict):
    """A task cannot go from its state to that one. Fields: task, status, wanted."""

    code = "transition_refused"
    hint = "see task.status; a task that has ended stays so"
    message = "task {task} is {status} and cannot become {wanted}"


@final
class ExecTimeout(LimitExceeded, TimeoutError):
    """A command ran into its time limit and was killed. Fields: command, timeout, result."""

    code = "exec_timeout"
    hint = (
        "pass a longer timeout=, or use spawn() for what has no end; .result has the output so far"
    )
    message = "command {command} was killed after {timeout} s, with everything it had started"

    def __str__(self) -> str:
        return SandboxError.__str__(self)


@final
class WaitTimeout(LimitExceeded, TimeoutError):
    """A wait for a process did not end in time; the process goes on. Fields: what, timeout."""

    code = "wait_timeout"
    retryable = True
    hint = "wait again with a longer timeout, or kill() it"
    message = "{what}: not within {timeout} s"

    def __str__(self) -> str:
        return SandboxError.__str__(self)


@final
class HostFull(LimitExceeded):
    """The host's disk (or quota) is full. Fields: path, reason."""

    code = "host_full"
    retryable = True
    hint = "free space on that file system, or move the home with SANDBOXSDK_HOME; nothing was lost"
    message = "{path}: {reason}"


@final
class ExecStartError(UsageError):
    """A command could not be started at all. Fields: command, reason."""

    code = "exec_start"
    hint = "the program must exist in the image, be executable, and its cwd must exist"
    message = "command {command} did not start: {reason}"


@final
class CapabilityError(Unavailable):
    """This runtime cannot do or enforce what was asked. Fields: wanted, reason."""

    code = "capability"
    message = "{wanted}: {reason}"


@final
class RuntimeUnavailable(Unavailable):
    """No runtime works on this host. Fields: runtime, reason."""

    code = "runtime_unavailable"
    message = "runtime {runtime} does not work here: {reason}"


@final
class BoxLost(Unavailable):
    """The box's processes are gone without being asked to end. Fields: box, reason."""

    code = "box_lost"
    retryable = True
    hint = "files of a task are kept; enter the task again to go on"
    message = "box {box} is lost: {reason}"


@final
class HostRefused(Unavailable):
    """The host refused an operation. Fields: what, path, reason."""

    code = "host_refused"
    hint = "look at permissions and at the state of that file system, then try again"
    message = "{what} {path}: {reason}"
