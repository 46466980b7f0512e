"""What a holder sees of its box and how it stops it, tried on children of a process of ours."""

from __future__ import annotations

import subprocess
import sys

# A holder is a process of its own, because it takes all its children for guests.
PRELUDE = """
import os, signal, subprocess, sys, time
from sandboxsdk.holder.guests import Guests, let_go
guests = Guests(plain=True)
def spawn(script):
    child = subprocess.Popen(["/bin/sh", "-c", "echo ready; " + script], stdout=subprocess.PIPE)
    child.stdout.readline()
    return child
def states():
    found = {}
    for guest in guests._look_around(())[0]:
        found.setdefault(guest.name, []).append(guest.still)
    return found
"""


def run(script: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", PRELUDE + script]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_nobody():
    """Without a child nobody is alive, nobody is killed, and nobody has to be stopped."""
    said = run("print(guests.alive(()), guests.kill(()), guests.stop((), (), lambda: False))")
    assert said == "False False Stopped(held=[], busy=False, moving='')\n"


def test_the_dead_are_not_alive():
    """A child that has ended and was not waited for is dead; the spared do not count."""
    said = run("""
one = spawn("exit 0")
while guests.alive(()): time.sleep(0.001)
two = spawn("exec sleep 60")
print(guests.alive(()), guests.alive((two.pid,)), guests.kill((two.pid,)), two.poll())
print(guests.kill(()), two.wait())
""")
    assert said == "True False False None\nTrue -9\n"


def test_parents_first_and_back():
    """All are stopped, parents before their children; who was stopped before is not let go."""
    said = run("""
spawn("sleep 60 & sleep 61 & wait")
own = spawn("exec sleep 62")
while len(states().get("sleep", [])) < 3: time.sleep(0.001)
own.send_signal(signal.SIGSTOP)
while sum(states()["sleep"]) < 1: time.sleep(0.001)
stopped = guests.stop((), (), lambda: False)
print([guest.name for guest in stopped.held], stopped.busy, repr(stopped.moving))
print(all(all(still) for still in states().values()))
let_go(stopped.held)
while sum(states()["sleep"]) > 1: time.sleep(0.001)
print(states()["sh"], sum(states()["sleep"]))
while guests.kill(()): time.sleep(0.001)
""")
    assert said == "['sh', 'sleep', 'sleep'] True ''\nTrue\n[False] 1\n"


def test_giving_up():
    """Whoever does not wait is told who moved, and what was stopped until then can be let go."""
    said = run("""
for _ in range(3): spawn("while :; do :; done")
stopped = guests.stop((), (), lambda: True)
print(stopped.busy, bool(stopped.moving), len(stopped.held))
let_go(stopped.held)
while any(states()["sh"]): time.sleep(0.001)
while guests.kill(()): time.sleep(0.001)
""")
    assert said == "True True 3\n"
