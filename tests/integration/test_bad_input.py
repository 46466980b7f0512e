"""Wrong input gets a typed error with a remedy, and nothing is changed."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxsdk import Home, Limits, Sandbox, SandboxError, Task, UsageError, Workspace
from sandboxsdk.clock import monotonic, pause
from sandboxsdk.errors import CapabilityError, TaskLocked, TaskNotFound, WorkspaceInvalid

NAN, INF = float("nan"), float("inf")


class Odd:
    """A value of no known type, which cannot even be shown."""

    def __repr__(self):
        raise RuntimeError("not shown")


ODD = [5, 0, -1, 10**5000, 1.5, NAN, INF, True, False, b"x", "text", "", [], [5], {}, {5: 5}, Odd()]
SETTINGS = ("image", "limits", "network", "secrets", "env", "mounts", "runtime", "home")
# Values that are right, or mean nothing given, for this setting.
RIGHT = {
    "env": lambda v: v == {},
    "secrets": lambda v: v == [] and isinstance(v, list),
    "mounts": lambda v: v == [] and isinstance(v, list),
    "labels": lambda v: v == {},
    "name": lambda v: v == "text",
    "description": lambda v: isinstance(v, str),
}


def shown(value):
    return f"{type(value).__name__}-{str(value)[:12] if not isinstance(value, Odd | int) else ''}"


def wrong(name):
    right = RIGHT.get(name, lambda _: False)
    return [
        pytest.param(name, value, id=f"{name}-{index}-{shown(value)}")
        for index, value in enumerate(ODD)
        if not right(value)
    ]


def snapshot(path):
    found = {}
    for base, dirs, names in os.walk(path):
        for name in [".", *dirs, *names]:
            status = os.lstat(os.path.join(base, name))
            # Of a lock file, only the time may change.
            when = 0 if name == "sweep.lock" else status.st_mtime_ns
            found[base, name] = (status.st_ino, status.st_mode, status.st_size, when)
    return found


@pytest.fixture
def unchanged(home, tmp_path):
    """A home with a task, and whatever lies beside it, as they are."""
    Task.create("there before", name="before", home=home)
    home.sweep()  # makes its lock file, once for all
    Task.list(home=home)  # and the registry
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "file").write_text("mine")
    before = snapshot(tmp_path)
    yield
    assert snapshot(tmp_path) == before


def refused(call, *kinds):
    with pytest.raises(kinds or UsageError) as caught:
        call()
    error = caught.value
    assert isinstance(error, SandboxError)
    assert error.hint
    assert error.code
    text = str(error)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert str(pickle.loads(pickle.dumps(error))) == text or "<" in text or "object at" in text
    return error


@pytest.mark.usefixtures("unchanged")
class TestWorkspace:
    @pytest.fixture(params=["create", "Sandbox", "direct"])
    def use(self, request, home):
        """Each way in which a directory is named; a Sandbox looks at it when it is entered."""

        def box(path):
            with Sandbox(path, home=home) as opened:
                opened.exec("true")

        return {
            "create": lambda path: Task.create("t", workspace=path, home=home),
            "direct": lambda path: Task.create("t", workspace=Workspace.direct(path), home=home),
            "Sandbox": box,
        }[request.param]

    @pytest.mark.parametrize(
        "name", ["missing", "project/file/below", "project/missing", "\x1b[2J"]
    )
    def test_that_does_not_exist(self, use, tmp_path, name):
        """A path that leads nowhere is refused, and not made."""
        refused(lambda: use(tmp_path / name), WorkspaceInvalid)

    def test_that_is_a_file(self, use, tmp_path):
        """A file is no workspace."""
        error = refused(lambda: use(tmp_path / "project" / "file"), WorkspaceInvalid)
        assert "not a directory" in str(error)

    @pytest.mark.parametrize("path", ["/", "//", "/proc", "/sys", "/dev", "/tmp/.."])
    def test_that_is_the_host(self, use, path):
        """The whole host, or the kernel's own directories, are no workspace."""
        refused(lambda: use(path), WorkspaceInvalid)

    def test_that_contains_the_home(self, use, tmp_path, home):
        """The home itself and each directory above it are refused, also by another name."""
        (tmp_path / "project" / "link").symlink_to(tmp_path)
        for path in (home.path, tmp_path, tmp_path / "project" / "link", tmp_path.parent):
            refused(lambda path=path: use(path), WorkspaceInvalid)
        (tmp_path / "project" / "link").unlink()
        os.utime(tmp_path / "project", ns=(0, self.before))

    @pytest.fixture(autouse=True)
    def remember(self, unchanged, tmp_path):
        self.before = os.stat(tmp_path / "project").st_mtime_ns

    def test_that_lies_in_the_home(self, use, home):
        """Nothing below the home is a workspace."""
        task = Task.list(home=home)[0]
        for below in ("tasks", f"tasks/{task.id}", "trash"):
            refused(lambda below=below: use(os.path.join(home.path, below)), WorkspaceInvalid)

    @pytest.mark.parametrize("path", ["", "a\0b", b"a\0b", "x" * 300, "/x" * 3000])
    def test_that_is_no_path(self, use, path):
        """The empty path, NUL and endless names are refused."""
        refused(lambda: use(path), UsageError)

    @pytest.mark.parametrize("path", [5, 1.5, True, [], {}, Odd()], ids=shown)
    def test_of_another_type(self, use, path):
        """What is no path at all is UsageError."""
        refused(lambda: use(path), UsageError)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_that_may_not_be_read(self, use, tmp_path):
        """A directory that is closed to the caller is refused."""
        path = tmp_path / "project"
        path.chmod(0)
        try:
            refused(lambda: use(path), WorkspaceInvalid)
        finally:
            path.chmod(0o755)


@pytest.mark.usefixtures("unchanged")
class TestNames:
    @pytest.mark.parametrize(
        "name",
        [
            "",
            " ",
            ".",
            "..",
            "../x",
            "a/b",
            "a\nb",
            "a\x1b[31m",
            "a\0b",
            "x" * 201,
            "x" * 300,
            "\udc80",
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("what", ["name", "label", "label's value"])
    def test_that_cannot_be(self, home, what, name):
        """Names and labels print, are short, and are no paths."""
        how = {"name": name}
        if what != "name":
            how = {"labels": {name: "x"} if what == "label" else {"x": name}}
        refused(lambda: Task.create("t", home=home, **how))

    @pytest.mark.parametrize("text", [None, 5, b"x", "a\0b", "x" * 100_001, ["x"]], ids=shown)
    def test_descriptions_that_cannot_be(self, home, text):
        """A description is text, of bounded length and without NUL."""
        refused(lambda: Task.create(text, home=home))

    def test_unknown_tasks(self, home):
        """A name that fits nothing is not found."""
        for wanted in ("after", "..", "0" * 16, "\x1b[2J"):
            refused(lambda wanted=wanted: Task.open(wanted, home=home), TaskNotFound)


@pytest.mark.usefixtures("unchanged")
class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value"),
        [case for name in (*SETTINGS, "name", "labels", "lock", "parent") for case in wrong(name)],
    )
    def test_of_a_task_that_have_no_meaning(self, home, name, value):
        """Each argument of Task.create refuses each value that it cannot use."""
        refused(lambda: Task.create("t", **{"home": home, name: value}), UsageError)

    @pytest.mark.parametrize(
        ("name", "value"),
        [case for name in SETTINGS for case in wrong(name)],
    )
    def test_of_a_box_that_have_no_meaning(self, home, name, value):
        """Each argument of Sandbox refuses each value that it cannot use, before it is entered."""
        refused(lambda: Sandbox(**{"home": home, name: value}), UsageError)

    def test_runtimes(self, home):
        """An unknown runtime is named with those that are known; Docker is said to be missing."""
        for make in (lambda **how: Task.create("t", **how), Sandbox):
            error = refused(lambda make=make: make(runtime="vmware", home=home))
            assert "bubblewrap" in error.hint
        refused(lambda: Sandbox(runtime="docker", home=home), SandboxError)

    def test_units_of_limits(self):
        """An unknown unit is named, and the hint shows how to write one."""
        for value in ("4 XB", "4 gigs", "GiB"):
            for name in ("memory", "disk"):
                error = refused(lambda name=name, value=value: Limits(**{name: value}))
                assert f"Limits.{name}" in str(error)
                assert "4GiB" in error.hint

    @pytest.mark.parametrize(
        "require",
        [
            *("speed", ["memory", "speed"], [5], [None]),
            5,
            Odd(),
        ],
        ids=shown,
    )
    def test_requirements(self, home, require):
        """What can be required is known by name."""
        refused(lambda: Sandbox(require=require, home=home), UsageError, CapabilityError)

    @pytest.mark.parametrize("path", [5, "", b"", "a\0b", Odd(), []], ids=shown)
    def test_homes(self, path):
        """What is no path is no home."""
        refused(lambda: Home(path))


HOLD = """
import sys
from sandboxsdk import Home, Sandbox, Task
task = Task.open("held", home=Home(sys.argv[1]))
try:
    with Sandbox(task) as box:
        box.exec("echo begun > begun")
        box.spawn("sleep 1000")
        print("open", flush=True)
        box.exec("sleep 1000")
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@contextlib.contextmanager
def holder(home):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, home.path],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def bubblewrap(home):
    findings = {finding.name: finding for finding in home.doctor().findings}
    gaps = [finding for finding in findings.values() if not finding.ok and "user" in finding.name]
    if gaps:
        pytest.skip(f"no box can be made here: {gaps}")


@pytest.mark.usefixtures("bubblewrap")
class TestTwo:
    def test_second_exclusive_attach_names_the_first(self, home):
        """Another process learns who holds the task, and changes nothing; then it may have it."""
        task = Task.create("t", name="held", home=home)
        with holder(home) as process:
            assert process.stdout.readline() == "open\n"
            before = snapshot(task.directory)

            def attach():
                with task.attach(timeout=0):
                    pass

            error = refused(attach, TaskLocked)
            assert f"process {process.pid} " in error.holder
            refused(lambda: task.delete(timeout=0), TaskLocked)
            assert snapshot(task.directory) == before
            process.kill()
        with task.attach(timeout=60):
            pass
        assert [change.path for change in task.diff()] == ["begun"]

    def test_interrupt_ends_the_box_and_frees_the_task(self, home):
        """After Ctrl-C nothing of the box lives, and the next open needs no command."""
        task = Task.create("t", name="held", home=home)
        with holder(home) as process:
            assert process.stdout.readline() == "open\n"
            os.kill(process.pid, signal.SIGINT)
            assert process.stdout.readline() == "interrupted\n"
            with task.attach(timeout=60):
                pass
            process.wait(60)
        limit = monotonic() + 60
        while mentions(task.directory):
            assert monotonic() < limit, "a process of the box still lives"
            pause(0.01)
        assert [change.path for change in task.diff()] == ["begun"]
        task.delete()


def mentions(directory):
    """Processes that have the task's directory mounted."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) != os.getpid():
            with contextlib.suppress(OSError):
                if directory in Path(f"/proc/{pid}/mountinfo").read_text(errors="replace"):
                    found.append(pid)
    return found
