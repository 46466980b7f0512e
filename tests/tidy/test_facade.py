"""What `import sandboxsdk` gives, and what it must not cost."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sandboxsdk
from sandboxsdk.errors import SandboxError

from .house import ROOT

_HEAVY = {
    "asyncio",
    "blake3",
    "ctypes",
    "docker",
    "filelock",
    "importlib.metadata",
    "msgspec",
    "pyfastcdc",
    "pytest",
    "requests",
    "sqlite3",
    "subprocess",
    "typing",
    "zstandard",
}


def _environment() -> dict[str, str]:
    """Let a child find the same sandboxsdk as this process, wherever it runs."""
    return {**os.environ, "PYTHONPATH": str(Path(sandboxsdk.__file__).parents[1])}


def _imported_by(statement: str, tmp_path: Path) -> set[str]:
    program = (
        "import json, sys; before = set(sys.modules)\n"
        f"{statement}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=tmp_path, env=_environment(), capture_output=True, check=True, text=True
    )
    return set(json.loads(done.stdout))


def test_importing_is_free(tmp_path: Path) -> None:
    """`import sandboxsdk` imports no dependency, nothing slow, no other module of the package."""
    imported = _imported_by("import sandboxsdk", tmp_path)
    assert "sandboxsdk" in imported
    assert not imported & _HEAVY
    assert not [name for name in imported if name.startswith("sandboxsdk.")]


def test_catching_errors_needs_no_dependency(tmp_path: Path) -> None:
    """A caller who only catches errors imports no dependency."""
    imported = _imported_by("from sandboxsdk import SandboxError, TaskLocked", tmp_path)
    assert not imported & (_HEAVY - {"typing"})


@pytest.mark.parametrize("name", sandboxsdk.__all__)
def test_every_export_resolves(name: str) -> None:
    """Each public name can be imported from the root and is listed by dir()."""
    assert getattr(sandboxsdk, name) is not None
    assert name in dir(sandboxsdk)


def test_unknown_names_are_refused() -> None:
    """A name that is not public is an AttributeError that names the module."""
    with pytest.raises(AttributeError, match=r"'sandboxsdk' has no attribute 'Sandbax'"):
        _ = sandboxsdk.Sandbax


def test_exports_are_sorted_and_say_the_same_to_type_checkers() -> None:
    """`__all__` is sorted, and the imports that type checkers see are exactly its names."""
    assert sandboxsdk.__all__ == sorted(sandboxsdk.__all__)
    tree = ast.parse((ROOT / "sandboxsdk" / "__init__.py").read_text(encoding="utf-8"))
    seen = {"__version__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            seen |= {alias.name for alias in node.names}
    assert seen == set(sandboxsdk.__all__)


def test_every_error_is_public() -> None:
    """Each error that can reach a caller can be caught by a name of the root package."""
    errors = importlib.import_module("sandboxsdk.errors")
    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, SandboxError)
    }
    assert kinds <= set(sandboxsdk.__all__)


def test_the_plugin_imports_pytest_alone() -> None:
    """The pytest plugin loads in every test run, so it imports nothing but pytest."""
    tree = ast.parse((ROOT / "_sandboxsdk_pytest.py").read_text(encoding="utf-8"))
    imported = {
        name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else _names(node))
    }
    assert imported == {"__future__", "pytest"}


def _names(node: ast.Import) -> list[str]:
    return [alias.name for alias in node.names]


def test_the_plugin_makes_its_marker_known(tmp_path: Path) -> None:
    """A suite with strict markers may use `@pytest.mark.sandbox` once the plugin is loaded."""
    file = tmp_path / "test_marked.py"
    file.write_text("import pytest\n\n@pytest.mark.sandbox\ndef test_nothing(): pass\n")
    environment = _environment() | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    paths = [environment["PYTHONPATH"], str(ROOT)]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    options = ["-p", "_sandboxsdk_pytest", "-p", "no:cacheprovider", "--strict-markers", "-q"]
    command = [sys.executable, "-m", "pytest", *options, f"--rootdir={tmp_path}", str(file)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
