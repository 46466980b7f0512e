"""Bits that flip and files that go: found by verify, named, and never given as if nothing were."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandboxsdk import Home, Task
from sandboxsdk.errors import Corrupt, SandboxError, Unavailable
from sandboxsdk.store.frame import HEADER_BYTES, PACK_HEADER_BYTES, parse_header
from sandboxsdk.store.pack import Frame, scan

from .stage import Stage, clear, history, look, opened, quick_place, write_state


@pytest.fixture
def stage(tmp_path) -> Iterator[Stage]:
    """Give a home with two checkpoints in one pack; the files are those of the second."""
    room = quick_place(tmp_path)
    made = Stage(tmp_path, room).build("two")
    write_state(made.work, "b")
    made.work_state = "b"
    yield made
    clear(room)


def _only_pack(stage: Stage) -> Path:
    (name,) = stage.packs()
    return stage.home_path / "store" / "packs" / name


def _flip(path: Path, offset: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    mode = path.stat().st_mode
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(mode & 0o777)


# --- Packs ----------------------------------------------------------------------------------------


def _frames(path: Path) -> list[tuple[Frame, int]]:
    """Give the frames of a pack, each with the length of its table."""
    pack = path.name.removesuffix(".pack")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        found = list(scan(file.fileno(), pack, PACK_HEADER_BYTES, size))
        assert all(isinstance(frame, Frame) for frame in found)
        return [
            (frame, parse_header(os.pread(file.fileno(), HEADER_BYTES, frame.offset), pack).table)
            for frame in found
        ]


def _bytes_of_class(path: Path, name: str) -> list[int]:
    """Give the offsets in a pack that are of a class of bytes."""
    if name == "pack header":
        return list(range(PACK_HEADER_BYTES))
    found: list[int] = []
    for frame, table in _frames(path):
        begin, end = frame.offset, frame.offset + frame.size
        after = begin + HEADER_BYTES
        found += {
            "frame header": range(begin, after),
            "table": range(after, after + table),
            "payload": range(after + table, end - 16),
            "sum": range(end - 16, end),
        }[name]
    return found


@pytest.mark.timeout(120)
@pytest.mark.parametrize("index", ["index kept", "index lost"])
@pytest.mark.parametrize("kind", ["pack header", "frame header", "table", "payload", "sum"])
def test_a_flipped_bit_in_a_pack_is_found(kind, index, stage):
    """One flipped bit anywhere in a pack is found by verify, no checkpoint is restored with wrong
    bytes, and after a repair the next checkpoint stores anew what is damaged.
    """
    chance = random.Random(f"{kind} {index}")
    offsets = _bytes_of_class(_only_pack(stage), kind)
    for offset in chance.sample(offsets, min(24, len(offsets))):
        stage.reset(work=False)
        _flip(_only_pack(stage), offset, chance.randrange(8))
        if index == "index lost":
            (stage.home_path / "store" / "index.sqlite").unlink()
        with opened(stage.home_path) as home:
            wrong = _restored_wrong(stage, home)
            report = home.verify("content")
            assert not wrong, f"byte {offset}: {wrong}"
            assert not report.ok, f"byte {offset}: not found"
            home.verify("content", repair=True)
            task = Task.open(stage.task, home=home)
            with task.attach():
                made = task.checkpoint_history().take("again")
            assert made.tree == stage.trees["b"]
            assert made.verify().ok, f"byte {offset}: not stored anew"
    print(f"{kind:<13} {index:<11} {len(offsets):>6} bytes")


def _restored_wrong(stage: Stage, home: Home) -> list[str]:
    """Name the checkpoints that are restored, and not as they were."""
    found = []
    for name, made in stage.named.items():
        clear(stage.out)
        try:
            history(home, stage.task).find(made).restore_to(stage.out)
        except Corrupt:
            assert not stage.out.exists()
            continue
        if look(stage.out) != stage.seen[name]:
            found.append(name)
    return found


def test_a_pack_that_is_gone_is_named(stage):
    """When a pack was deleted, verify names it and every checkpoint that is not whole, and reading
    one says Corrupt.
    """
    gone = _only_pack(stage)
    gone.unlink()
    with opened(stage.home_path) as home:
        report = home.verify("content")
        assert not report.ok
        assert any(gone.name in problem.path for problem in report.problems)
        named = {name for problem in report.problems for name in problem.checkpoints}
        assert named >= set(stage.before)
        for made in stage.before:
            with pytest.raises(Corrupt):
                history(home, stage.task).find(made).read("edited")
        task = Task.open(stage.task, home=home)
        with task.attach():
            assert task.checkpoint_history().take("anew").verify().ok


# --- What is only remembered ----------------------------------------------------------------------


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["flipped", "cut", "zeros", "gone"])
def test_a_damaged_index_costs_nothing(how, stage):
    """Whatever happens to the index, every checkpoint is read exactly and no file counts as
    lost.
    """
    chance = random.Random(how)
    for _ in range(1 if how == "gone" else 25):
        stage.reset(work=False)
        index = stage.home_path / "store" / "index.sqlite"
        data = index.read_bytes()
        if how == "flipped":
            # Most of an index is empty pages.
            used = [at for at, byte in enumerate(data) if byte]
            _flip(index, chance.choice(used), chance.randrange(8))
        elif how == "cut":
            index.write_bytes(data[: chance.randrange(len(data))])
        elif how == "zeros":
            at = chance.randrange(len(data))
            index.write_bytes(data[:at] + bytes(700) + data[at + 700 :])
        else:
            index.unlink()
        with opened(stage.home_path) as home:
            assert not _restored_wrong(stage, home)
            for made in stage.before:
                assert history(home, stage.task).find(made).verify().ok
            report = home.verify("content")
            assert not any(problem.lost for problem in report.problems), str(report)
            task = Task.open(stage.task, home=home)
            with task.attach():
                made = task.checkpoint_history().take("after")
            assert made.verify().ok
            home.gc()
            home.verify("content", repair=True)
            assert home.verify("content").ok


def test_a_damaged_scan_cache_changes_nothing(stage):
    """A scan cache with a flipped bit is not believed: the next checkpoint is exact."""
    (name,) = os.listdir(stage.home_path / "scans")
    data = (stage.home_path / "scans" / name).read_bytes()
    chance = random.Random(3)
    with opened(stage.home_path) as home:
        task = Task.open(stage.task, home=home)
        with task.attach():
            for _ in range(60):
                path = stage.home_path / "scans" / name
                path.write_bytes(data)
                _flip(path, chance.randrange(len(data)), chance.randrange(8))
                made = task.checkpoint_history().take("again")
                assert made.tree == stage.trees["b"]


# --- Journal and formats --------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_a_flipped_bit_in_a_journal_is_named(stage):
    """One flipped bit in any byte of a journal makes reading it Corrupt, which names the line."""
    with opened(stage.home_path) as home:
        task = Task.open(stage.task, home=home)
        path = Path(task.directory, "journal.jsonl")
        data = path.read_bytes()
        lines = [number for number, line in enumerate(data.splitlines(True), 1) for _ in line]
        chance = random.Random(5)
        for offset, line in enumerate(lines):
            _flip(path, offset, chance.randrange(8))
            with pytest.raises(Corrupt) as caught:
                task.checkpoints()
            # A newline that is none joins two lines, one that was none parts one.
            assert line - 1 <= caught.value.fields["line"] <= line + 1, offset
            path.write_bytes(data)
        _flip(path, len(data) // 2, 1)
        with pytest.raises(Corrupt):
            home.verify("content")
        with pytest.raises(Corrupt):
            home.gc()
        assert len(stage.packs()) == 1
        path.write_bytes(data)
        assert len(task.checkpoints()) == 2
    print(f"journal       every one of {len(data)} bytes, {lines[-1]} lines")


def _without_end(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-1], lines[-1][:-5]]


def _without_middle(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], *lines[3:]]


def _swapped(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[3], lines[2], *lines[4:]]


def _repeated(lines: list[bytes]) -> list[bytes]:
    return [*lines, lines[-1]]


def _zeroed(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], bytes(len(lines[2]) - 1) + b"\n", *lines[3:]]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (_without_end, 0),
        (lambda lines: lines[:-1], 0),
        (_without_middle, 3),
        (_swapped, 3),
        (_repeated, -1),
        (_zeroed, 3),
        (lambda _: [], 0),
    ],
    ids=["end cut", "last line gone", "line gone", "swapped", "repeated", "zeros", "empty"],
)
def test_a_journal_that_lost_lines_says_which(change, line, stage):
    """What a crash may leave at a journal's end counts as never written; anything missing or
    foreign in the middle is Corrupt and named.
    """
    with opened(stage.home_path) as home:
        task = Task.open(stage.task, home=home)
        path = Path(task.directory, "journal.jsonl")
        lines = path.read_bytes().splitlines(True)
        changed: list[bytes] = change(lines)
        path.write_bytes(b"".join(changed))
        if not changed:
            with pytest.raises(Corrupt):
                task.record  # noqa: B018 - reads the journal
        elif line:
            with pytest.raises(Corrupt) as caught:
                task.checkpoints()
            assert caught.value.fields["line"] == (line if line > 0 else len(changed))
        else:
            # The last line was the tag.
            assert len(task.checkpoints()) == 2
            assert not task.checkpoint_history().points().tags
            with task.attach():
                assert task.checkpoint_history().take("on").verify().ok
            assert len(task.checkpoints()) == 3


@pytest.mark.parametrize(
    ("name", "read"),
    [("format", Home), ("store/format", lambda path: Home(path).store)],
)
def test_a_damaged_format_is_refused(name, read, stage):
    """A format file with a flipped bit is Corrupt, or names a newer version; nothing is written."""
    path = stage.home_path / name
    data = path.read_bytes()
    refused: Callable[[Path], object] = read
    for offset in range(len(data)):
        for bit in range(8):
            _flip(path, offset, bit)
            changed = path.read_bytes()
            try:
                refused(stage.home_path)
            except (Corrupt, Unavailable):
                pass
            except SandboxError as error:
                pytest.fail(f"{changed!r}: {error!r}")
            else:
                # Only a space more may mean the same.
                assert changed.split() == data.split(), changed
            assert path.read_bytes() == changed
            path.write_bytes(data)
