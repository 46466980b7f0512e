"""What can be typed, and which part of the public API does it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from sandboxsdk.errors import SandboxError
from sandboxsdk.units import format_size

from .screen import Screen, printable

# Imports that take long are made by the command that needs them, so that --help is quick and Ctrl-C
# is understood from the first moment.
if TYPE_CHECKING:
    from sandboxsdk.home import Home
    from sandboxsdk.model import GcReport, RestoreReport, VerifyReport

_SHOWN_MAX = 100
_ID_LENGTH_MIN = 8
# Gaps that a box can live with.
_BEARABLE = {"cgroups"}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what was typed and give the exit code; `argv` is without the program's name."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _leave)  # Unwind as for Ctrl-C: what was begun is cleaned up.
    try:
        arguments = _parser().parse_args(argv)
        code: int = arguments.command(arguments, Screen())
        sys.stdout.flush()
    except SandboxError as error:
        print(*map(printable, f"error: {error}".split("\n")), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader has seen enough; what is still in our buffer would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _leave(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m sandboxsdk", description="Sandboxes on copy-on-write views of directories."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    place = _Parser(add_help=False)
    place.add_argument(
        "--home", metavar="PATH", help="where tasks are kept ($SANDBOXSDK_HOME, else your data)"
    )
    form = _Parser(add_help=False)
    form.add_argument("--json", action="store_true", help="print one JSON document")
    one = _Parser(add_help=False)
    one.add_argument("task", metavar="TASK", help="its id, its name, or the beginning of its id")

    added = commands.add_parser("demo", parents=[place], help="see what a sandbox does")
    added.add_argument(
        "directory", metavar="DIRECTORY", nargs="?", help="to work on; it is only read"
    )
    added.add_argument("--keep", action="store_true", help="do not delete the task at the end")
    added.set_defaults(command=_demo)

    added = commands.add_parser("doctor", parents=[place], help="see what this host can enforce")
    added.set_defaults(command=_doctor)

    added = commands.add_parser("ls", parents=[place, form], help="list tasks, newest first")
    added.add_argument("--status", metavar="STATUS", help="only tasks with this status")
    added.add_argument("--all", action="store_true", help=f"more than the newest {_SHOWN_MAX}")
    added.set_defaults(command=_ls)

    added = commands.add_parser("log", parents=[place, form, one], help="what happened to a task")
    added.set_defaults(command=_log)

    added = commands.add_parser("diff", parents=[place, form, one], help="what a task changed")
    added.add_argument("--from", dest="old", metavar="CHECKPOINT", help="else from the beginning")
    added.add_argument("--to", dest="new", metavar="CHECKPOINT", help="else to now")
    added.set_defaults(command=_diff)

    added = commands.add_parser(
        "restore", parents=[place, form, one], help="go back to a checkpoint"
    )
    added.add_argument("checkpoint", metavar="CHECKPOINT", help="its id, tag or name")
    added.add_argument(
        "--to", metavar="DIRECTORY", help="put its files there instead; it must be new or empty"
    )
    added.add_argument(
        "--discard", action="store_true", help="do not keep what is replaced as a checkpoint"
    )
    added.set_defaults(command=_restore)

    added = commands.add_parser(
        "gc", parents=[place, form], help="say what disk could be freed, and free it if told to"
    )
    added.add_argument("--apply", action="store_true", help="do it")
    added.set_defaults(command=_gc)

    added = commands.add_parser("verify", parents=[place, form], help="check what is stored")
    added.add_argument(
        "--level", choices=("index", "objects", "content"), default="content", help="how deep"
    )
    added.add_argument("--repair", action="store_true", help="make anew what can be made anew")
    added.set_defaults(command=_verify)
    return parser


def _home(arguments: argparse.Namespace, *, make: bool = False) -> Home:
    """Open the home; one that was named and does not exist is a typing error, unless `make`."""
    from sandboxsdk.home import Home

    if arguments.home is not None and not make:
        Home(arguments.home, read_only=True)
    return Home(arguments.home)


def _demo(arguments: argparse.Namespace, screen: Screen) -> int:
    from .demo import demo

    return demo(arguments.directory, _home(arguments, make=True), screen, keep=arguments.keep)


def _doctor(arguments: argparse.Namespace, screen: Screen) -> int:
    report = _home(arguments, make=True).doctor()
    for finding in report.findings:
        mark, style = ("ok ", "green") if finding.ok else ("GAP", "yellow")
        found = printable(finding.found)
        screen.say(f"{screen.paint(mark, style)}  {finding.name:<12}{found}")
        if not finding.ok and finding.remedy:
            screen.say(f"{'':17}-> {printable(finding.remedy)}")
    return int(any(not found.ok and found.name not in _BEARABLE for found in report.findings))


def _ls(arguments: argparse.Namespace, screen: Screen) -> int:
    from sandboxsdk.clock import rfc3339
    from sandboxsdk.errors import UsageError
    from sandboxsdk.model import Status
    from sandboxsdk.task import Task

    known = get_args(Status)
    if arguments.status is not None and arguments.status not in known:
        hint = f"one of: {', '.join(known)}"
        raise UsageError(what="--status", value=arguments.status, reason="is unknown", hint=hint)
    home = _home(arguments)
    limit = sys.maxsize if arguments.all else _SHOWN_MAX
    records = Task.list(status=arguments.status, limit=limit, home=home)
    if arguments.json:
        _print_json(records)
        return 0
    if not records:
        which = f"{arguments.status} " if arguments.status else ""
        screen.say(f"no {which}tasks in {printable(home.path)}")
        return 0
    length = _ID_LENGTH_MIN
    while len({record.id[:length] for record in records}) < len(records):
        length += 1
    rows = [("ID", "NAME", "STATUS", "CREATED", "DESCRIPTION")]
    for r in records:
        created = rfc3339(r.created_at)
        rows.append((r.id[:length], r.name or "-", r.status, created, printable(r.description)))
    screen.table(rows)
    return 0


def _log(arguments: argparse.Namespace, screen: Screen) -> int:
    from sandboxsdk.clock import rfc3339
    from sandboxsdk.task import Task

    task = Task.open(arguments.task, home=_home(arguments))
    entries = task.history()
    if arguments.json:
        _print_json([{"at": e.at, "kind": e.kind, "data": e.data} for e in entries])
        return 0
    for entry in entries:
        if entry.kind == "base":
            continue  # An inner matter: what the workspace began with.
        facts = _facts(entry.kind, entry.data)
        if entry.kind == "created":
            workspace = task.record.workspace
            facts = f"{task.description!r} on {workspace.path or 'an empty workspace'}"
        when = screen.paint(rfc3339(entry.at), "dim")
        screen.say(f"{when}  {entry.kind:<10} {printable(facts)}")
    return 0


def _facts(kind: str, data: Mapping[str, Any]) -> str:
    """Tell of an entry what a reader wants to know."""
    if kind != "checkpoint":
        told = {name: value for name, value in data.items() if isinstance(value, str)}
        told.pop("tree", None)
        return " ".join(f"{name}={value}" for name, value in told.items())
    stats = data.get("stats", {})
    named = f"{data['name']!r} " if data.get("name") else ""
    size = f"{stats.get('files', 0):,} files, {format_size(stats.get('new_bytes', 0))} new"
    labels = " ".join(f"{key}={value}" for key, value in data.get("labels", {}).items())
    return f"{data.get('id')} {named}({size}) {labels}".rstrip()


def _diff(arguments: argparse.Namespace, screen: Screen) -> int:
    from sandboxsdk.task import Task

    task = Task.open(arguments.task, home=_home(arguments))
    if arguments.new is None and task.status == "restoring":
        from sandboxsdk.sandbox import Sandbox

        with Sandbox(task) as box:  # Finishes what a crash has interrupted.
            changes = box.diff(arguments.old)
    else:
        changes = task.diff(arguments.old, arguments.new)
    if arguments.json:
        _print_json(changes)
        return 0
    for change in changes:
        screen.say(screen.change(printable(str(change))))
    if not changes:
        screen.say("nothing changed")
    return 0


def _restore(arguments: argparse.Namespace, screen: Screen) -> int:
    from sandboxsdk.sandbox import Sandbox
    from sandboxsdk.task import Task

    task = Task.open(arguments.task, home=_home(arguments))
    checkpoint = task.checkpoint_by(arguments.checkpoint)
    if arguments.to is not None:
        report = checkpoint.restore_to(arguments.to)
    else:
        with Sandbox(task) as box:
            report = box.restore(checkpoint, save_current=not arguments.discard)
    return _say_report(report, arguments, screen)


def _gc(arguments: argparse.Namespace, screen: Screen) -> int:
    report = _home(arguments).gc(dry_run=not arguments.apply)
    code = _say_report(report, arguments, screen)
    if not arguments.apply and not arguments.json and report.freed_bytes:
        screen.say("nothing was deleted; `gc --apply` does it")
    return code


def _verify(arguments: argparse.Namespace, screen: Screen) -> int:
    report = _home(arguments).verify(arguments.level, repair=arguments.repair)
    return _say_report(report, arguments, screen)


def _say_report(
    report: RestoreReport | GcReport | VerifyReport, arguments: argparse.Namespace, screen: Screen
) -> int:
    if arguments.json:
        _print_json(report)
    else:
        for line in str(report).split("\n"):
            screen.say(printable(line))
    return 0 if report.ok else 1


def _print_json(value: object) -> None:
    import msgspec

    # In ASCII what a name holds reaches a terminal escaped, and bytes that are not UTF-8 survive.
    print(json.dumps(msgspec.to_builtins(value), indent=2))
