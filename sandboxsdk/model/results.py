"""What comes back: results of commands, changes of files, usage, reports. Pure and frozen."""

from __future__ import annotations

from typing import Literal

import msgspec

from sandboxsdk.units import format_size

Reason = Literal["exit", "signal", "timeout", "oom", "disk", "pids", "killed", "lost"]
Enforcement = Literal["enforced", "watched", "unsupported", "unlimited"]
ChangeKind = Literal["added", "removed", "modified", "type", "mode", "renamed"]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What was used; None where nobody counted, as for a command that was killed.

    Attributes:
        cpu_seconds: processor time of all processes.
        memory_bytes: in use now.
        memory_bytes_max: most at once; of a command on a host without cgroups, its largest process.
        pids: processes now.
        disk_bytes: added to the workspace.
        oom_kills: processes that the kernel killed for want of memory.
        source: who counted.
    """

    cpu_seconds: float | None = None
    memory_bytes: int | None = None
    memory_bytes_max: int | None = None
    pids: int | None = None
    disk_bytes: int | None = None
    oom_kills: int | None = None
    source: Literal["cgroup", "rusage", "watch"] = "rusage"


class ExecResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a command ended, and what it printed.

    Attributes:
        exit_code: None when there is none, because the command was killed or lost.
        reason: why it ended; "exit" is the ordinary way.
        signal: the signal's number where reason is "signal".
        duration: seconds.
        truncated: whether output beyond `max_output` was thrown away.
    """

    exit_code: int | None
    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""
    duration: float = 0.0
    reason: Reason = "exit"
    signal: int | None = None
    truncated: bool = False
    usage: Usage = Usage()

    @property
    def stdout(self) -> str:
        """UTF-8, with bytes that are not kept as surrogates (`surrogateescape`)."""
        return self.stdout_bytes.decode("utf-8", "surrogateescape")

    @property
    def stderr(self) -> str:
        """UTF-8, with bytes that are not kept as surrogates (`surrogateescape`)."""
        return self.stderr_bytes.decode("utf-8", "surrogateescape")

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One path that differs between two states.

    Every entry whose existence, type, content or mode differs is a change of its own, directories
    included; a directory in which only other entries changed is none. Times and owners are not
    compared.

    Attributes:
        kind: "type" is a change of type (a file became a link), "mode" one of permission bits
            alone, "renamed" a file that moved with exactly the same, non-empty content.
        path: relative to the workspace.
        size, old_size: bytes of a file's content, where there is a file.
        mode: permission bits now (before, for "removed").
        old_path: where a renamed file was.
    """

    kind: ChangeKind
    path: str
    size: int | None = None
    old_size: int | None = None
    mode: int | None = None
    old_path: str | None = None

    def __str__(self) -> str:
        sign = {"added": "+", "removed": "-", "renamed": ">"}.get(self.kind, "~")
        shown = _escaped(self.path)
        if self.kind == "renamed":
            return f"{sign} {_escaped(self.old_path or '')} -> {shown}"
        size = "" if self.size is None else f"  ({format_size(self.size)})"
        note = f"  [{self.kind}]" if self.kind in ("type", "mode") else ""
        return f"{sign} {shown}{note}{size}"


def _escaped(path: str) -> str:
    """Keep a name that was made inside a sandbox from moving the reader's cursor."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in path)


class LimitState(msgspec.Struct, frozen=True, kw_only=True):
    """How one limit of one box is kept, and by what."""

    name: str
    value: int | float | None
    how: Enforcement
    by: str

    def __str__(self) -> str:
        amount = "none" if self.value is None else f"{self.value:g}"
        if self.value is not None and self.name in ("memory", "disk"):
            amount = format_size(int(self.value))
        return f"{self.name:<11} {amount:<10} {self.how:<12} {self.by}"


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What isolates a box, how each limit is kept, and what a user should know about it."""

    runtime: str
    version: str
    isolation: Literal["none", "namespace", "container"]
    user: str
    image: str
    workspace: str
    network: str
    limits: tuple[LimitState, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return all(limit.how != "unsupported" for limit in self.limits)

    def __str__(self) -> str:
        lines = [
            f"runtime     {self.runtime} {self.version}, isolation: {self.isolation}",
            f"user        {self.user}",
            f"image       {self.image}",
            f"workspace   {self.workspace}",
            f"network     {self.network}",
            *(str(limit) for limit in self.limits),
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a host can or cannot do."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What this host can enforce, and what to do about the rest."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)

    def __str__(self) -> str:
        lines = []
        for finding in self.findings:
            lines.append(f"{'ok ' if finding.ok else 'GAP'}  {finding.name:<22} {finding.found}")
            if finding.remedy and not finding.ok:
                lines.append(f"{'':27}-> {finding.remedy}")
        return "\n".join(lines)


class FileStat(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the workspace; a symlink is described, never followed."""

    path: str
    kind: Literal["file", "directory", "symlink", "fifo", "socket", "device"]
    size: int
    mode: int
    mtime_ns: int
    target: str | None = None
