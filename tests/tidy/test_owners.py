"""One owner per outside thing: replacing it, or translating its errors, is work in one place."""

from __future__ import annotations

import pytest

from .house import OWNERS, PACKAGE, Module, complain, package_modules


def _owns(owner: str, module: Module) -> bool:
    return bool(owner) and f"{module.name}.".startswith(f"{PACKAGE}.{owner}.")


@pytest.mark.parametrize("thing", OWNERS)
def test_outside_things_have_one_owner(thing: str) -> None:
    """Only the owner imports or uses it; everybody else asks the owner."""
    owner = OWNERS[thing]
    offenders = [
        f"{module.shown}:{line}: {used}"
        for module in package_modules()
        if not _owns(owner, module)
        for line, used in module.uses
        if f"{used}.".startswith(f"{thing}.")
    ]
    complain(f"{thing} belongs to {owner or 'nobody'}", offenders)


def test_children_are_started_without_a_fork_hook() -> None:
    """No preexec_fn anywhere: it forks the caller's whole process, with all its threads' locks."""
    offenders = [
        f"{module.shown}:{number}"
        for module in package_modules()
        for number, line in enumerate(module.source.splitlines(), 1)
        if "preexec_fn=" in line
    ]
    complain("no preexec_fn", offenders)
