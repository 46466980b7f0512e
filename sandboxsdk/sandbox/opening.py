"""The running box behind a Sandbox: started at the first use, stopped at the end of the block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

from sandboxsdk import clock
from sandboxsdk.errors import BoxLost
from sandboxsdk.home import Home
from sandboxsdk.model import Spec
from sandboxsdk.runtime import BoxPlan, Instance, Runtime, Watch
from sandboxsdk.task import Task, claim, let_go, note_ended, note_running
from sandboxsdk.workspace import OpenWorkspace

from .checkpoints import place_of

Tell = Callable[[str, Mapping[str, Any]], None]


@final
class Opening:
    """What a Sandbox has open: its workspace, its instance, and who watches its limits.

    Attributes:
        spec: what the next instance is made from.
        watch: None while nothing runs.
        unfinished: a restore was begun in this instance and did not end.
    """

    def __init__(
        self,
        box: str,
        home: Home,
        runtime: Runtime,
        spec: Spec,
        *,
        linger: bool,
        tell: Tell,
        inside: Callable[[], object],
    ) -> None:
        self.spec = spec
        self.watch: Watch | None = None
        self._box, self._home, self._runtime = box, home, runtime
        self._linger, self._tell, self._inside = linger, tell, inside
        self._guard = threading.RLock()
        self._workspace: OpenWorkspace | None = None
        self._instance: Instance | None = None
        self.unfinished: bool = False

    def workspace(self, task: Task) -> OpenWorkspace:
        with self._guard:
            if self._workspace is None:
                self._workspace = task.workspace()
            return self._workspace

    def instance(self, task: Task, *, finish: bool = True) -> Instance:
        """Give the running instance, starting it at the first use.

        Args:
            finish: end a restore that was begun and did not end; without, another one takes its
                place.

        Raises:
            BoxLost: it was ended from outside.
            UsageError: the block of the box was left.
        """
        with self._guard:
            self._inside()  # Another thread may have left the block since the caller asked.
            if self._instance is not None:
                if not self._instance.alive():
                    raise BoxLost(box=self._box, reason="its processes were ended from outside")
                if self.unfinished and finish:
                    with self._instance.frozen():
                        task.checkpoint_history().finish(place_of(self._instance))
                    self.unfinished = False
                return self._instance
            began = clock.monotonic()
            self._instance = instance = self._start(task, finish=finish)
        self._tell("entered", {"seconds": clock.monotonic() - began})
        return instance

    def watched(self, task: Task) -> tuple[Instance, Watch]:
        """Give the running instance and the watch over its limits.

        Raises:
            BoxLost: it was ended from outside, or by another thread.
        """
        instance, watch = self.instance(task), self.watch
        if watch is None:
            raise BoxLost(box=self._box, reason="another thread left its block")
        return instance, watch

    def revived(self, task: Task) -> Instance:
        """Give the running instance, or a new one if that was ended from outside."""
        with self._guard:
            lost = self._instance is not None and not self._instance.alive()
        if lost:
            self.stop()
        return self.instance(task, finish=False)

    def finish(self, task: Task) -> None:
        """End a restore that a crash or a full disk has interrupted, which takes a running box."""
        with self._guard:
            points = task.checkpoint_history().points()
            if points.restoring is not None and not points.placed:
                self.unfinished = True
                self.instance(task)

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Notice when a restore does not end, so that the next use of the instance ends it."""
        try:
            yield
        except BaseException:
            self.unfinished = True
            raise
        self.unfinished = False

    def stop(self) -> None:
        """End everything; what was written stays."""
        with self._guard:
            instance, self._instance = self._instance, None
            watch, self.watch = self.watch, None
            workspace, self._workspace = self._workspace, None
        if watch is not None:
            watch.close()
        try:
            if instance is not None:
                try:
                    instance.close()
                finally:
                    note_ended(instance)
            if workspace is not None:
                workspace.settle()
        finally:
            let_go(self._box)
        if instance is not None:
            self._tell("closed", {})

    def _start(self, task: Task, *, finish: bool) -> Instance:
        if task.record.workspace.mode == "private":
            claim(task.directory, self._box)
        # Nobody else looks at the files between their being made ready and their being known as
        # mounted.
        with task.checkpoint_history().alone():
            return self._started(task, finish=finish)

    def _started(self, task: Task, *, finish: bool) -> Instance:
        checkpoints = task.checkpoint_history()
        checkpoints.begin(stacks=self._runtime.stacks)
        workspace = self.workspace(task)
        plan = BoxPlan(
            id=self._box,
            spec=self.spec,
            view=workspace.prepare(),
            workspace=workspace.describe(),
            keepsakes=(task.lease_descriptor(),),
            forbidden=(self._home.path,),
            caches=self._home.caches,
            scratch=task.directory,
            linger=self._linger,
        )
        instance = self._runtime.enter(plan)
        try:
            with instance.frozen():
                checkpoints.finish(place_of(instance), only_placed=not finish)
            self.unfinished = not finish
            self.watch = Watch(self.spec.limits, disk=workspace.disk_bytes)
        except BaseException:
            instance.close()
            raise
        note_running(task.directory, instance)
        return instance
