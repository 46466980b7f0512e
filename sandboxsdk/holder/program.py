"""The fork server: started once per caller, it forks a holder for each box that is entered.

It stays in the host's namespaces. As a subreaper it is the parent of every holder, so it knows when
one is dead (and with it everything in its box); only then does it let go of the task's lease and of
the cgroups.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
from typing import Any

from sandboxsdk import syscalls as sc

from . import cloning, descendants, enclosure, holding, wire

# Each is a descriptor; a caller with more owners of workspaces than this makes some again.
_IDMAPS_MAX = 64


def main(control: int, owner: int) -> None:
    """Serve until the owner (a pidfd) is dead or hangs up, and every holder is gone."""
    sc.prctl(sc.PR_SET_CHILD_SUBREAPER)
    sc.set_name("sandboxsdk-fork")
    os.umask(0o022)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # They were inherited across exec, so they would be again, down to the guest's program.
    for descriptor in (control, owner):
        os.set_inheritable(descriptor, False)
    _ForkServer(wire.adopt(control), owner).run()
    with contextlib.suppress(OSError):
        descendants.end_all()
    sys.exit(0)


class _ForkServer:
    def __init__(self, control: wire.Channel, owner: int) -> None:
        self._control = control
        self._owner = owner
        self._idmaps: dict[tuple[int, int], int] = {}
        self._open = True
        # What to let go of when a holder is dead: descriptors to close, cgroups to remove.
        self._holders: dict[int, tuple[list[int], list[str]]] = {}
        self._wake = holding.wake_on_child()

    def run(self) -> None:
        poll = select.poll()
        for descriptor in (self._control.fileno(), self._owner, self._wake):
            poll.register(descriptor, select.POLLIN)
        while self._open or self._holders:
            for descriptor, _events in poll.poll():
                if descriptor == self._wake:
                    os.read(self._wake, 4096)
                elif descriptor == self._owner:
                    self._open = False
                    poll.unregister(self._owner)
                    self._thaw()
                else:
                    received = self._control.receive()
                    if received is None:
                        self._open = False
                        poll.unregister(self._control.fileno())
                    else:
                        self._enter(*received)
            self._reap()

    def _enter(self, message: dict[str, Any], descriptors: list[int]) -> None:
        """Fork a holder; `descriptors` are its channel, the keepsakes (the lease), then the cgroup
        files.
        """
        channel, keepsakes = descriptors[0], descriptors[1 : 1 + message["keepsakes"]]
        cgroups = descriptors[1 + message["keepsakes"] :]
        stage = "namespaces"
        try:
            self._prepare_idmaps(message["spec"])
            stage = "fork"
            forked = os.fork()
        except OSError as error:
            _report(wire.adopt(channel), error, stage)
            for descriptor in (*keepsakes, *cgroups):
                os.close(descriptor)
            return
        if forked == 0:
            try:
                self._let_go()
                self._become_holder(message, wire.adopt(channel), cgroups)
            finally:
                os._exit(1)
        for descriptor in (channel, *cgroups):
            os.close(descriptor)
        self._holders[forked] = (keepsakes, message["cgroups"])

    def _prepare_idmaps(self, spec: dict[str, Any]) -> None:
        """Make the id maps that a box of root needs; they serve later boxes too."""
        for one, other in spec["owners"]:
            if (one, other) not in self._idmaps:
                if len(self._idmaps) >= _IDMAPS_MAX:
                    os.close(self._idmaps.pop(next(iter(self._idmaps))))
                self._idmaps[one, other] = cloning.make_idmap(spec["uid"], (one, other))

    def _let_go(self) -> None:
        """In a new holder: drop what belongs to the server and to other boxes, above all their
        leases.
        """
        self._control.drop()
        for keepsakes, _cgroups in self._holders.values():
            for descriptor in keepsakes:
                os.close(descriptor)

    def _become_holder(
        self, message: dict[str, Any], channel: wire.Channel, cgroups: list[int]
    ) -> None:
        spec = message["spec"]
        stage = "namespaces"
        try:
            bwrap = -1
            if not spec["plain"]:
                bwrap = os.open(spec["bwrap"], os.O_PATH | os.O_CLOEXEC)
                enclosure.enter_namespaces(
                    uid=os.getuid(), gid=os.getgid(), rootless=spec["rootless"]
                )
            # Without a pid namespace, what a holder leaves comes to its reaper.
            sc.prctl(sc.PR_SET_CHILD_SUBREAPER)
            holder = os.fork()
            if holder:
                # This process only stands for the holder in the server's pid namespace.
                channel.drop()
                # Their locks say that somebody lives who will remove the cgroups.
                for descriptor in cgroups:
                    os.close(descriptor)
                os.waitpid(holder, 0)
                if spec["plain"]:
                    descendants.end_all()
                os._exit(0)
            sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
            sc.prctl(sc.PR_SET_CHILD_SUBREAPER)
            sc.set_name("sandboxsdk-box")
            stage = "mounts"
            overlay = None
            if spec["plain"]:
                trees = _open_trees(spec)
            else:
                trees, overlay = enclosure.build(spec, self._idmaps)
            pidfd = os.pidfd_open(os.getpid())
        except OSError as error:
            _report(channel, error, stage)
            os._exit(1)
        channel.send({"ready": True}, [pidfd, trees["workspace"], trees["tmp"], trees["home"]])
        for descriptor in (*trees.values(), pidfd):
            os.close(descriptor)
        holding.hold(channel, self._owner, bwrap=bwrap, spec=spec, cgroups=cgroups, overlay=overlay)

    def _thaw(self) -> None:
        """Let go on what the owner had paused before it died: nothing that is frozen can die."""
        for _keepsakes, cgroups in self._holders.values():
            for path in cgroups:
                for name, text in (("freezer.state", b"THAWED"), ("cgroup.freeze", b"0")):
                    with contextlib.suppress(OSError):
                        descriptor = os.open(f"{path}/{name}", os.O_WRONLY | os.O_CLOEXEC)
                        try:
                            os.write(descriptor, text)
                        finally:
                            os.close(descriptor)

    def _reap(self) -> None:
        """Let go of what belonged to holders that are dead: first the cgroups, then the lease."""
        while True:
            try:
                found, _status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if found == 0:
                return
            keepsakes, cgroups = self._holders.pop(found, ([], []))
            # What is no holder was left by one that somebody killed; where nothing isolates, a
            # command can do that.
            with contextlib.suppress(OSError):
                descendants.kill_children(self._holders)
            for path in cgroups:
                with contextlib.suppress(OSError):
                    os.rmdir(path)
            for descriptor in keepsakes:
                os.close(descriptor)


def _open_trees(spec: dict[str, Any]) -> dict[str, int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    return {name: os.open(path, flags) for name, path in spec["trees"].items()}


def _report(channel: wire.Channel, error: OSError, stage: str) -> None:
    with contextlib.suppress(OSError):
        channel.send({"errno": error.errno, "text": str(error), "stage": stage})
