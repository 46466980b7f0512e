"""Frozen structs: what is stored and what is passed between rooms.

Pure: nothing here opens a file, asks the time or starts anything. A value that exists is valid.
"""

from .records import SCHEMA_VERSION, HolderRecord, Status, TaskRecord
from .results import (
    Change,
    ChangeKind,
    Description,
    Enforcement,
    ExecResult,
    FileStat,
    Finding,
    LimitState,
    Reason,
    Report,
    Usage,
)
from .settings import (
    Image,
    Limits,
    Mount,
    Network,
    Secret,
    Spec,
    Workspace,
    check_env,
    check_many,
    check_name,
    check_one,
    check_path,
)
from .view import Place, View

__all__ = [
    "SCHEMA_VERSION",
    "Change",
    "ChangeKind",
    "Description",
    "Enforcement",
    "ExecResult",
    "FileStat",
    "Finding",
    "HolderRecord",
    "Image",
    "LimitState",
    "Limits",
    "Mount",
    "Network",
    "Place",
    "Reason",
    "Report",
    "Secret",
    "Spec",
    "Status",
    "TaskRecord",
    "Usage",
    "View",
    "Workspace",
    "check_env",
    "check_many",
    "check_name",
    "check_one",
    "check_path",
]
