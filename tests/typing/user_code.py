"""What a user may write: never run, but it must check under mypy strict and pyright strict.

A line that must NOT check carries an ignore for one named error; mypy says when that is no longer
needed.
"""

from __future__ import annotations

from pathlib import Path

from sandboxsdk import (
    BoxBusy,
    Change,
    Checkpoint,
    CheckpointNotFound,
    CommandFailed,
    ExecResult,
    ExecTimeout,
    Home,
    Image,
    Limits,
    Mount,
    Network,
    Process,
    Sandbox,
    SandboxError,
    Secret,
    Task,
    TaskLocked,
    Workspace,
    __version__,
)


def thirty_seconds(home: Home) -> list[Change]:
    task: Task = Task.create("fix the login bug", workspace="~/code/app", home=home)
    with Sandbox(task) as box:
        result: ExecResult = box.exec("make test", check=True)
        box.exec(["python3", "refactor.py"], timeout=10.0, cwd="src", env={"A": "1"}, input="text")
        code: int | None = result.exit_code
        output: str = result.stdout
        raw: bytes = result.stdout_bytes
        seconds: float = result.duration
        print(code, output, raw, seconds, result.ok, __version__)
        changes: list[Change] = box.diff()
    for change in changes:
        print(change.kind, change.path.upper(), change.old_size)
    return changes


def everything_that_can_be_said(directory: Path) -> None:
    box = Sandbox(
        directory,
        image=Image.from_host(),
        limits=Limits(memory="512MiB", cpus=1.0, pids=64, wall_time=None),
        network=Network.none(),
        secrets=[Secret("TOKEN", "value", hosts=("api.example.com",))],
        env={"DEBUG": "1"},
        mounts=[Mount.toolchain(), Mount("/srv/data", "/data", write=False)],
        runtime="bubblewrap",
        require=("memory", "pids"),
        keep=False,
    )
    with box:
        text: str = box.files.read_text("README.md")
        box.files.write("copy.md", text)
        print(box.describe(), box.id, box.task.id)


def things_without_end(box: Sandbox) -> bytes:
    collected = b""
    with box.spawn(["python3", "-m", "http.server", "8000"]) as server:
        process: Process = server
        process.wait_for(port=8000, timeout=10)
        for stream, data in process:
            name: str = stream
            collected += data
            print(name)
    return collected


def going_back(task: Task, box: Sandbox, directory: Path) -> str | None:
    with box.checkpoint("before", description="words", labels={"team": "web"}) as before:
        kept: Checkpoint = before
        box.exec("make", check=True)
    try:
        report = box.restore("before", save_current=True, kill=False)
    except BoxBusy:
        report = box.restore(kept, kill=True)
    except CheckpointNotFound as error:
        return error.code
    newest: Checkpoint = task.checkpoints()[0]
    changes: list[Change] = [*kept.diff(), *kept.diff(newest), *task.diff("before", newest)]
    changes += box.diff(since=kept)
    content: bytes = task.checkpoint_by("before").read("README.md")
    sizes: dict[str, int] = {entry.path: entry.size for entry in kept.files()}
    print(changes, content, sizes, kept.stats.files + kept.stats.bytes, kept.tree, kept.created_at)
    print(kept.restore_to(directory / "copy", durable=True).ok, kept.verify().ok, report.seconds)
    kept.tag("good")
    kept.delete()
    return newest.parent


def looking_after(home: Home) -> bool:
    checked = home.verify("content", repair=False)
    planned, done = home.gc(dry_run=True), home.gc()
    print(planned.freed_bytes, done, home.stats().store_bytes)
    return checked.ok


def what_went_wrong(box: Sandbox) -> str:
    try:
        box.exec("false", check=True)
    except CommandFailed as error:
        return f"{error.code} {error.hint}"
    except ExecTimeout as error:
        return str(error)
    except TaskLocked as error:
        return f"{error.retryable}"
    except SandboxError as error:
        return error.code
    return ""


def workspaces(directory: Path) -> list[Workspace]:
    return [
        Workspace.private(),
        Workspace.private(directory, exclude=["node_modules/"], kind="overlay"),
        Workspace.private(directory, kind="copy"),
        Workspace.direct(str(directory), exclude=("*.log",)),
    ]


def tasks(home: Home) -> None:
    for record in Task.list(status="active", limit=10, home=home):
        print(record.id, record.name)
    task = Task.open("abc", home=home)
    with task.attach(agent="me", timeout=1.0):
        print(task.status, task.labels, task.created_at)
    task.delete()
    print(home.doctor().ok)


def mistakes(box: Sandbox) -> None:
    import sandboxsdk

    sandboxsdk.Sandbax  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    box.exec("true", 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Limits("4GiB")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
