"""The process runtime: commands run as the caller, with no isolation at all. Only used when named.

What it keeps of the contract: commands that end with everything they started, streams, time limits,
and a box that dies with its owner.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import msgspec

from sandboxsdk.codec import encode_json
from sandboxsdk.errors import CapabilityError
from sandboxsdk.model import Description, Finding, Limits, LimitState

from .arguments import HOME, WORKSPACE, environment
from .entering import enter_holder
from .hierarchy import Support
from .instance import HeldInstance
from .limiting import rlimits, states
from .runtime import BoxPlan, Command

_NO_CGROUP = Support(
    version=0, controllers=frozenset(), reason="the process runtime uses none", tested=True
)
_RLIMIT_NPROC = 6


class Plain:
    """Runs commands as ordinary processes of the caller, in the directory itself."""

    name = "process"
    stacks = False

    def findings(self, scratch: str | None) -> tuple[Finding, ...]:
        """Tell that it always works, and what that is worth."""
        del scratch
        return (Finding(name="process", ok=True, found="no isolation; only used when named"),)

    def limit_states(self, limits: Limits) -> tuple[LimitState, ...]:
        """Tell how each limit would be kept."""
        network = LimitState(name="network", value=None, how="unsupported", by="nobody")
        return *_states(limits), network

    def enter(self, plan: BoxPlan) -> HeldInstance:
        """Make a box. See `Runtime.enter`.

        Raises:
            CapabilityError: the plan asks for a view, a mount, an image or secrets.
        """
        workspace = _workspace(plan)
        for wanted, asked in (
            ("mounts", bool(plan.spec.mounts)),
            ("secrets", bool(plan.spec.secrets)),
            (f"Network.{plan.spec.network.mode}", plan.spec.network.mode == "allow"),
            (f"Image of kind {plan.spec.image.kind}", plan.spec.image.kind != "host"),
        ):
            if asked:
                raise CapabilityError(
                    wanted=wanted,
                    reason="the process runtime has no isolation to do it with",
                    hint='use runtime="bubblewrap"',
                )
        scratch = tempfile.mkdtemp(prefix="scratch-", dir=plan.scratch)
        trees = {
            "workspace": workspace,
            "tmp": os.path.join(scratch, "tmp"),
            "home": os.path.join(scratch, "home"),
        }
        for name in ("tmp", "home"):
            os.mkdir(trees[name], 0o700)
        spec: dict[str, Any] = {
            "plain": True,
            "rootless": True,
            "owners": [],
            "uid": os.geteuid(),
            "gid": os.getegid(),
            "trees": trees,
        }
        channel, gone, descriptors = enter_holder(plan, spec, None)
        dialect = _Dialect(plan=plan, trees=trees)
        return HeldInstance(
            plan,
            dialect,
            channel=channel,
            gone=gone,
            descriptors=descriptors,
            cgroup=None,
            scratch=scratch,
        )


class _Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """What stays the same for every command of a box without isolation."""

    plan: BoxPlan
    trees: dict[str, str]
    support: Support = _NO_CGROUP
    seccomp: bytes = b""
    ids: tuple[int, int] | None = None
    remounts: bool = False

    def arguments(self, command: Command) -> bytes:
        """Give the command, with the paths of a box turned into those of the host."""
        variables = environment("sandbox", terminal=command.terminal, path_first=(), extra={})
        variables |= {"HOME": self.trees["home"], "TMPDIR": self.trees["tmp"], **command.env}
        told = {"argv": command.argv, "cwd": self._place(command.cwd), "env": variables}
        return encode_json(told)

    def rlimits(self, limits: Limits) -> list[tuple[int, int]]:
        # Without a user namespace RLIMIT_NPROC would count every process of the caller.
        return [
            (name, value) for name, value in rlimits(limits, _NO_CGROUP) if name != _RLIMIT_NPROC
        ]

    def states(self, limits: Limits) -> tuple[LimitState, ...]:
        return _states(limits)

    def describe(self, states: tuple[LimitState, ...]) -> Description:
        return Description(
            runtime="process",
            version="",
            isolation="none",
            user=f"uid {os.geteuid()}, the caller's own, with all its rights",
            image="the host itself",
            workspace=self.plan.workspace,
            network="the host's own",
            limits=states,
            notes=("there is NO isolation: a command can do whatever the caller can",),
        )

    def _place(self, cwd: str) -> str:
        for name, place in ((WORKSPACE, "workspace"), (HOME, "home")):
            if cwd == name or cwd.startswith(f"{name}/"):
                return self.trees[place] + cwd[len(name) :]
        return cwd


def _states(limits: Limits) -> tuple[LimitState, ...]:
    pids = LimitState(name="pids", value=limits.pids, how="unsupported", by="nobody")
    return tuple(pids if state.name == "pids" else state for state in states(limits, _NO_CGROUP))


def _workspace(plan: BoxPlan) -> str:
    """Give the directory to run in: the one of a direct workspace, or an upper over nothing."""
    view = plan.view
    if view.kind == "bind":
        return view.task.path
    assert view.base is not None
    if view.stack or os.listdir(view.base.path):
        raise CapabilityError(
            wanted="a private view of a directory",
            reason="the process runtime cannot make one in this version",
            hint='use Workspace.direct(path), or runtime="bubblewrap"',
        )
    return os.path.join(view.task.path, view.upper)
