"""Sequences of operations at random, and a shorter one that fails as a long one did.

It stands where hypothesis would: that one shortens better, but of sequences this long it tries many
that are trivial or end at once, and what counts here is how many real steps are compared.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Draw = Callable[[random.Random], Any]
Operation = tuple[float, Mapping[str, Draw]]
Step = tuple[str, dict[str, Any]]

# How often a shorter sequence is tried.
ATTEMPTS = 150


def drawn(chance: random.Random, operations: Mapping[str, Operation]) -> Iterator[Step]:
    """Give steps without end; what is frequent and what is rare differs by sequence as well."""
    names = list(operations)
    weights = [weight * chance.choice((0.1, 1, 1, 2, 4)) for weight, _ in operations.values()]
    while True:
        (name,) = chance.choices(names, weights)
        yield name, {argument: draw(chance) for argument, draw in operations[name][1].items()}


def place(error: BaseException) -> tuple[type[BaseException], str, int | None]:
    """Say where something failed, to tell one failure from another."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return type(error), last.filename, last.lineno


def shortened(steps: list[Step], fails: Callable[[list[Step]], bool]) -> list[Step]:
    """Leave out what is not needed for failing: many steps at once first, then single edits."""
    left = ATTEMPTS
    size = len(steps) // 2
    while size and left:
        at = 0
        while at < len(steps) and left:
            fewer = [*steps[:at], *steps[at + size :]]
            left -= 1
            if fails(fewer):
                steps = fewer
            else:
                at += size
        size //= 2
    for at, (name, arguments) in enumerate(steps):
        edits = arguments.get("edits", [])
        for number in range(len(edits) - 1, -1, -1):
            fewer_edits = [*edits[:number], *edits[number + 1 :]]
            fewer = [*steps[:at], (name, arguments | {"edits": fewer_edits}), *steps[at + 1 :]]
            left -= 1
            if left > 0 and fails(fewer):
                steps, edits = fewer, fewer_edits
    return steps


def written(steps: Iterable[Step]) -> str:
    """Give steps as calls, one a line."""
    calls = [(name, [f"{key}={value!r}" for key, value in some.items()]) for name, some in steps]
    return "\n".join(f"layers.{name}({', '.join(arguments)})" for name, arguments in calls)
