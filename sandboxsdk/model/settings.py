"""What a user asks of a box: limits, network, secrets, image, mounts, workspace, and the Spec that
holds them.

Pure values, checked when they are made, so that a wrong one fails where it is written. Nothing here
looks at the host: whether a path exists or a limit can be enforced is found out by those who use
it.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec
from msgspec.structs import force_setattr

from sandboxsdk.errors import UsageError
from sandboxsdk.units import parse_size

_T = TypeVar("_T")
NAME_LENGTH_MAX = 200
# Below this nothing runs; it is a forgotten unit.
_MEMORY_BYTES_MIN = 1024**2
_ITEMS_MAX = 10_000
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_name(name: str, *, what: str) -> str:
    """Give the name back, or say why it cannot be one: it is shown in terminals and used in error
    messages.

    Raises:
        UsageError: empty, too long, `.` or `..`, or with a slash, a control character or a lone
            surrogate.
    """
    reason = ""
    if not isinstance(name, str) or not name.strip():
        reason = "must be a non-empty string"
    elif len(name) > NAME_LENGTH_MAX:
        reason = f"must have at most {NAME_LENGTH_MAX} characters"
    elif name in (".", ".."):
        reason = "must not be a directory reference"
    elif "/" in name or not name.isprintable():
        reason = "must not hold slashes or characters that do not print"
    if reason:
        hint = 'use a short plain name such as "fix-login"'
        raise UsageError(what=what, value=name, reason=reason, hint=hint)
    return name


def check_env(env: Mapping[str, str] | None, *, what: str = "env") -> dict[str, str]:
    """Give a plain dict of an environment.

    Raises:
        UsageError: a name that no shell could set, or a value that is not a string or holds a NUL.
    """
    checked: dict[str, str] = {}
    if env is not None and not isinstance(env, Mapping):
        # Not shown: it may hold values that are secret.
        hint = 'pass a dict such as {"DEBUG": "1"}'
        reason = "must be a mapping of names to values"
        raise UsageError(what=what, value=type(env).__name__, reason=reason, hint=hint)
    for name, value in (env or {}).items():
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
            hint = "use letters, digits and underscores, and no digit first"
            raise UsageError(what=what, value=name, reason="is not a variable's name", hint=hint)
        if not isinstance(value, str) or "\0" in value:
            # The value itself may be a secret: it is not shown.
            raise UsageError(
                what=f"{what}[{name}]",
                value="...",
                reason="must be a string without NUL",
                hint="convert it with str()",
            )
        checked[name] = value
    return checked


def check_path(path: Any, *, what: str) -> str:
    """Give a path as text, the bytes of its names kept.

    Raises:
        UsageError: empty, with a NUL, or not a path at all.
    """
    hint = "pass a str or a pathlib.Path"
    try:
        text = os.fsdecode(path)
    except (TypeError, ValueError) as error:
        raise UsageError(what=what, value=path, reason="is not a path", hint=hint) from error
    if not text or "\0" in text:
        raise UsageError(what=what, value=path, reason="is empty or holds a NUL", hint=hint)
    return text


def check_one(value: object, kind: type, *, what: str) -> None:
    """Refuse a value that is not a `kind`.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(value, kind):
        reason = f"must be {'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
        raise UsageError(
            what=what, value=value, reason=reason, hint=f"make one with {kind.__name__}(...)"
        )


def check_many(values: object, kind: type[_T], *, what: str) -> tuple[_T, ...]:
    """Give a list or the like as a tuple, each item of which is a `kind`.

    Raises:
        UsageError: not a list, or an item is something else.
    """
    hint = f"pass a list, each item a {kind.__name__}"
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise UsageError(what=what, value=values, reason="must be a list", hint=hint)
    given = tuple(itertools.islice(values, _ITEMS_MAX + 1))
    if len(given) > _ITEMS_MAX:
        raise UsageError(what=what, value="...", reason=f"has more than {_ITEMS_MAX} items")
    for item in given:
        if not isinstance(item, kind):
            reason = f"must hold {kind.__name__} only"
            raise UsageError(what=what, value=item, reason=reason, hint=hint)
    return given


def check_choice(value: object, known: tuple[str, ...], *, what: str) -> None:
    """Refuse what is not one of the known words.

    Raises:
        UsageError: it is none.
    """
    if value not in known:
        hint = f"one of: {', '.join(known)}"
        raise UsageError(what=what, value=value, reason="is unknown", hint=hint)


def _check_plain(value: object, *, what: str, reason: str, hint: str) -> None:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise UsageError(what=what, value=value, reason=reason, hint=hint)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the host a box may use; sizes are bytes or text such as "4GiB".

    None lifts a limit.

    Attributes:
        memory: bytes of all processes of the box together, its /tmp and home included.
        cpus: processors' worth of time, e.g. 0.5.
        pids: processes and threads at once.
        disk: bytes that the box may add to its workspace.
        wall_time: seconds that any one command may run.
        open_files: descriptors per process.

    Raises:
        UsageError: an unknown unit, or a value that is not above zero.
    """

    memory: int | str | None = 4 * 1024**3
    cpus: float | None = 2.0
    pids: int | None = 256
    disk: int | str | None = 10 * 1024**3
    wall_time: float | None = None
    open_files: int | None = None

    def __post_init__(self) -> None:
        for name in ("memory", "disk"):
            value = getattr(self, name)
            if value is not None:
                size = parse_size(value, what=f"Limits.{name}")
                if name == "memory" and size < _MEMORY_BYTES_MIN:
                    hint = 'is the unit missing? write "512MiB" or "4GiB"'
                    reason = "must be at least 1 MiB"
                    raise UsageError(what=f"Limits.{name}", value=value, reason=reason, hint=hint)
                force_setattr(self, name, size)
        for name, kinds in (
            ("cpus", (int, float)),
            ("wall_time", (int, float)),
            ("pids", (int,)),
            ("open_files", (int,)),
        ):
            value = getattr(self, name)
            wrong = isinstance(value, bool) or not isinstance(value, kinds)
            if value is not None and (wrong or not 0 < value < 2**31):
                kind = "number" if float in kinds else "whole number"
                reason = f"must be a {kind} above 0, or None for no limit"
                hint = "write, for example, cpus=0.5, pids=256, wall_time=60"
                raise UsageError(what=f"Limits.{name}", value=value, reason=reason, hint=hint)

    @property
    def memory_bytes(self) -> int | None:
        return self.memory if isinstance(self.memory, int) else None

    @property
    def disk_bytes(self) -> int | None:
        return self.disk if isinstance(self.disk, int) else None


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """Who a box may talk to. Make one with `none`, `allow` or `open`."""

    mode: Literal["none", "allow", "open"] = "none"
    allowlist: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice(self.mode, ("none", "allow", "open"), what="Network.mode")
        force_setattr(self, "allowlist", check_many(self.allowlist, str, what="Network.allowlist"))
        for target in self.allowlist:
            hint = 'write "api.example.com", "*.example.org:443" or "10.1.0.0/16:5432"'
            _check_plain(target, what="Network.allow", reason="is not a host", hint=hint)

    @classmethod
    def none(cls) -> Network:
        """Only the box's own loopback."""
        return cls()

    @classmethod
    def allow(cls, *targets: str) -> Network:
        """Only these: "api.example.com", "*.example.org:443", "10.1.0.0/16:5432",
        "host.internal:8080".
        """
        if not targets:
            hint = "name a host, or use Network.none()"
            raise UsageError(what="Network.allow", value=(), reason="names nobody", hint=hint)
        return cls(mode="allow", allowlist=targets)

    @classmethod
    def open(cls) -> Network:
        """Anything the host can reach."""
        return cls(mode="open")


class Secret(msgspec.Struct, frozen=True):
    """A value that the box never sees: a placeholder is replaced on the way to `hosts`."""

    name: str
    value: str | None = None
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        force_setattr(self, "hosts", check_many(self.hosts, str, what="Secret.hosts"))
        for host in self.hosts:
            hint = 'write "api.example.com" or "*.example.org:443"'
            _check_plain(host, what="Secret.hosts", reason="is not a host", hint=hint)
        check_one(self.name, str, what="Secret.name")
        check_env({self.name: "" if self.value is None else self.value}, what="Secret")

    def __repr__(self) -> str:
        return f"Secret({self.name!r}, hosts={list(self.hosts)!r})"

    def without_value(self) -> Secret:
        return Secret(self.name, None, self.hosts)


class Image(msgspec.Struct, frozen=True):
    """The files around the workspace: what a box sees as /usr, /bin and so on, read-only."""

    reference: str = ""
    kind: Literal["host", "rootfs", "tar", "busybox", "registry"] = "registry"
    pull: bool = False

    def __post_init__(self) -> None:
        check_choice(self.kind, ("host", "rootfs", "tar", "busybox", "registry"), what="Image.kind")
        check_one(self.pull, bool, what="Image.pull")
        wanted = self.kind in ("registry", "rootfs", "tar")
        if not isinstance(self.reference, str) or (wanted and not self.reference):
            hint = 'write Image("python:3.12"), or Image.from_rootfs(directory)'
            reason = "needs a name or a path"
            raise UsageError(what="Image", value=self.reference, reason=reason, hint=hint)
        if "\0" in self.reference or (self.kind == "registry" and not self.reference.isprintable()):
            raise UsageError(what="Image", value=self.reference, reason="does not print")

    @classmethod
    def from_host(cls) -> Image:
        """The host's own /usr, read-only, with a minimal generated /etc."""
        return cls(kind="host")

    @classmethod
    def from_rootfs(cls, directory: str | os.PathLike[str]) -> Image:
        """A directory that holds a root file system."""
        return cls(check_path(directory, what="Image.from_rootfs"), kind="rootfs")

    @classmethod
    def from_tar(cls, path: str | os.PathLike[str]) -> Image:
        """A tar archive of a root file system."""
        return cls(check_path(path, what="Image.from_tar"), kind="tar")

    @classmethod
    def busybox(cls) -> Image:
        """The host's static busybox and nothing else."""
        return cls(kind="busybox")


class Mount(msgspec.Struct, frozen=True):
    """A file or directory of the host that a box sees: read-only unless `write`.

    `target` is an absolute path inside; without one it is the same path as outside.
    """

    source: str
    target: str | None = None
    write: bool = False
    kind: Literal["bind", "toolchain", "cache"] = "bind"
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        force_setattr(self, "source", check_path(self.source, what="Mount.source"))
        if self.target is not None:
            target = check_path(self.target, what="Mount.target")
            force_setattr(self, "target", target)
            wrong = not target.startswith("/") or ".." in target.split("/")
            if wrong or not target.isprintable():
                reason = "must be an absolute plain path"
                hint = "write a path inside the box, such as /opt/tools"
                raise UsageError(what="Mount.target", value=target, reason=reason, hint=hint)
        check_one(self.write, bool, what="Mount.write")
        check_choice(self.kind, ("bind", "toolchain", "cache"), what="Mount.kind")
        if self.kind == "cache":
            check_name(self.source, what="Mount.cache")
        force_setattr(self, "also", check_many(self.also, str, what="Mount.also"))

    @classmethod
    def toolchain(cls) -> Mount:
        """The caller's own Python environment at its own path, read-only, and first on PATH."""
        return cls(sys.prefix, kind="toolchain", also=(sys.base_prefix,))

    @classmethod
    def cache(cls, name: str, target: str | None = None) -> Mount:
        """A directory shared by all boxes that ask for `name`; at ~/.cache/NAME unless `target`
        says else.
        """
        check_name(name, what="Mount.cache")
        return cls(name, target or f"/home/sandbox/.cache/{name}", write=True, kind="cache")


class Workspace(msgspec.Struct, frozen=True, kw_only=True):
    """Which directory a task works on, and whether it sees a private view of it or the directory
    itself.
    """

    mode: Literal["private", "direct"] = "private"
    path: str | None = None
    kind: Literal["auto", "overlay", "reflink", "copy"] = "auto"
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice(self.mode, ("private", "direct"), what="Workspace.mode")
        known = ("auto", "overlay", "reflink", "copy")
        check_choice(self.kind, known, what="Workspace.kind")
        if self.path is not None:
            # An empty path and a NUL are for those who look at the host to tell of.
            check_one(self.path, str, what="Workspace.path")
        force_setattr(self, "exclude", check_many(self.exclude, str, what="Workspace.exclude"))

    @classmethod
    def private(
        cls, path: Any = None, *, exclude: Sequence[str] = (), kind: str = "auto"
    ) -> Workspace:
        """A copy-on-write view: the directory itself does not change until apply()."""
        return cls(
            mode="private",
            path=_path_text(path),
            kind=kind,  # type: ignore[arg-type]  # checked as in every Workspace
            exclude=check_many(exclude, str, what="Workspace.exclude"),
        )

    @classmethod
    def direct(cls, path: Any, *, exclude: Sequence[str] = ()) -> Workspace:
        """The directory itself: what the box writes is written."""
        exclude = check_many(exclude, str, what="Workspace.exclude")
        return cls(mode="direct", path=_path_text(path), exclude=exclude)


def _path_text(path: Any) -> str | None:
    try:
        return None if path is None else os.fsdecode(path)
    except (TypeError, ValueError) as error:
        hint = "pass a str, a pathlib.Path or a Workspace"
        raise UsageError(what="workspace", value=path, reason="is not a path", hint=hint) from error


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a box is made from; a task stores one, a Sandbox overrides parts of it."""

    image: Image = Image(kind="host")
    limits: Limits = Limits()
    network: Network = Network()
    secrets: tuple[Secret, ...] = ()
    env: dict[str, str] = {}
    mounts: tuple[Mount, ...] = ()
    runtime: Literal["auto", "bubblewrap", "docker", "process"] = "auto"

    def __post_init__(self) -> None:
        known = ("auto", "bubblewrap", "docker", "process")
        check_choice(self.runtime, known, what="runtime")
        check_one(self.image, Image, what="image")
        check_one(self.limits, Limits, what="limits")
        check_one(self.network, Network, what="network")
        force_setattr(self, "env", check_env(self.env))
        force_setattr(self, "mounts", check_many(self.mounts, Mount, what="mounts"))
        force_setattr(self, "secrets", check_many(self.secrets, Secret, what="secrets"))

    def storable(self) -> Spec:
        """The same without secret values: a task keeps their names and hosts only."""
        secrets = tuple(secret.without_value() for secret in self.secrets)
        return msgspec.structs.replace(self, secrets=secrets)

    def overridden(self, **given: Any) -> Spec:
        """Replace what was given (not None); env is laid over the old one, later wins."""
        changes = {name: value for name, value in given.items() if value is not None}
        if "env" in changes:
            changes["env"] = {**self.env, **check_env(changes["env"])}
        return msgspec.structs.replace(self, **changes)
