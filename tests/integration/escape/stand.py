"""Where attempts take place: boxes that are made once for many rows, and the attacker program.

What the attacker says is kept, so that forty rows cost two runs of it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from sandboxsdk import Home, Limits, Process, Sandbox

SOURCE = Path(__file__).resolve().parents[2] / "programs" / "probe.c"
MIB = 1024**2
PROBE = "/workspace/probe"


def complain(found: Mapping[str, str], wanted: set[str]) -> None:
    """Fail with every attempt that was answered otherwise."""
    wrong = {name: answer for name, answer in found.items() if answer not in wanted}
    assert found, "nothing was probed"
    assert not wrong, f"wanted {' or '.join(sorted(wanted))}, but: {wrong}"


def parsed(text: str) -> dict[str, str]:
    """Read lines of "name answer"."""
    lines = (line.partition(" ") for line in text.splitlines() if line)
    return {name: answer for name, _blank, answer in lines}


class Stand:
    """Boxes and the attacker; everything is made when it is first asked for.

    Attributes:
        canary: a word that is in the environment of this process and must be in no box.
        table: a line for each row that was tried.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.canary = f"canary-{os.urandom(8).hex()}"
        self.table: list[str] = []
        self.home = Home(directory / "home")
        self._stack = contextlib.ExitStack()
        self.base = directory / "a-workspace-of-the-host"
        self.base.mkdir()

    def close(self) -> None:
        self._stack.close()

    @functools.cached_property
    def program(self) -> Path:
        return self.compiled("probe")

    def compiled(self, name: str, *options: str) -> Path:
        program = self.directory / name
        command = ["cc", "-O1", "-Wall", "-Werror", *options, "-o", str(program), str(SOURCE)]
        subprocess.run([*command, "-lpthread"], check=True)
        return program

    def enter(self, **options: object) -> Sandbox:
        """Make a box that lives as long as the stand, with the attacker in its workspace."""
        workspace = options.pop("workspace", None)
        box = Sandbox(workspace, home=self.home, **options)  # type: ignore[arg-type]
        self._stack.enter_context(box)
        box.files.upload(self.program, "probe")
        return box

    @functools.cached_property
    def box(self) -> Sandbox:
        """The box of every row that needs no other, over a directory of the host."""
        return self.enter(workspace=self.base, limits=Limits(open_files=256))

    @functools.cached_property
    def small(self) -> Sandbox:
        """A box with tight limits."""
        limits = Limits(memory=64 * MIB, pids=32, disk=8 * MIB, open_files=64, cpus=0.5)
        return self.enter(limits=limits)

    def ask(
        self, *arguments: str, user: str = "sandbox", box: Sandbox | None = None
    ) -> dict[str, str]:
        """Run the attacker and give what it said."""
        result = (box or self.box).exec([PROBE, *arguments], user=user, timeout=20)
        assert result.reason == "exit", result
        assert result.exit_code == 0, result
        return parsed(result.stdout)

    def sh(self, script: str, *, box: Sandbox | None = None) -> str:
        """Run a shell in the box; gives all that it printed."""
        result = (box or self.box).exec(script, timeout=20)
        return result.stdout + result.stderr

    @functools.cache  # noqa: B019 - there is one stand, and it lives as long as the tests
    def calls(self, user: str) -> dict[str, str]:
        return self.ask("calls", "/tmp", "0" if user == "sandbox" else "1234", user=user)

    @functools.cache  # noqa: B019 - as above
    def said(self, group: str) -> dict[str, str]:
        """Run a group of attempts in a directory of their own."""
        self.box.files.mkdir(f"places/{group}")
        return self.ask(group, f"/workspace/places/{group}")

    def spawn(self, *arguments: str, box: Sandbox | None = None) -> Process:
        return self._stack.enter_context((box or self.box).spawn([PROBE, *arguments]))


def host_processes(word: str) -> list[int]:
    """Give the processes of the host, this one not, that have a word in their arguments."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                if word.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
    return found
