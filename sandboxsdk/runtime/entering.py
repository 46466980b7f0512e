"""Having a holder made: one message to the fork server, then the wait for its first word."""

from __future__ import annotations

import contextlib
import os
import select
from typing import Any

from sandboxsdk import clock, holder
from sandboxsdk.errors import (
    BoxLost,
    CapabilityError,
    HostRefused,
    RuntimeUnavailable,
    WorkspaceInvalid,
)

from .cgroup import BoxCgroup
from .forkserver import fork_server
from .runtime import BoxPlan

_ENTER_SECONDS_MAX = 30.0


def enter_holder(
    plan: BoxPlan, spec: dict[str, Any], cgroup: BoxCgroup | None
) -> tuple[holder.Channel, int, list[int]]:
    """Have a holder made; give its channel, a pipe that ends with it, and what it sent.

    Raises:
        RuntimeUnavailable, CapabilityError, WorkspaceInvalid, HostRefused, BoxLost: it cannot be.
    """
    mine, theirs = holder.pair()
    gone, gone_writer = os.pipe2(os.O_CLOEXEC)
    cgroup_files = cgroup.open_procs() if cgroup is not None else []
    # The pipe is the last keepsake: it ends only after the lease was let go of.
    keepsakes = [*plan.keepsakes, gone_writer]
    message = {
        "op": "enter",
        "spec": spec,
        "keepsakes": len(keepsakes),
        "cgroups": list(cgroup.paths) if cgroup is not None else [],
    }
    try:
        fork_server().enter(message, [theirs.fileno(), *keepsakes, *cgroup_files])
    except OSError as error:
        mine.close()
        os.close(gone)
        raise HostRefused(what="reach", path="the fork server", reason=str(error)) from error
    finally:
        theirs.drop()
        for descriptor in (gone_writer, *cgroup_files):
            os.close(descriptor)
    try:
        descriptors = _await_ready(mine, plan)
    except BaseException:
        mine.close()
        os.close(gone)
        raise
    return mine, gone, descriptors


def _await_ready(channel: holder.Channel, plan: BoxPlan) -> list[int]:
    """Wait for the holder's first word and turn a refusal into the error that helps."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    deadline = clock.monotonic() + _ENTER_SECONDS_MAX
    while not poll.poll(100):
        if clock.monotonic() > deadline:
            raise BoxLost(box=plan.id, reason=f"not ready after {_ENTER_SECONDS_MAX:g} s")
    received = channel.receive()
    if received is None:
        raise BoxLost(box=plan.id, reason="its holder ended before it was ready")
    message, descriptors = received
    if "ready" in message:
        return descriptors
    raise _refusal(message, plan)


def _refusal(message: dict[str, Any], plan: BoxPlan) -> Exception:
    text = message["text"]
    if message["stage"] == "namespaces":
        return RuntimeUnavailable(
            runtime="bubblewrap", reason=f"the kernel refused namespaces ({text})", hint=_remedy()
        )
    if message["errno"] == 116:
        return WorkspaceInvalid(path=text, reason="a directory was replaced while it was mounted")
    if "fsconfig" in text or "fsmount" in text or "fsopen" in text:
        return CapabilityError(
            wanted="an overlay of the workspace",
            reason=text,
            hint="keep SANDBOXSDK_HOME on ext4, xfs, btrfs or tmpfs, and the workspace outside of "
            "containers' own overlay file systems, or work on a copy of it: "
            'Workspace.private(path, kind="copy")',
        )
    if "mount_setattr" in text:
        return CapabilityError(
            wanted="a box of root on these directories",
            reason=f"a file system cannot map ids ({text})",
            hint="keep SANDBOXSDK_HOME, and what is mounted, on ext4, xfs, btrfs or tmpfs and not "
            "on a container's own overlay, or run as an ordinary user",
        )
    return HostRefused(what="build box", path=plan.id, reason=text)


def _remedy() -> str:
    """Name the switch that blocks user namespaces here."""
    switches = (
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
    )
    for path, blocking, setting in switches:
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            if file.read().strip() == blocking:
                return f'allow them once as root: `sysctl -w {setting}`, or use runtime="docker"'
    return (
        "inside a container start it with `--security-opt seccomp=unconfined "
        '--security-opt systempaths=unconfined`, or use runtime="docker"'
    )
