"""What checkpoints cost on a tree, beside git and restic doing the same to a copy of it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from sandboxsdk.home import Home
from sandboxsdk.model import Workspace
from sandboxsdk.sandbox import Sandbox
from sandboxsdk.task import Task

from .measuring import Figure, Taken

_CHANGED = 20
_PEERS = ("git", "restic")


def checkpoints(base: str, home: Home, *, rounds: int) -> list[Figure]:
    """Time first, unchanged and changed checkpoints, and going back, of each in turn.

    The private workspace and the direct one lie over copies of their own, so that no cache of one
    helps the other; each peer has a copy too. Everything is in the page cache.
    """
    scratch = Path(home.path).parent
    sides: list[Side] = [Private(base, home)]
    sides += [kind(copied(base, scratch / kind.name), home) for kind in (_Direct, Git, Restic)]
    taken = Taken()
    try:
        for side in sides:
            taken.timed("first checkpoint", side.name, side.keep)
        for turn in range(rounds):
            for side in sides:
                taken.timed("nothing changed", side.name, side.keep)
            for side in sides:
                side.change(turn)
                taken.timed("20 files changed", side.name, side.keep)
            for side in sides:
                if side.goes_back:
                    side.change(turn + rounds)
                    taken.timed("those 20 back, in place", side.name, side.go_back)
        for side in sides:
            taken.timed("all into a new directory", side.name, lambda s=side: s.restore(scratch))
            side.compare(scratch)
    finally:
        for side in sides:
            side.end()
    return taken.figures(*_PEERS)


def copied(base: str, target: Path) -> str:
    subprocess.run(["cp", "-a", base, str(target)], check=True)
    return str(target)


def _listing(directory: str) -> list[bytes]:
    """Say of every entry what a restore must give back."""
    form = "%P %y %m %T@ %l %n %s\\n"
    command = ["find", directory, "-mindepth", "1", "-type", "d", "-printf", "%P %y %m\\n"]
    folders = subprocess.run(command, check=True, capture_output=True).stdout
    command = ["find", directory, "-not", "-type", "d", "-printf", form]
    return sorted(
        (folders + subprocess.run(command, check=True, capture_output=True).stdout).split(b"\n")
    )


def _regular_files(root: str) -> Iterator[str]:
    """Give what can be changed: a repository that comes with the tree would be broken by it."""
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        with os.scandir(os.path.join(root, inner)) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    yield os.path.join(inner, entry.name)
                elif entry.is_dir(follow_symlinks=False) and entry.name != ".git":
                    waiting.append(os.path.join(inner, entry.name))


class Side:
    """One of those that are compared."""

    name = ""
    goes_back = True

    def __init__(self, root: str, home: Home) -> None:
        self.root, self.home = root, home
        self.names = sorted(_regular_files(root))
        self.files = self.spread(_CHANGED)

    def spread(self, count: int) -> list[str]:
        """Give so many files from all over the tree."""
        return self.names[:: max(len(self.names) // count, 1)][:count]

    def change(self, turn: int, files: Sequence[str] | None = None) -> None:
        for name in self.files if files is None else files:
            with open(os.path.join(self.root, name), "a") as file:
                file.write(f"turn {turn}\n")

    def keep(self) -> None: ...

    def go_back(self) -> None: ...

    def restore(self, scratch: Path) -> None: ...

    def compare(self, scratch: Path) -> None: ...

    def end(self) -> None: ...


class _Ours(Side):
    def __init__(self, root: str, home: Home) -> None:
        super().__init__(root, home)
        self.task = Task.create("bench", workspace=self.workspace(), home=home)
        self.box = Sandbox(self.task).__enter__()
        self.box.exec(["true"], check=True)

    def workspace(self) -> Workspace:
        return Workspace.private(self.root)

    def keep(self) -> None:
        self.last = self.box.checkpoint()

    def go_back(self) -> None:
        self.box.restore(self.last, save_current=False)

    def restore(self, scratch: Path) -> None:
        self.last.restore_to(scratch / f"{self.name}-out")

    def end(self) -> None:
        self.box.__exit__(None, None, None)
        self.task.delete()


class Private(_Ours):
    name = "private"

    def change(self, turn: int, files: Sequence[str] | None = None) -> None:
        wanted = self.files if files is None else files
        script = "".join(f"echo 'turn {turn}' >> {shlex.quote(name)}\n" for name in wanted)
        # Not as an argument: one has at most 128 KiB.
        self.box.exec(["sh"], input=script.encode(), check=True)


class _Direct(_Ours):
    name = "direct"

    def workspace(self) -> Workspace:
        return Workspace.direct(self.root)

    def compare(self, scratch: Path) -> None:
        assert _listing(self.root) == _listing(str(scratch / f"{self.name}-out"))
        assert self.last.verify().ok


class Git(Side):
    name = "git"

    def __init__(self, root: str, home: Home) -> None:
        super().__init__(root, home)
        shutil.rmtree(os.path.join(root, ".git"), ignore_errors=True)
        self.repository = f"{root}.git"
        subprocess.run(["git", "init", "-q", "--bare", self.repository], check=True)

    def _run(self, *arguments: str) -> str:
        command = ["git", f"--git-dir={self.repository}", f"--work-tree={self.root}", *arguments]
        done = subprocess.run(command, check=True, capture_output=True, cwd=self.root, text=True)
        return done.stdout.strip()

    def begin(self) -> None:
        """Keep all of it for the first time: what lies in a pack, `add` writes into no file."""
        command = ["git", f"--git-dir={self.repository}", "-c", "core.compression=1"]
        command += ["fast-import", "--quiet", "--depth=0"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as packing:
            assert packing.stdin is not None
            for name in self.names:
                content = Path(self.root, name).read_bytes()
                packing.stdin.write(b"blob\ndata %d\n%s\n" % (len(content), content))
        assert packing.returncode == 0
        self.keep()

    def keep(self) -> None:
        self._run("add", "-A", "-f")
        self._run("write-tree")

    def go_back(self) -> None:
        self._run("checkout-index", "-f", "-a")

    def restore(self, scratch: Path) -> None:
        self._run("checkout-index", "-a", f"--prefix={scratch}/{self.name}-out/")

    def commit(self) -> str:
        """Commit what is kept, to no branch."""
        named = ["-c", "user.name=n", "-c", "user.email=a@b"]
        return self._run(*named, "commit-tree", "-m", "kept", self._run("write-tree"))

    def worktree(self, path: str, commit: str) -> None:
        self._bare("worktree", "add", "-q", "--detach", path, commit)

    def no_worktree(self, path: str) -> None:
        self._bare("worktree", "remove", "--force", path)

    def _bare(self, *arguments: str) -> None:
        command = ["git", f"--git-dir={self.repository}", *arguments]
        subprocess.run(command, check=True, capture_output=True)


class Restic(Side):
    name = "restic"
    goes_back = False  # Older releases fail where a symbolic link is there already.

    def __init__(self, root: str, home: Home) -> None:
        super().__init__(root, home)
        self.repository = f"{root}.restic"
        self._run("init")

    def _run(self, *arguments: str) -> None:
        environment = {
            **os.environ,
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_CACHE_DIR": f"{self.repository}.cache",
        }
        command = ["restic", "-q", "-r", self.repository, *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=self.root, env=environment)

    def keep(self) -> None:
        self._run("backup", ".")

    def restore(self, scratch: Path) -> None:
        self._run("restore", "latest", "--target", str(scratch / f"{self.name}-out"))
