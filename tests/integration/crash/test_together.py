"""Several processes in one home at once, killed now and then: nothing acknowledged is lost."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandboxsdk import Home, Task, Workspace

from .stage import Stage, clear, look, opened
from .tracing import environment

_SECONDS = 12.0


class _Programs:
    """Programs that are started again whenever they were killed."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._commands: dict[str, str] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._number = 0
        self._around = environment()
        place = str(Path(__file__).resolve().parents[1])
        self._around["PYTHONPATH"] = os.pathsep.join((place, self._around["PYTHONPATH"]))
        self.kills = 0

    def start(self, name: str, command: str) -> None:
        self._commands[name] = command
        self._number += 1
        out = open(self._log / f"{name}.{self._number}", "wb")  # noqa: SIM115 - the program's
        errors = open(self._log / f"errors.{name}.{self._number}", "wb")  # noqa: SIM115
        code = f"from crash.together import *; {command.replace('SEED', str(self._number))}"
        with out, errors:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-c", code], env=self._around, stdout=out, stderr=errors
            )

    def kill(self, name: str) -> None:
        program = self._running.pop(name)
        assert program.poll() is None, f"{name} has ended: {self.errors()}"
        program.send_signal(signal.SIGKILL)
        program.wait()
        self.kills += 1

    def again(self, name: str) -> None:
        self.kill(name)
        self.start(name, self._commands[name])

    def kill_all(self) -> None:
        for name in list(self._running):
            self.kill(name)

    def end(self) -> None:
        for program in self._running.values():
            program.kill()
            program.wait()

    def said(self, name: str) -> list[list[str]]:
        """Give what all programs of this name have said, in order."""
        paths = sorted(self._log.glob(f"{name}.*"), key=lambda path: int(path.suffix[1:]))
        return [line.split(" ") for path in paths for line in path.read_text().splitlines()]

    def errors(self) -> str:
        return "".join(path.read_text() for path in sorted(self._log.glob("errors.*")))


@pytest.mark.timeout(180)
def test_processes_together_lose_nothing(tmp_path):
    """While two processes make checkpoints in one home and a third collects and verifies, each
    killed now and then, everything acknowledged is there in the end, and exact.
    """
    stage = Stage(tmp_path, tmp_path).build("fresh")
    (tmp_path / "log").mkdir()
    programs = _Programs(tmp_path / "log")
    tasks: dict[str, str] = {}
    home = Home(stage.home_path)
    try:
        for name in ("first", "second"):
            directory = tmp_path / f"files-{name}"
            directory.mkdir()
            tasks[name] = Task.create(name, workspace=Workspace.direct(directory), home=home).id
            programs.start(
                name, f"work({str(stage.home_path)!r}, {tasks[name]!r}, {str(directory)!r}, 'SEED')"
            )
        programs.start("collector", f"collect({str(stage.home_path)!r})")
        chance = random.Random(11)
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            time.sleep(0.5 + chance.random())
            programs.again(chance.choice(["first", "second", "collector"]))
        programs.kill_all()
    finally:
        programs.end()
    assert not programs.errors(), programs.errors()
    said = programs.said("collector")
    verified = [" ".join(facts[1:]) for facts in said if facts[0] == "verified"]
    assert verified
    assert set(verified) == {"ok"}, verified
    collected = [facts for facts in said if facts[0] == "collected"]
    made = 0
    with opened(stage.home_path) as home:
        report = home.verify("content")
        assert report.ok, str(report)
        for name, task_id in tasks.items():
            made += _check(stage, Task.open(task_id, home=home), programs.said(name))
        home.gc()
        assert home.verify("content").ok
    print(
        f"{made} checkpoints acknowledged, {len(collected)} collections, {len(verified)} checks,"
        f" {programs.kills} kills"
    )
    assert made >= 20
    assert any(facts[1] != "0" or facts[2] != "0" for facts in collected), "nothing was collected"


def _check(stage: Stage, task: Task, said: list[list[str]]) -> int:
    """Check a task's checkpoints against what was acknowledged; gives how many that were."""
    made = {facts[1]: facts[2:] for facts in said if facts[0] == "made"}
    going = {facts[1] for facts in said if facts[0] == "going"}
    gone = {facts[1] for facts in said if facts[0] == "gone"}
    listed = {found.id: found for found in task.checkpoints()}
    assert not gone & listed.keys(), "a deleted checkpoint is back"
    assert made.keys() - going <= listed.keys(), "a checkpoint is lost"
    for found in listed.values():
        clear(stage.out)
        found.restore_to(stage.out)
        restored = look(stage.out)
        unique = restored.pop(b"unique")
        if found.id in made:
            tree, state, digest = made[found.id]
            assert found.tree == tree
            assert restored == stage.seen[state]
            assert hashlib.sha256(unique[2]).hexdigest() == digest
        else:
            # Written, and killed before it could say so.
            assert restored in stage.seen.values()
    return len(made)
