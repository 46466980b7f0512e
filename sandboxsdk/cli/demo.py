"""The demo: a task on a real directory, commands that do damage in it, and the way back.

Every figure that it shows is measured while it runs, and every claim is checked.
"""

from __future__ import annotations

import functools
import os
import shlex
import signal
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from sandboxsdk import clock
from sandboxsdk.checkpoint import Checkpoint
from sandboxsdk.errors import Denied
from sandboxsdk.home import Home
from sandboxsdk.model import Change
from sandboxsdk.sandbox import Sandbox
from sandboxsdk.task import Task
from sandboxsdk.units import format_seconds, format_size

from .screen import Screen, cells, printable
from .survey import Survey

T = TypeVar("T")

_PROGRAM = "python -m sandboxsdk"
_STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_COMMAND_SECONDS_MAX = 120.0
_EDITED_MAX = 200  # files
_REMOVED_MAX = 20_000  # entries; the diff lists each of them
_OUTPUT = "demo-build"
_ATTEMPTS = 3
_COPIED_MAX = 20_000  # files
_RENAMING = r"s/\bself\b/this/g"
_APPENDING = "$ a edited in a sandbox"
_VERBS = {"modified": "~", "removed": "-", "added": "+", "renamed": ">", "type": "~", "mode": "~"}
_ESCAPES = (
    "cat /etc/shadow",
    "touch /usr/bin/env",
    "mount -t tmpfs none /usr",
    "bash -c ': < /dev/tcp/1.1.1.1/443'",
)


def demo(directory: str | None, home: Home, screen: Screen, *, keep: bool) -> int:
    """Show on a directory (None: Python's own library) what a sandbox is; give the exit code.

    Raises:
        SandboxError: a box cannot be made here, or the directory cannot be worked on.
    """
    # Modules that we import from now on must not be cached in the very directory that we watch.
    sys.dont_write_bytecode = True
    named = sysconfig.get_path("stdlib") if directory is None else directory
    # What cannot be a workspace is refused here, before we walk through all of it.
    with _uninterrupted():
        Task.create("demo", workspace=named, home=home).delete()
    root = os.path.realpath(named)
    screen.say(f"{screen.paint('sandboxsdk demo', 'bold')} on {printable(root)}")
    before = Survey(root)
    screen.say(f"{before}")
    with _uninterrupted() as interruptible:
        task, seconds = _timed(lambda: Task.create("demo", name="demo", workspace=root, home=home))
        try:
            screen.step("Create a task", format_seconds(seconds))
            screen.tell(f"a private view of {before.entries:,} entries; none was copied or read")
            with Sandbox(task) as box, interruptible():
                _open(box, screen)
                kept = _keep(box, screen)
                _build(box, before, screen, renaming=directory is None)
                changes = _diff(box, screen)
                fine = kept is None or (
                    _goes_back(box, kept, screen)
                    and _attempts(box, kept, before, screen)
                    and _gives_back(box, kept, screen)
                )
                fine = _is_untouched(root, before, screen) and fine
                fine = _is_tight(box, screen) and fine
        except BaseException:
            keep = False
            raise
        finally:
            seconds = 0.0 if keep else _timed(task.delete)[1]
    if keep:
        screen.step("Keep the task")
        screen.tell(f"see: {_PROGRAM} log {task.id} --home {_quoted(home.path)}")
    else:
        screen.step("Undo: delete the task", format_seconds(seconds))
        gone = not os.path.lexists(task.directory)
        fine = fine and gone
        what = f"nothing is left of {len(changes):,} changes" if gone else "something is left"
        screen.judge(gone, what)
    if directory is None:
        screen.say(f"\nOn a directory of yours: {_PROGRAM} demo DIRECTORY")
    return 0 if fine else 1


def _open(box: Sandbox, screen: Screen) -> None:
    about, seconds = _timed(box.describe)
    screen.step("Open a box", format_seconds(seconds))
    user, network = about.user.partition(" inside")[0], about.network.partition(":")[0]
    screen.tell(f"{about.runtime} {about.version}; {user}; network: {network}; view: /workspace")


def _keep(box: Sandbox, screen: Screen) -> Checkpoint | None:
    """Make a checkpoint; None if something in the directory may not be read."""
    box.on("progress", lambda seen: screen.progress(f"{seen['files']:,} files read"))
    try:
        kept, seconds = _timed(lambda: box.checkpoint("before the build"))
    except Denied as error:
        screen.step("Make no checkpoint")
        screen.judge(False, printable(str(error).split("\n")[0]))
        return None
    finally:
        screen.progress("")
    screen.step("Make a checkpoint: all files, safe on disk", format_seconds(seconds))
    stats = kept.stats
    new = format_size(stats.new_bytes)
    screen.tell(f"{stats.files:,} files, {format_size(stats.bytes)}, stored in {new}")
    again, seconds = _timed(box.checkpoint)
    screen.tell("the first one reads the directory; after that", format_seconds(seconds))
    again.delete()
    return kept


def _goes_back(box: Sandbox, kept: Checkpoint, screen: Screen) -> bool:
    """Restore the checkpoint, and compare."""
    report, seconds = _timed(lambda: box.restore(kept))
    screen.step("Go back to the checkpoint", format_seconds(seconds))
    screen.tell(f"{report.written:,} entries written, {report.removed:,} removed")
    same = not box.diff(kept) and not box.diff()
    screen.judge(same, "every file is as it was" if same else "something is not as it was")
    screen.tell(f"what was there instead is kept too: checkpoint {report.saved}")
    return same


def _attempts(box: Sandbox, kept: Checkpoint, before: Survey, screen: Screen) -> bool:
    """Let three boxes try something at once, and take the best back."""
    forks, seconds = _timed(lambda: box.fork(_ATTEMPTS, at=kept))
    screen.step(f"Fork {_ATTEMPTS} attempts", format_seconds(seconds))
    screen.tell("each has all files of the checkpoint and sees nothing of the others")
    sizes: list[tuple[int, int, Checkpoint]] = []
    texts = b"".join(os.fsencode(f"./{path}") + b"\0" for path in before.texts[:_EDITED_MAX])
    for number, fork in enumerate(forks, 1):
        level = number * 3
        script = f"mkdir -p {_OUTPUT}; xargs -0 cat | gzip -{level} > {_OUTPUT}/attempt.gz"
        run = functools.partial(fork.exec, script, input=texts, check=True)
        seconds = _timed(run)[1]
        size = fork.files.stat(f"{_OUTPUT}/attempt.gz").size
        sizes.append((size, number, fork.checkpoint(f"attempt {number}")))
        screen.tell(f"$ gzip -{level}: {format_size(size)}", format_seconds(seconds))
    size, number, best = min(sizes, key=lambda one: one[:2])
    report, seconds = _timed(lambda: box.restore(best, kill=True))
    same = box.files.stat(f"{_OUTPUT}/attempt.gz").size == size
    screen.tell(f"take attempt {number} back: {report.written} written", format_seconds(seconds))
    return same


def _gives_back(box: Sandbox, kept: Checkpoint, screen: Screen) -> bool:
    """Apply the changes to a copy of the directory, and take them back."""
    if kept.stats.files > _COPIED_MAX:
        screen.step("Apply the changes")
        screen.tell(
            "too many files to copy for a demo; task.apply() writes to the directory itself"
        )
        return True
    changes = box.diff(kept)
    with tempfile.TemporaryDirectory(prefix="sandboxsdk-demo-") as place:
        copy = os.path.join(place, "copy")
        _, seconds = _timed(lambda: kept.restore_to(copy))
        before = _listing(copy)
        screen.step("Apply the changes to a copy of the directory", "")
        screen.tell(f"the copy: {kept.stats.files:,} files", format_seconds(seconds))
        report, seconds = _timed(lambda: box.task.apply(to=copy))
        done = [change.path for change in report.changes] == [change.path for change in changes]
        screen.tell(f"{len(report.changes):,} changes written", format_seconds(seconds))
        _, seconds = _timed(report.undo)
        undone = _listing(copy) == before
        screen.tell("and taken back", format_seconds(seconds))
        fine = done and undone
        what = "all of them were there, and the copy is as it was"
        screen.judge(fine, what if fine else "something is not as it was")
    return fine


def _listing(root: str) -> list[tuple[str, int, int, int]]:
    """Tell path, mode, size and time of everything below a directory."""
    found = []
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            about = os.lstat(path)
            size = 0 if name in folders else about.st_size
            found.append((path, about.st_mode, size, about.st_mtime_ns))
    return sorted(found)


def _build(box: Sandbox, before: Survey, screen: Screen, *, renaming: bool) -> None:
    """Edit texts, build something out of them, and remove a lot."""
    expression = _RENAMING if renaming else _APPENDING
    texts = [path for path in before.texts if path.endswith(".py") or not renaming]
    folders = {n: s for n, s in before.folders.items() if s <= _REMOVED_MAX and n[0] not in "._"}
    victim = max(folders, key=folders.__getitem__, default=None)
    if victim is not None:
        removed = [victim]
        texts = [path for path in texts if not path.startswith(f"{victim}/")]
    else:  # Nothing but files, or the folders are somebody else's: then half of the files.
        removed, texts = texts[1::2], texts[::2]
    texts = texts[:_EDITED_MAX]
    lines: list[tuple[str, str]] = []
    total = 0.0
    for command, paths, output in (
        (f"sed -i {_quoted(expression)}", texts, ""),
        ("mkdir -p", [_OUTPUT], ""),
        ("wc -l", texts, f" > {_OUTPUT}/lines.txt"),
        ("gzip -c", texts, f" > {_OUTPUT}/texts.gz"),
        ("rm -rf", removed, ""),
    ):
        if not paths:
            continue
        # By standard input: names may hold anything, and there may be many.
        names = b"".join(os.fsencode(f"./{path}") + b"\0" for path in paths)
        script = f"xargs -0 {command}{output}"
        result = box.exec(script, input=names, timeout=_COMMAND_SECONDS_MAX)
        total += result.duration
        cost = format_seconds(result.duration)
        shown = screen.names(paths, screen.room - cells(f"$ {command} {output}  {cost}"))
        lines.append((f"$ {command} {shown}{output}", cost))
        if not result.ok:
            lines.append((f"  {screen.fit(_first_line(result.stderr), screen.room - 2)}", ""))
    screen.step("Run a build step that goes wrong", format_seconds(total))
    for line, cost in lines:
        screen.tell(line, cost)
    if before.fixed:
        screen.tell("(what belongs to another user, or is read-only, stays so in the box)")


def _diff(box: Sandbox, screen: Screen) -> Sequence[Change]:
    changes, seconds = _timed(box.diff)
    screen.step("See what changed", format_seconds(seconds))
    for kind, sign in _VERBS.items():
        paths = [change.path for change in changes if change.kind == kind]
        if paths:
            head = f"{sign} {len(paths):>6,} {kind:<10}"
            shown = screen.names(paths, screen.room - cells(head), count=False)
            screen.tell(screen.change(head) + shown)
    disk = box.stats().disk_bytes
    if disk is not None:
        screen.tell(f"kept beside the directory: {format_size(disk)}")
    return changes


def _is_untouched(root: str, before: Survey, screen: Screen) -> bool:
    """Walk through the directory again and compare."""
    now = Survey(root)
    same = now.fingerprint == before.fingerprint
    screen.step("Look at the directory itself")
    screen.tell(f"before  {before}")
    screen.tell(f"now     {now}")
    screen.judge(same, "nothing in it was written" if same else "somebody changed it meanwhile")
    return same


def _is_tight(box: Sandbox, screen: Screen) -> bool:
    screen.step("Try to break out, as root of the box")
    tight = True
    for command in _ESCAPES:
        result = box.exec(command, user="root", timeout=_COMMAND_SECONDS_MAX)
        tight = tight and not result.ok
        reason = _first_line(result.stderr).rpartition(": ")[2].rstrip(".")
        answer = "it worked!" if result.ok else reason
        screen.judge(not result.ok, f"$ {command}", answer)
    return tight


def _first_line(stderr: str) -> str:
    return printable(stderr.strip().partition("\n")[0])


def _quoted(text: str) -> str:
    return printable(shlex.quote(text))


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    began = clock.monotonic()
    result = call()
    return result, clock.monotonic() - began


@contextmanager
def _uninterrupted() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Hold signals that end us back in this block, except in blocks of what it gives.

    So there is no moment at which a task exists that nobody is going to delete.
    """

    @contextmanager
    def interruptible() -> Iterator[None]:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)

    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield interruptible
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
