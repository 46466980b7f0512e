"""A task as one file: it comes back the same elsewhere, or not at all."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest
import zstandard

from sandboxsdk import Home, Mount, Sandbox, Task, Workspace, disk
from sandboxsdk.codec import Hasher, encode_json, encode_msgpack
from sandboxsdk.errors import (
    Conflict,
    Corrupt,
    Denied,
    FileConflict,
    FileMissing,
    HostFull,
    HostRefused,
    LimitExceeded,
    SandboxError,
    Unavailable,
    UsageError,
)

from .workspaces import KINDS

HEAD, FRAME = struct.Struct("<8sI"), struct.Struct("<BII")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    made = tmp_path / "work"
    (made / "d").mkdir(parents=True)
    (made / "f.txt").write_text("f\n")
    (made / "d" / "g.bin").write_bytes(random.Random(1).randbytes(3_000_000))
    return made


@pytest.fixture
def other(tmp_path: Path) -> Home:
    return Home(tmp_path / "other")


@pytest.fixture
def exported(tmp_path: Path, home: Home) -> Path:
    """Give the file of a small task."""
    small = tmp_path / "small"
    small.mkdir()
    (small / "f.txt").write_text("f\n")
    task = Task.create("t", workspace=small, home=home)
    with Sandbox(task) as box:
        box.exec("echo one >> f.txt", check=True)
        box.checkpoint("one")
    path = tmp_path / "task.sandbox"
    task.export(path)
    return path


@pytest.mark.parametrize(("kind", "runtime"), KINDS)
def test_a_task_comes_back_the_same(work, home, other, tmp_path, kind, runtime):
    """Its id, settings, checkpoints, tags, history and files, also without the directory that it
    worked on.
    """
    private = kind != "direct"
    workspace = Workspace.private(work, kind=kind) if private else Workspace.direct(work)
    task = Task.create("t", name="n", workspace=workspace, runtime=runtime, home=home)
    with Sandbox(task) as box:
        first = box.checkpoint("first")
        box.exec("echo one >> f.txt; rm d/g.bin; mkdir e", check=True)
        second = box.checkpoint("second", labels={"a": "b"})
        second.tag("best")
        box.exec("echo now >> f.txt; printf '\\0\\1' > e/new", check=True)
    path = tmp_path / "task.sandbox"
    task.export(path)
    assert path.stat().st_mode & 0o777 == 0o600
    beginning = None if kind == "direct" else task.diff()
    patch = task.patch(first)
    work.rename(tmp_path / "gone")
    again = Task.import_(path, home=other)
    assert (again.id, again.name, again.description) == (task.id, "n", "t")
    assert [c.record for c in again.checkpoints()] == [c.record for c in task.checkpoints()]
    assert again.checkpoint_by("best") == second
    assert again.checkpoint_by("first").read("d/g.bin") == first.read("d/g.bin")
    if beginning is not None:
        assert again.diff() == beginning
    assert again.patch("first") == patch
    with Sandbox(again) as box:
        assert box.exec("cat f.txt; ls d e", check=True).stdout == "f\none\nnow\nd:\n\ne:\nnew\n"
        box.restore("first")
        assert box.files.read_bytes("d/g.bin") == first.read("d/g.bin")
        box.checkpoint("later")
    place = tmp_path / "place"
    again.checkpoint_by("second").restore_to(place)
    assert (place / "f.txt").read_text() == "f\none\n"
    with Sandbox(again) as box:
        box.restore("second")
    with pytest.raises(UsageError, match="to="):
        again.apply()
    assert other.verify("content").ok
    other.gc()
    assert other.verify("content").ok
    # And on again, from there.
    again.export(tmp_path / "twice.sandbox")
    third = Task.import_(tmp_path / "twice.sandbox", home=Home(tmp_path / "third"))
    assert len(third.checkpoints()) == len(again.checkpoints())


def test_what_reaches_into_the_machine_is_not_taken_over(home, other, tmp_path, exported):
    """Mounts and runtime of a file from elsewhere are not believed."""
    del exported
    task = Task.create(
        "t",
        runtime="process",
        mounts=[Mount("/etc", "/mnt", write=True)],
        env={"A": "b"},
        home=home,
    )
    task.export(tmp_path / "e.sandbox")
    again = Task.import_(tmp_path / "e.sandbox", home=other)
    assert again.spec.mounts == ()
    assert again.spec.runtime == "auto"
    assert again.spec.env == {"A": "b"}


def test_a_task_that_is_here_already_is_refused(home, exported):
    """Nothing is overwritten, neither a task nor a file."""
    before = [
        c.id for task in Task.list(home=home) for c in Task.open(task.id, home=home).checkpoints()
    ]
    with pytest.raises(Conflict, match="already"):
        Task.import_(exported, home=home)
    (record,) = Task.list(home=home)
    task = Task.open(record.id, home=home)
    assert [c.id for c in task.checkpoints()] == before
    with pytest.raises(FileConflict):
        task.export(exported)
    with pytest.raises(UsageError):
        task.export(Path(home.path) / "x")
    with pytest.raises((FileMissing, HostRefused)):
        task.export(exported.parent / "none" / "x")
    target = exported.parent / "link"
    target.symlink_to("elsewhere")
    with pytest.raises(FileConflict):
        task.export(target)


def test_every_truncation_is_told(exported, other):
    """However much of the file is there: Corrupt, and no task."""
    whole = exported.read_bytes()
    cut = exported.parent / "cut"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(Corrupt):
            Task.import_(cut, home=other)
    cut.write_bytes(whole + b"\0")
    with pytest.raises(Corrupt, match="after its end"):
        Task.import_(cut, home=other)
    assert Task.list(home=other) == []
    cut.write_bytes(whole)
    Task.import_(cut, home=other)


def test_every_flipped_bit_is_told(exported, other):
    """Whichever byte is another one: Corrupt or Unavailable, and no task."""
    whole = exported.read_bytes()
    flipped = exported.parent / "flipped"
    chance = random.Random(5)
    # Every bit of the head and of the end, which the digest does not cover, and one of each byte.
    *_, (_, _, end) = _frames(whole)
    bits = [8 * at + chance.randrange(8) for at in range(len(whole))]
    bits += [
        *range(8 * HEAD.size),
        *range(8 * (len(whole) - FRAME.size - len(end)), 8 * len(whole)),
    ]
    for bit in bits:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        flipped.write_bytes(data)
        with pytest.raises((Corrupt, Unavailable, LimitExceeded)):
            Task.import_(flipped, home=other)
    assert Task.list(home=other) == []
    assert os.listdir(Path(other.path) / "tasks") == []


def _frames(data: bytes) -> list[tuple[int, int, bytes]]:
    found = []
    at = HEAD.size
    while at < len(data):
        kind, length, stored = FRAME.unpack_from(data, at)
        at += FRAME.size
        found.append((kind, length, data[at : at + stored]))
        at += stored
    return found


def _sealed(frames: list[tuple[int, int, bytes]], objects: int, version: int = 1) -> bytes:
    """Write a file that is whole in itself."""
    data = HEAD.pack(b"SBXTASK\n", version)
    for kind, length, stored in frames:
        data += FRAME.pack(kind, length, len(stored)) + stored
    hasher = Hasher()
    hasher.update(data)
    end = encode_msgpack([objects, hasher.hexdigest()])
    return data + FRAME.pack(4, len(end), len(end)) + end


def _raw(kind: int, data: bytes) -> tuple[int, int, bytes]:
    return kind, len(data), data


FORGERIES = {
    "no objects": lambda frames: [f for f in frames if f[0] != 1],
    "no journal": lambda frames: [f for f in frames if f[0] != 2],
    "no facts": lambda frames: [f for f in frames if f[0] != 3],
    "two facts": lambda frames: [frames[0], *frames],
    "another journal": lambda frames: [_raw(2, b'{"seq":0}\n') if f[0] == 2 else f for f in frames],
    "an object of no kind": lambda frames: [*frames, _raw(1, encode_msgpack([[9, b"x"]]))],
    "facts of another shape": lambda frames: [
        _raw(3, encode_json({"roots": [], "facts": {"task": "../../x", "now": "", "uid": 0}})),
        *[f for f in frames if f[0] != 3],
    ],
    "roots that are no digests": lambda frames: [
        _raw(3, encode_json({"roots": ["zz"], "facts": {}})),
        *[f for f in frames if f[0] != 3],
    ],
    "a bomb": lambda frames: [*frames, (1, 1 << 31, b"x" * 10)],
    "a lie about a length": lambda frames: [*frames, (1, 17 << 20, frames[-1][2])],
    "an unknown frame": lambda frames: [*frames, _raw(77, b"x")],
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_files_are_refused(exported, other, forgery):
    """A file that is whole in itself and lies: Corrupt, and nothing of it is in the home."""
    frames = [f for f in _frames(exported.read_bytes()) if f[0] != 4]
    changed = FORGERIES[forgery](frames)
    objects = sum(1 for f in changed if f[0] == 1)
    forged = exported.parent / "forged"
    for count in {objects, objects + 1, 5, 4, 3}:
        forged.write_bytes(_sealed(changed, count))
        with pytest.raises((Corrupt, UsageError)):
            Task.import_(forged, home=other)
    assert os.listdir(Path(other.path) / "tasks") == []


def test_a_compressed_end_is_refused(exported, other):
    """Its digest does not cover it, and zstd has bits that change nothing."""
    whole = exported.read_bytes()
    *_, (_, _, end) = _frames(whole)
    packed = zstandard.compress(end * 3)
    forged = exported.parent / "forged"
    forged.write_bytes(
        whole[: -FRAME.size - len(end)] + FRAME.pack(4, 3 * len(end), len(packed)) + packed
    )
    with pytest.raises(Corrupt, match="compressed"):
        Task.import_(forged, home=other)


def test_a_newer_format_says_to_upgrade(exported, other):
    """A file of a later version is not guessed at."""
    newer = exported.parent / "newer"
    newer.write_bytes(_sealed(_frames(exported.read_bytes())[:-1], 1, version=2))
    with pytest.raises(Unavailable, match="upgrade"):
        Task.import_(newer, home=other)


def test_what_is_no_file_is_refused_at_once(exported, other):
    """FIFOs, directories, links and nothing: typed, and nobody waits."""
    folder = exported.parent
    os.mkfifo(folder / "fifo")
    (folder / "link").symlink_to(exported)
    for name in ("fifo", "link", "."):
        with pytest.raises(Denied):
            Task.import_(folder / name, home=other)
    with pytest.raises(FileMissing):
        Task.import_(folder / "none", home=other)
    with pytest.raises(UsageError):
        Task.import_(3, home=other)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", range(1, 40))
def test_a_failing_write_leaves_nothing(exported, home, other, number):
    """Whichever call fails, of writing or of reading: typed, nothing half-made; then it works."""
    (record,) = Task.list(home=home)
    task = Task.open(record.id, home=home)
    target = exported.parent / "again"

    def tried(call) -> None:
        calls = 0

        def fail(name, _arguments):
            nonlocal calls
            calls += 1
            if calls == number and name not in ("remove", "remove_directory", "truncate"):
                raise OSError(28, "No space left on device")

        disk.watcher = fail
        try:
            call()
        except (HostFull, HostRefused):
            pass
        except SandboxError as error:
            raise AssertionError(error) from error
        finally:
            disk.watcher = None

    tried(lambda: task.export(target))
    names = set(os.listdir(exported.parent))
    assert not {name for name in names if name.startswith(".again")}
    if not target.exists():
        task.export(target)
    tried(lambda: Task.import_(target, home=other))
    if not Task.list(home=other):
        assert other.verify("content").ok
        Task.import_(target, home=other)
    assert Task.open(task.id, home=other).checkpoint_by("one").read("f.txt") == b"f\none\n"
