"""The command line: what a person types, and what the screen shows.

Knows the public API alone; must not know how a task is stored or how a box is made.

Invariants: exit codes are 0 (done), 1 (a SandboxError, told with its hint), 2 (typed wrongly),
130 (Ctrl-C); what `--json` prints is one JSON document of plain ASCII; no control character of a
name or a path reaches the terminal.
"""

from .program import main

__all__ = ["main"]
