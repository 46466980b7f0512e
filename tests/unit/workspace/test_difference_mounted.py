"""The diff against the kernel itself: random work in a real overlay, told from the upper alone.

The oracle compares all of the base with all that a process inside saw; it knows no overlays.
Run as a program, this module is the process inside: it mounts, works, and reports what it sees.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sandboxsdk import syscalls as sc

Operation = list[Any]
Facts = dict[str, list[Any]]


def work(operations: list[Operation]) -> None:
    """Do each operation in the current directory as far as it is possible."""
    for operation in operations:
        with suppress(OSError, shutil.Error):
            _do(*operation)


def _do(what: str, path: str, other: str, text: str, mode: int) -> None:
    if what == "write":
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        _write(path, os.O_TRUNC, text)
    elif what == "append":
        _write(path, os.O_APPEND, text)
    elif what == "touch":
        _write(path, 0, "")
    elif what == "chmod":
        _chmod(path, mode)
    elif what == "chmod twice":
        before = os.stat(path, follow_symlinks=False).st_mode
        _chmod(path, mode)
        _chmod(path, stat.S_IMODE(before))
    elif what == "mkdir":
        os.mkdir(path, 0o755)
    elif what == "mkdirs":
        os.makedirs(f"{path}/{other}")
    elif what == "remove":
        _remove(path)
    elif what == "replace":
        _remove(path)
        os.mkdir(path, 0o755)
        _write(f"{path}/{other.rpartition('/')[2]}", 0, text)
    elif what == "rename":
        _rename(path, other)
    elif what == "exchange":
        sc.renameat2(sc.AT_FDCWD, os.fsencode(path), sc.AT_FDCWD, os.fsencode(other), 2)
    elif what == "copy" and not f"{other}/".startswith(f"{path}/"):
        shutil.copytree(path, other, symlinks=True, dirs_exist_ok=True)
    elif what == "symlink":
        os.symlink(text, path)
    elif what == "link":
        os.link(path, other, follow_symlinks=False)
    elif what == "fifo":
        os.mkfifo(path)


def _write(path: str, flags: int, text: str) -> None:
    flags |= os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o644)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _chmod(path: str, mode: int) -> None:
    if os.path.islink(path):
        return
    # An ordinary user could not look into the directory from outside, which has a test of its own.
    os.chmod(path, mode | 0o500 if os.path.isdir(path) else mode)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _rename(old: str, new: str) -> None:
    try:
        os.rename(old, new)
    except OSError as error:
        if error.errno != 18 or new.startswith(f"{old}/"):
            raise
        # EXDEV: a directory of the base, so it goes the way that mv goes.
        os.mkdir(new)
        os.rmdir(new)
        shutil.copytree(old, new, symlinks=True)
        shutil.rmtree(old)


def facts(root: str) -> Facts:
    """Describe every entry below a directory."""
    found: Facts = {}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            kind, content = stat.S_IFMT(status.st_mode), ""
            if kind == stat.S_IFREG:
                with open(path, "rb") as file:
                    content = file.read().hex()
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            found[os.path.relpath(path, root)] = [kind, content, stat.S_IMODE(status.st_mode)]
    return found


def enter_namespaces() -> None:
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        sc.unshare(sc.CLONE_NEWNS)
    else:
        sc.unshare(sc.CLONE_NEWNS | sc.CLONE_NEWUSER)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
    sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)


def serve() -> None:
    """Mount and work for whoever writes requests to stdin; everything goes with this process."""
    try:
        enter_namespaces()
    except OSError as error:
        print(json.dumps(str(error)), flush=True)
        return
    print(json.dumps(""), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer: object = None
        if request["what"] == "work":
            os.chdir(request["directory"])
            work(request["operations"])
            os.chdir("/")
        elif request["what"] == "facts":
            answer = facts(request["directory"])
        elif request["what"] == "clear":
            shutil.rmtree(request["directory"])
        else:
            answer = _mounted(**request)
        print(json.dumps(answer), flush=True)


def _mounted(
    what: str, base: str, task: str, upper: str, work_dir: str, operations: list[Operation]
) -> Facts | str:
    paths = (base, f"{task}/{upper}", f"{task}/{work_dir}")
    opened = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in paths]
    options = [("userxattr", None), ("volatile", None), ("xino", "off")]
    mount = sc.overlay_mount(lowers=opened[:1], upper=opened[1], work=opened[2], options=options)
    target = f"{task}/mounted"
    os.makedirs(target, exist_ok=True)
    sc.move_mount(mount, target)
    for descriptor in (mount, *opened):
        os.close(descriptor)
    os.chdir(target)
    work(operations)
    answer = _refusal_of_a_home(f"{target}/home", base) if what == "home" else facts(".")
    os.chdir("/")
    sc.umount(target)
    return answer


def _refusal_of_a_home(directory: str, base: str) -> str:
    # Here, because no other request needs more of the library than its system calls.
    from sandboxsdk.errors import CapabilityError
    from sandboxsdk.layers import Layers
    from sandboxsdk.model import Workspace
    from sandboxsdk.workspace import OverlayWorkspace

    os.mkdir(directory)
    workspace = Workspace.private(base)
    try:
        OverlayWorkspace(
            workspace,
            directory=directory,
            scans=directory,
            layers=Layers(f"{directory}/layers", ()),
        ).prepare()
    except CapabilityError as error:
        return f"{error} {os.listdir(directory)}"
    return ""


if __name__ == "__main__":
    serve()
    sys.exit()

import pytest  # noqa: E402 - the process inside needs none of these
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sandboxsdk.layers import Layers  # noqa: E402
from sandboxsdk.model import Change, Workspace  # noqa: E402
from sandboxsdk.workspace import OverlayWorkspace  # noqa: E402


class Inside:
    """The process in namespaces of its own, and a directory to work in."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._counter = itertools.count()
        self._process = subprocess.Popen(
            [sys.executable, "-B", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
        )
        assert self._process.stdout is not None
        self.refusal = json.loads(self._process.stdout.readline())

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process inside died; it said why on stderr"
        return json.loads(answer)

    def new_directory(self) -> str:
        path = f"{self.directory}/{next(self._counter)}"
        os.makedirs(f"{path}/base")
        os.makedirs(f"{path}/task")
        return path

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def inside() -> Iterator[Inside]:
    with tempfile.TemporaryDirectory() as directory:
        process = Inside(directory)
        try:
            if process.refusal:
                pytest.skip(f"this host permits no namespaces: {process.refusal}")
            yield process
        finally:
            process.close()


def expected(base: Facts, seen: Facts) -> list[Change]:
    """Compare two whole trees, in the plainest way."""

    def size(fact: list[Any] | None) -> int | None:
        return len(fact[1]) // 2 if fact and fact[0] == stat.S_IFREG else None

    changes = {}
    for path in base.keys() | seen.keys():
        old, new = base.get(path), seen.get(path)
        if old == new:
            continue
        if old is None:
            kind = "added"
        elif new is None:
            kind = "removed"
        elif old[0] != new[0]:
            kind = "type"
        else:
            kind = "modified" if old[1] != new[1] else "mode"
        mode = (new or old or [0, 0, 0])[2]
        sizes = {"size": size(new), "old_size": size(old)}
        changes[path] = Change(kind=kind, path=path, mode=mode, **sizes)  # type: ignore[arg-type]
    added = [change.path for change in changes.values() if change.kind == "added" and change.size]
    added.sort(key=os.fsencode)
    for same_name in (True, False):
        for path in [p for p in added if changes[p].kind == "added"]:
            for old_path in sorted(base, key=os.fsencode):
                change = changes.get(old_path)
                fits = base[old_path][:2] == seen[path][:2]
                fits = fits and (not same_name or Path(old_path).name == Path(path).name)
                if fits and change is not None and change.kind == "removed":
                    del changes[old_path]
                    changes[path] = Change(
                        kind="renamed",
                        path=path,
                        old_path=old_path,
                        size=changes[path].size,
                        old_size=changes[path].size,
                        mode=changes[path].mode,
                    )
                    break
    return sorted(changes.values(), key=lambda change: os.fsencode(change.path))


# Few paths, so that operations meet; some sort around "/", some are no text.
_PATHS = st.sampled_from(
    (
        *("a", "b", "a-", "a/a", "a/b", "b/a", "a/a/a", "a/a/b", "b/a/a", "a/a/a/b"),
        *("a/new\nline", "b/\udcff", "b/\U0001f600"),
    )
)
_TEXTS = st.sampled_from(["", "one", "two", "longer text"])
_MODES = st.sampled_from([0o644, 0o600, 0o755, 0o700, 0o500, 0o400, 0o4755, 0o1777])
_WORK = (
    "append",
    "chmod",
    "chmod twice",
    "copy",
    "exchange",
    "fifo",
    "link",
    "mkdir",
    "mkdirs",
    "remove",
    "remove",
    "rename",
    "rename",
    "replace",
    "symlink",
    "touch",
    "write",
    "write",
)
_OPERATIONS = st.tuples(st.sampled_from(_WORK), _PATHS, _PATHS, _TEXTS, _MODES).map(list)
_MAKE = ("write", "write", "write", "mkdirs", "replace", "symlink", "link", "fifo", "chmod")
_CREATIONS = st.tuples(st.sampled_from(_MAKE), _PATHS, _PATHS, _TEXTS, _MODES).map(list)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    creations=st.lists(_CREATIONS, min_size=4, max_size=12),
    sessions=st.lists(st.lists(_OPERATIONS, min_size=1, max_size=12), min_size=1, max_size=2),
)
def test_diff_of_the_upper_is_the_diff_of_the_whole_trees(
    inside: Inside, creations: list[Operation], sessions: list[list[Operation]]
) -> None:
    """Whatever is done inside, over several mounts, the upper alone tells it all."""
    directory = inside.new_directory()
    base = f"{directory}/base"
    inside.ask(what="work", directory=base, operations=creations)
    before = inside.ask(what="facts", directory=base)
    workspace = _workspace(base, directory)
    for operations in sessions:
        seen = _enter(inside, workspace, operations)
        assert workspace.diff() == expected(before, seen)
    assert inside.ask(what="facts", directory=base) == before
    inside.ask(what="clear", directory=directory)


def test_work_that_changes_nothing_is_no_change(inside: Inside) -> None:
    """Touch, writing the same again and chmod there and back copy files up, and are no change."""
    directory = inside.new_directory()
    base = f"{directory}/base"
    creations = [["write", "a", "", "one", 0], ["mkdirs", "d", "e", "", 0]]
    inside.ask(what="work", directory=base, operations=creations)
    workspace = _workspace(base, directory)
    operations = [
        ["touch", "a", "", "", 0],
        ["write", "a", "", "one", 0],
        ["chmod twice", "a", "", "", 0o600],
        ["chmod twice", "d/e", "", "", 0o700],
        ["remove", "d", "", "", 0],
        ["mkdirs", "d", "e", "", 0],
    ]
    _enter(inside, workspace, operations)
    assert sorted(os.listdir(f"{directory}/task/upper")) == ["a", "d"]
    assert workspace.diff() == []


def test_empty_workspace_tells_everything_as_added(inside: Inside) -> None:
    """A view of nothing mounts on its own empty directory, and all that is in it was added."""
    directory = inside.new_directory()
    workspace = _workspace(None, directory)
    _enter(inside, workspace, [["mkdirs", "d", "e", "", 0], ["write", "d/f", "", "text", 0]])
    assert [str(change) for change in workspace.diff()] == ["+ d", "+ d/e", "+ d/f  (4 B)"]
    assert workspace.disk_bytes() > 0


def test_home_on_an_overlay_is_refused_early(inside: Inside) -> None:
    """In a container's own root no view can be stored: said before anything is mounted."""
    directory = inside.new_directory()
    workspace = _workspace(f"{directory}/base", directory)
    refusal = _enter(inside, workspace, [], what="home")
    assert "its file system (overlay) cannot be the upper layer" in refusal
    assert "SANDBOXSDK_HOME" in refusal


def _workspace(base: str | None, directory: str) -> OverlayWorkspace:
    workspace = Workspace.private(base)
    return OverlayWorkspace(
        workspace,
        directory=f"{directory}/task",
        scans=directory,
        layers=Layers(f"{directory}/layers", ()),
    )


def _enter(
    inside: Inside, workspace: OverlayWorkspace, operations: list[Operation], what: str = "work in"
) -> Any:
    view = workspace.prepare()
    return inside.ask(
        what=what,
        base=view.base.path,
        task=view.task.path,
        upper=view.upper,
        work_dir=view.work,
        operations=operations,
    )
