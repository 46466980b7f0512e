"""Checkpoints and restores of a real box, for the few tests of crashes that need one."""

from __future__ import annotations

from typing import Any

from sandboxsdk import Sandbox, Task, Workspace

from .stage import Operation, Stage, Tell, Told, clear, opened, write_state

_CHANGE = {
    "b": "echo b > edited; rm gone; rm -r dir; mkdir dir; echo in > dir/side; ln -sf same link",
    "c": "echo c > edited; echo c > only-in-c; rm -r dir swop; chmod 600 script; mkdir gone",
}


class BoxStage(Stage):
    """A task with a private workspace that has been worked on in a box."""

    def build(self, kind: str) -> Stage:
        """Make the home; its checkpoints are a, b and c, and the files are as in c."""
        del kind
        write_state(self.work, "a")
        with opened(self.home_path) as home:
            workspace = Workspace.private(self.work)
            task = Task.create("crash", workspace=workspace, home=home)
            self.task, self.work_state = task.id, "c"
            with Sandbox(task) as box:
                for name in "abc":
                    if name in _CHANGE:
                        box.exec(_CHANGE[name], check=True)
                    made = box.checkpoint(name)
                    self.trees[name] = self.before[made.id] = made.tree
                    self.named[name] = made.id
        # Of one mount that is over, and closed to an ordinary user who copies it.
        for scratch in (self.home_path / "tasks" / self.task).glob("work-*"):
            clear(scratch)
        self.save()
        return self


def do_box_checkpoint(stage: Stage, tell: Tell) -> None:
    """Enter the box, change something, make a checkpoint."""
    with opened(stage.home_path) as home, Sandbox(Task.open(stage.task, home=home)) as box:
        made = box.checkpoint("made")
        tell("checkpoint", made.id, made.tree)


def do_box_restore(stage: Stage, tell: Tell) -> None:
    """Enter the box and restore the first checkpoint."""
    with opened(stage.home_path) as home, Sandbox(Task.open(stage.task, home=home)) as box:
        report = box.restore("a")
        tell("restored", report.checkpoint, report.saved)


BOX_OPERATIONS = {
    found.name: found
    for found in (
        Operation(do_box_checkpoint, "box"),
        Operation(do_box_restore, "box"),
    )
}


def check_box(stage: Stage, told: Told) -> None:
    """Entering the box again is enough: its files are those of before or those of after."""
    with opened(stage.home_path) as home:
        task = Task.open(stage.task, home=home)
        was_restoring = task.status == "restoring"
        with Sandbox(task) as box:
            assert box.exec("cat edited", check=True).stdout in ("c\n", "first version\n")
            assert task.status != "restoring"
            now: Any = box.checkpoint("after")
            listed = {found.id: found for found in task.checkpoints()}
            for made in stage.before:
                assert listed[made].verify().ok
            for made, tree in told.of("checkpoint"):
                assert listed[made].tree == tree
            for _, saved in told.of("restored"):
                assert listed[saved].tree == stage.trees["c"]
            if was_restoring or told.of("restored"):
                assert now.tree == stage.trees["a"]
                assert stage.trees["c"] in {found.tree for found in listed.values()}
                assert not box.diff("a")
            else:
                assert now.tree in (stage.trees["a"], stage.trees["c"])
            box.restore("b")
            assert not box.diff("b")
        stage.age()
        home.gc()
        report = home.verify("content")
        assert report.ok, str(report)
    assert not stage.leftovers(), stage.leftovers()
