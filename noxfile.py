"""The project's chores. Plain `nox` is what CI runs; `nox -l` lists the rest."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"  # project.dependency_groups
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["tests", "tests_user", "lint", "types", "build"]

ROOT = Path(__file__).resolve().parent
PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]

# Random order is pytest-randomly's default; more than eight workers only fight for one disk.
SUITE = ("-n", "auto", "--maxprocesses", "8")

# What is run a second time without layers.
NEEDING_NO_LAYERS = tuple(
    f"tests/integration/test_{name}.py" for name in ("workspaces", "fork", "layers_contract")
)

# How many sequences of edits are tried on layers, and how long each is.
LAYERS = ("SANDBOXSDK_LAYERS_EXAMPLES", "SANDBOXSDK_LAYERS_STEPS")

# An account number that nobody has: what belongs to it was made by these tests, and nothing else
# does.
USER_ID = 64321


# What the tests start besides Python, and the Debian packages that it comes with.
PROGRAMS = {
    "gcc": "gcc",
    "git": "git",
    "mkfs.xfs": "xfsprogs",
    "patch": "patch",
    "strace": "strace",
}


def _group(name: str) -> list[str]:
    return list(nox.project.dependency_groups(PYPROJECT, name))


def _install_programs(session: nox.Session) -> None:
    """Have the programs that the tests start: root on Debian gets them, others are told."""
    missing = sorted({package for name, package in PROGRAMS.items() if not shutil.which(name)})
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        session.error(f"the tests need {', '.join(missing)}: apt-get install {' '.join(missing)}")
    session.run("apt-get", "-q", "update", external=True)
    session.run("apt-get", "-qy", "install", *missing, external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """The whole suite, in parallel and in random order, as whoever calls."""
    _install_programs(session)
    session.install(".", *_group("test"))
    session.run("pytest", *SUITE, *session.posargs)
    if not session.posargs:
        # Once more where every layer is lost at every occasion: none is needed.
        losing = {"SANDBOXSDK_LOSE_LAYERS": "1"}
        session.run("pytest", *SUITE, "-q", *NEEDING_NO_LAYERS, env=losing)


@nox.session(python=PYTHONS, default=False)
def tests_all(session: nox.Session) -> None:
    """The whole suite on every supported Python that is installed."""
    _install_programs(session)
    session.install(".", *_group("test"))
    session.run("pytest", *SUITE, *session.posargs)


@nox.session
def tests_user(session: nox.Session) -> None:
    """The whole suite once more as an ordinary user, when root calls."""
    if os.geteuid() != 0:
        session.log("already an ordinary user: `tests` was this run")
        return
    _install_programs(session)
    with _user_room() as room:
        python = _user_python(session, room)
        checkout = room / "checkout"
        _copy_checkout(checkout)
        environment = room / "venv"
        # Without pip: its bundle is a package of its own on Debian. Ours installs into the
        # environment from here.
        session.run(python, "-m", "venv", "--without-pip", str(environment), external=True)
        pip = ("python", "-m", "pip", "--python", str(environment / "bin" / "python"))
        session.run(*pip, "install", "--quiet", str(checkout), *_group("test"))
        with session.chdir(checkout):
            session.run(
                *_as_user(),
                str(environment / "bin" / "pytest"),
                *SUITE,
                *session.posargs,
                external=True,
                include_outer_env=False,
                env=_user_environment(room),
            )


@nox.session
def lint(session: nox.Session) -> None:
    """The linter and the formatter; with `-- --fix` they repair what they can."""
    session.install(*_group("lint"))
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Strict mypy on the package; pyright on its public surface and on code of a user."""
    session.install(".", *_group("types"))
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "sandboxsdk")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """The benchmarks; arguments after `--` go to them."""
    session.install(".", *_group("bench"))
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the distributions, install the wheel where nothing else is, and use it."""
    session.install("build", "virtualenv")
    with tempfile.TemporaryDirectory() as directory:
        session.run("python", "-m", "build", "--outdir", directory)
        (wheel,) = Path(directory).glob("*.whl")
        fresh = Path(directory) / "fresh"
        session.run("virtualenv", "--quiet", str(fresh))
        python = str(fresh / "bin" / "python")
        session.run(python, "-m", "pip", "install", "--quiet", f"{wheel}[pytest]", external=True)
        session.run(python, "-m", "pip", "check", external=True)
        with session.chdir(directory):  # away from the checkout, which would be imported instead
            session.run(python, "-c", _USE_IT, external=True)
            session.run(python, "-m", "pytest", "--version", "--version", external=True)


# The names resolve, and the plugin is found under its own name.
_USE_IT = """
import importlib.metadata as metadata, sandboxsdk
names = [name for name in sandboxsdk.__all__ if getattr(sandboxsdk, name) is not None]
(plugin,) = metadata.entry_points(group="pytest11", name="sandboxsdk")
tops = {file.parts[0] for file in metadata.files("sandboxsdk") if ".dist-info" not in str(file)}
assert tops - {"__pycache__"} == {"sandboxsdk", "_sandboxsdk_pytest.py"}, tops
print("sandboxsdk", sandboxsdk.__version__, len(names), "names, plugin", plugin.load().__name__)
"""


# --- The ordinary user ------------------------------------------------------------


def _as_user() -> list[str]:
    # By way of a shell: what setpriv itself starts is still looked up with root's capabilities, and
    # an interpreter below /root would seem to work until it starts another one.
    change = ["setpriv", f"--reuid={USER_ID}", f"--regid={USER_ID}", "--clear-groups"]
    return [*change, "/bin/sh", "-c", 'exec "$0" "$@"']


def _user_environment(room: Path) -> dict[str, str]:
    """Give the user what a login would, and nothing that belongs to root."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {
        "CI": os.environ.get("CI", ""),
        "HOME": str(room / "home"),
        "LANG": "C.UTF-8",
        "LOGNAME": "sandboxsdk-tests",
        "PATH": f"{room / 'venv' / 'bin'}:{path}",
        # Random sequences for root are random ones for the user.
        **{name: os.environ[name] for name in LAYERS if name in os.environ},
        # Root's run has made the full number; these differ little by user.
        "SANDBOXSDK_CRASH_STATES": os.environ.get("SANDBOXSDK_CRASH_STATES", "2000"),
        "SANDBOXSDK_RACED_LOOKS": os.environ.get("SANDBOXSDK_RACED_LOOKS", "20000"),
        "SANDBOXSDK_RACED_OPERATIONS": os.environ.get("SANDBOXSDK_RACED_OPERATIONS", "20000"),
        "TERM": os.environ.get("TERM", "dumb"),
        "TMPDIR": str(room / "tmp"),
        "USER": "sandboxsdk-tests",
    }


@contextmanager
def _user_room() -> Iterator[Path]:
    """Make a directory that the user can reach, with a home and a temporary one of theirs."""
    reachable = [
        place
        for place in (tempfile.gettempdir(), "/tmp", "/var/tmp")
        if all(p.stat().st_mode & stat.S_IXOTH for p in (Path(place), *Path(place).parents))
    ]
    room = Path(tempfile.mkdtemp(prefix="sandboxsdk-user-", dir=reachable[0]))
    try:
        room.chmod(0o755)
        for name in ("home", "tmp", "checkout"):
            (room / name).mkdir(mode=0o700)
            os.chown(room / name, USER_ID, USER_ID)
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _user_python(session: nox.Session, room: Path) -> str:
    """Find a Python that the user can execute: root's own may lie below a closed directory."""
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/local/bin", "/usr/bin"]
    names = ["python3", *(f"python{version}" for version in reversed(PYTHONS))]
    candidates = [sys.executable, getattr(sys, "_base_executable", sys.executable)]
    candidates += [os.path.join(folder, name) for folder in folders for name in names]
    for candidate in dict.fromkeys(candidates):
        if os.path.exists(candidate) and _can_use(candidate, room):
            return candidate
    return session.error(
        "no Python 3.11 or newer that an ordinary user can execute: install one in /usr/bin "
        "(Debian: apt-get install python3), or run nox as an ordinary user"
    )


def _can_use(candidate: str, room: Path) -> bool:
    question = (
        "import sys, venv\nsys.exit(sys.version_info < (3, 11) or sys.prefix != sys.base_prefix)"
    )
    answer = subprocess.run(
        [*_as_user(), candidate, "-c", question],
        capture_output=True,
        check=False,
        cwd=room,
        env=_user_environment(room),
    )
    return answer.returncode == 0


def _copy_checkout(target: Path) -> None:
    """Copy what belongs to the project, so that the user owns it and can write beside it."""
    command = "git -c safe.directory=* ls-files -z --cached --others --exclude-standard"
    listed = subprocess.run(command.split(), cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0 and (ROOT / ".git").exists():
        names = [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    else:
        names = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if _is_source(path)]
    for name in names:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    for folder, folders, files in os.walk(target):
        for name in ("", *folders, *files):
            os.chown(os.path.join(folder, name), USER_ID, USER_ID, follow_symlinks=False)


def _is_source(path: Path) -> bool:
    products = {".nox", ".venv", "venv", "build", "dist", "__pycache__", ".git"}
    return not products & set(path.relative_to(ROOT).parts)
