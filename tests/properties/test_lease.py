"""Whatever processes do to one task, at most one of them holds it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sandboxsdk.home import Home
from sandboxsdk.task import Task

WORKER = """
import sys
from sandboxsdk.errors import TaskLocked
from sandboxsdk.home import Home
from sandboxsdk.task import Task
sessions, task = [], None
for line in sys.stdin:
    word, *rest = line.split()
    if word == "open":
        for session in sessions: session.__exit__(None, None, None)
        sessions, task = [], Task.open(rest[1], home=Home(rest[0]))
        answer = "opened"
    elif word == "take":
        session = task.attach(timeout=float(rest[0]))
        try:
            session.__enter__()
            sessions.append(session)
            answer = "held"
        except TaskLocked as error:
            answer = "locked " + error.holder.split()[1]
    elif word == "give":
        sessions.pop(int(rest[0]) % len(sessions)).__exit__(None, None, None)
        answer = "given"
    print(answer, flush=True)
"""
COUNT = 3


class Worker:
    """A process that holds and lets go as it is told."""

    def __init__(self):
        paths = os.pathsep.join([os.getcwd(), *filter(None, sys.path)])
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )

    def ask(self, *words):
        self.process.stdin.write(f"{' '.join(map(str, words))}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self):
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.stdout.close()


class Machine(RuleBasedStateMachine):
    """A model of who holds how often, beside real processes."""

    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.home = Home(os.path.join(self.directory.name, "home"))
        self.task = Task.create("t", home=self.home)
        self.holds = [0] * COUNT
        self.stopped = set()
        while len(workers) < COUNT:
            workers.append(Worker())
        for worker in workers:
            assert worker.ask("open", self.home.path, self.task.id) == "opened"

    def teardown(self):
        for index in list(self.stopped):
            self.go_on(index)
        for worker, holds in zip(workers, self.holds, strict=True):
            for _ in range(holds):
                worker.ask("give", 0)
        self.directory.cleanup()

    def others(self, index):
        return [other for other, holds in enumerate(self.holds) if holds and other != index]

    @rule(index=st.integers(0, COUNT - 1), timeout=st.sampled_from([0, 0.001, 0.02]))
    def take(self, index, timeout):
        """It gets the task exactly when no other holds it, else the holder's name."""
        if index in self.stopped:
            return
        answer = workers[index].ask("take", timeout)
        others = self.others(index)
        if others:
            assert answer == f"locked {workers[others[0]].process.pid}"
        else:
            assert answer == "held"
            self.holds[index] += 1

    @precondition(lambda self: any(self.holds))
    @rule(which=st.integers(0, 9))
    def give(self, which):
        """One hold less; the last one frees it."""
        for index, holds in enumerate(self.holds):
            if holds and index not in self.stopped:
                assert workers[index].ask("give", which) == "given"
                self.holds[index] -= 1

    @rule(index=st.integers(0, COUNT - 1))
    def kill(self, index):
        """A dead process holds nothing."""
        workers[index].end()
        workers[index] = Worker()
        assert workers[index].ask("open", self.home.path, self.task.id) == "opened"
        self.holds[index] = 0
        self.stopped.discard(index)

    @rule(index=st.integers(0, COUNT - 1))
    def stop(self, index):
        """A stopped process holds on."""
        os.kill(workers[index].process.pid, signal.SIGSTOP)
        self.stopped.add(index)

    @precondition(lambda self: self.stopped)
    @rule(data=st.data())
    def resume(self, data):
        """It goes on as what it was."""
        self.go_on(data.draw(st.sampled_from(sorted(self.stopped))))

    def go_on(self, index):
        os.kill(workers[index].process.pid, signal.SIGCONT)
        self.stopped.discard(index)

    @invariant()
    def one_holder(self):
        """Never two."""
        assert sum(1 for holds in self.holds if holds) <= 1


workers: list[Worker] = []


def test_never_two_holders():
    """Taking, letting go, nesting, being killed and being stopped in any order keep one holder."""
    from hypothesis.stateful import run_state_machine_as_test

    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    try:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=10, stateful_step_count=12, suppress_health_check=checks
            ),
        )
    finally:
        while workers:
            workers.pop().end()
