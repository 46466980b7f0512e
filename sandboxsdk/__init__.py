"""An embedded sandbox: commands run on a private view of a directory, which is never written.

```python
from sandboxsdk import Sandbox, Task

task = Task.create("fix the login bug", workspace="~/code/app")
with Sandbox(task) as box:
    box.exec("echo fixed >> notes.txt", check=True)  # str: run by /bin/sh -c; list: run as it is
    for change in box.diff():  # what differs from the task's beginning
        print(change)
```

This module is for users only: nothing inside imports names from it. It is lazy (PEP 562): importing
it imports no dependency and nothing of the package, until a name is used.
"""

from __future__ import annotations

# Type checkers take this name for true; typing itself would cost milliseconds at each start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .errors import (
        AmbiguousId,
        ApplyConflict,
        BoxBusy,
        BoxLost,
        CapabilityError,
        CheckpointNotFound,
        CommandFailed,
        Conflict,
        Corrupt,
        Denied,
        ExecStartError,
        ExecTimeout,
        FileConflict,
        FileMissing,
        HostFull,
        HostRefused,
        LimitExceeded,
        NotFound,
        RuntimeUnavailable,
        SandboxError,
        TaskLocked,
        TaskNotFound,
        TransitionRefused,
        Unavailable,
        UsageError,
        WaitTimeout,
        WorkspaceInvalid,
    )
    from .home import Home
    from .model import (
        Change,
        ExecResult,
        Image,
        Limits,
        Mount,
        Network,
        Secret,
        Workspace,
    )
    from .sandbox import Process, Sandbox
    from .task import Task

    __version__: str

__all__ = [
    "AmbiguousId",
    "ApplyConflict",
    "BoxBusy",
    "BoxLost",
    "CapabilityError",
    "Change",
    "Checkpoint",
    "CheckpointNotFound",
    "CommandFailed",
    "Conflict",
    "Corrupt",
    "Denied",
    "ExecResult",
    "ExecStartError",
    "ExecTimeout",
    "FileConflict",
    "FileMissing",
    "Home",
    "HostFull",
    "HostRefused",
    "Image",
    "LimitExceeded",
    "Limits",
    "Mount",
    "Network",
    "NotFound",
    "Process",
    "RuntimeUnavailable",
    "Sandbox",
    "SandboxError",
    "Secret",
    "Task",
    "TaskLocked",
    "TaskNotFound",
    "TransitionRefused",
    "Unavailable",
    "UsageError",
    "WaitTimeout",
    "Workspace",
    "WorkspaceInvalid",
    "__version__",
]

# Where a public name lives; what is not listed here is an error.
_MODULES = {
    "Change": "model",
    "Checkpoint": "checkpoint",
    "ExecResult": "model",
    "Home": "home",
    "Image": "model",
    "Limits": "model",
    "Mount": "model",
    "Network": "model",
    "Process": "sandbox",
    "Sandbox": "sandbox",
    "Secret": "model",
    "Task": "task",
    "Workspace": "model",
}

# Hidden from type checkers: a `__getattr__` would make every misspelled name valid for them.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        if name == "__version__":
            import importlib.metadata

            try:
                value = importlib.metadata.version(__name__)
            except importlib.metadata.PackageNotFoundError:
                value = "0+uninstalled"  # a checkout on PYTHONPATH
        else:
            module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}")
            value = getattr(module, name)
        globals()[name] = value  # the next use finds it without coming here
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
