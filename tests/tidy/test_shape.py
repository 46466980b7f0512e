"""Names and sizes: a smell to look at. An exception is listed in house.py with its reason."""

from __future__ import annotations

import ast
import re
from pathlib import PurePath

from .house import (
    BANNED_WORDS,
    FUNCTION_LINES,
    LINE_COLUMNS,
    LONG_FUNCTIONS,
    LONG_MODULES,
    MODULE_LINES,
    NAMELESS,
    ROOT,
    UNDOCUMENTED,
    all_modules,
    complain,
    package_modules,
    project_files,
)


def test_names_say_what_is_inside() -> None:
    """No module or folder has a name that would fit anything."""
    offenders = [
        name
        for name in project_files()
        if name.endswith(".py")
        and any(part.strip("_") in NAMELESS for part in PurePath(name).with_suffix("").parts)
    ]
    complain(f"no module is called {', '.join(sorted(NAMELESS))}", offenders)


def test_lines_fit_the_screen() -> None:
    """No line of Python is longer than the limit."""
    offenders = [
        f"{module.shown}:{number}: {len(line)} columns"
        for module in all_modules()
        for number, line in enumerate(module.source.splitlines(), 1)
        if len(line) > LINE_COLUMNS
    ]
    complain(f"lines of at most {LINE_COLUMNS} columns", offenders)


def test_modules_fit_one_reading() -> None:
    """A module of the package that outgrows the limit wants to be two, or has a stated reason."""
    offenders = [
        f"{module.shown}: {length} lines"
        for module in package_modules()
        if (length := module.source.count("\n")) > MODULE_LINES and module.name not in LONG_MODULES
    ]
    complain(f"modules of at most {MODULE_LINES} lines", offenders)


def test_functions_fit_one_screen() -> None:
    """A function that outgrows the limit wants to be two, or has a stated reason."""
    offenders = []
    for module in package_modules():
        for function in module.functions():
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            known = f"{module.name}:{function.name}" in LONG_FUNCTIONS
            if length > FUNCTION_LINES and not known:
                offenders.append(f"{module.shown}:{function.lineno}: {function.name}, {length}")
    complain(f"functions of at most {FUNCTION_LINES} lines", offenders)


def test_exceptions_are_still_needed() -> None:
    """A name on a list of exceptions exists, and its exception comes with a reason."""
    known = {module.name for module in package_modules()}
    known |= {f"{m.name}:{f.name}" for m in package_modules() for f in m.functions()}
    listed = LONG_MODULES | LONG_FUNCTIONS | dict.fromkeys(UNDOCUMENTED, "stated there")
    offenders = [name for name, reason in listed.items() if name not in known or not reason]
    complain("exceptions name what exists and say why", offenders)


def test_silenced_types_name_the_error() -> None:
    """Silencing a type checker is done for one named error, so that it cannot hide another."""
    bare = re.compile("#" + r"\s*(type|pyright):\s*" + r"ignore(?!\[)")
    offenders = [
        f"{module.shown}:{number}"
        for module in all_modules()
        for number, line in enumerate(module.source.splitlines(), 1)
        if bare.search(line)
    ]
    complain("a silenced type error is named in brackets", offenders)


def test_every_test_says_what_it_expects() -> None:
    """Each test function has a docstring."""
    offenders = [
        f"{module.shown}:{function.lineno}: {function.name}"
        for module in all_modules()
        if module.shown.startswith("tests/")
        for function in module.functions()
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]
    complain("every test has a docstring that states the expected behaviour", offenders)


def test_public_things_are_documented() -> None:
    """Modules, and public functions and classes directly in them, have docstrings."""
    offenders = []
    for module in package_modules():
        if not ast.get_docstring(module.tree):
            offenders.append(f"{module.shown}: the module itself")
        if module.name in UNDOCUMENTED:
            continue
        offenders += [
            f"{module.shown}:{node.lineno}: {node.name}"
            for node in module.tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ]
    complain("public functions and classes have docstrings", offenders)


def test_the_tree_names_no_machine() -> None:
    """No file names a package registry's host or a place that exists on one machine only."""
    offenders = []
    for name in project_files():
        text = (ROOT / name).read_bytes().decode("utf-8", "replace").lower()
        offenders += [f"{name}: {word}" for word in BANNED_WORDS if word in text]
    complain("no registry hosts, no paths or tools of one machine", offenders)
