"""While names trade places under it, a restore writes, changes and removes nothing outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxsdk import clock
from sandboxsdk.errors import SandboxError
from sandboxsdk.snapshot import restore_in_place, restore_to
from tests.swapping import compiled, fingerprint, swapping
from tests.trees import Memory, below, file, symlink, tree

from .stand import watched

OPERATIONS = int(os.environ.get("SANDBOXSDK_RACED_OPERATIONS", "100000"))
FILES = 12


@pytest.fixture(scope="module")
def swapper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("swapper"))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Give a directory that has every name of the trees, so that a stray call hits something."""
    place = tmp_path / "outside"
    for folder in (place, place / "kept", place / "turn-0", place / "turn-1"):
        folder.mkdir()
        for number in range(FILES):
            (folder / f"f{number}").write_bytes(b"outside")
            (folder / f"f{number}").chmod(0o640)
    return place


def contested(sink: Memory, outside: Path, turn: int) -> dict[bytes, object]:
    """Give what trades places: a directory and a link out, a file and a link to a file outside.

    All of it differs between turns, so that each restore brings the pairs back.
    """
    later = 10**18 + turn
    spec: dict[bytes, object] = {}
    for number in range(FILES):
        name = b"f%d" % number
        # Content, metadata, or presence differs.
        if number % 3 == 0:
            spec[name] = file(sink, name, b"inside %d" % turn)
        elif number % 3 == 1:
            attributes = ((b"user.turn", b"%d" % turn),)
            spec[name] = file(
                sink, name, b"inside", mode=0o600 + turn * 0o44, mtime=later, attributes=attributes
            )
        elif number % 2 == turn:
            spec[name] = file(sink, name, b"inside", link=7)
    inner = tree(sink, {**spec, b"kept": below(b"kept", tree(sink, spec, mtime=later))})
    turned = b"turn-%d" % turn
    whole = tree(sink, {**spec, b"kept": below(b"kept", inner), turned: spec}, mtime=later)
    return {
        b"a": below(b"a", whole),
        b"b": symlink(b"b", os.fsencode(outside), mtime=later),
        b"f": file(sink, b"f", b"inside", mode=0o600 + turn * 0o44, mtime=later),
        b"g": symlink(b"g", os.fsencode(outside / "f1"), mtime=later),
    }


@pytest.mark.timeout(600)
def test_nothing_outside_is_touched(tmp_path: Path, outside: Path, swapper: Path) -> None:
    """Over 100,000 raced calls back and forth between two trees: not a byte, name, mode or time
    outside is another than before.
    """
    sink = Memory()
    turns = []
    for turn in (0, 1):
        spec = contested(sink, outside, turn)
        turns.append(tree(sink, {**spec, b"d": dict(spec)}))
    target = tmp_path / "target"
    restore_to(sink, turns[0], str(target), owners=None, durable=False)
    pairs = [
        (target / "a", target / "b"),
        (target / "f", target / "g"),
        (target / "d" / "a", target / "d" / "b"),
    ]
    before = fingerprint(outside)
    descriptors = set(os.listdir("/proc/self/fd"))
    seen = {"done": 0, "refused": 0}
    root = os.open(target, os.O_PATH | os.O_DIRECTORY)
    begun = clock.monotonic()
    try:
        with watched() as calls:
            # One attacker at a time has a processor of its own; then all of them together, which
            # hold each other up.
            phases = [([pairs[0]], 0.3), ([pairs[1]], 0.6), ([pairs[2]], 0.9), (pairs, 1.0)]
            for attacked, share in phases:
                with swapping(swapper, attacked):
                    while len(calls) < OPERATIONS * share:
                        for current, wanted in (turns, turns[::-1]):
                            try:
                                restore_in_place(
                                    sink, root, current=current, target=wanted, owners=None
                                )
                            except SandboxError:
                                seen["refused"] += 1
                            else:
                                seen["done"] += 1
    finally:
        os.close(root)
    print(f"{len(calls):,} raced calls in {clock.monotonic() - begun:.1f} s, {seen}")
    assert fingerprint(outside) == before
    # What other tests have left may be closed at any moment.
    assert set(os.listdir("/proc/self/fd")) <= descriptors
    assert min(seen.values()) > 10, seen
    # When they rest, one more run has it all as it shall be.
    root = os.open(target, os.O_PATH | os.O_DIRECTORY)
    try:
        restore_in_place(sink, root, current=turns[1], target=turns[0], owners=None)
    finally:
        os.close(root)
    assert os.readlink(target / "b") == str(outside)
    assert (target / "a" / "f0").read_bytes() == b"inside 0"


def test_paths_would_lead_out(tmp_path: Path, outside: Path, swapper: Path) -> None:
    """The same attacker takes a writer that checks a path and then uses it out at once."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(outside)
    before = fingerprint(outside)
    with swapping(swapper, [(tmp_path / "a", tmp_path / "b")]):
        for _ in range(100_000):
            path = tmp_path / "a"
            if not path.is_symlink():
                (path / "f0").write_bytes(b"stray")
            if (outside / "f0").read_bytes() == b"stray":
                break
    assert fingerprint(outside) != before
