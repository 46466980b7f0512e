"""A walk through a hostile directory: suite H, each case while somebody works against it.

The cases that need a hook at one certain moment are beside the walk itself; here they race.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sandboxsdk import clock
from sandboxsdk.errors import Denied, SandboxError
from sandboxsdk.host import remove_tree
from sandboxsdk.snapshot import excluding, totals_of
from sandboxsdk.snapshot import tree as t
from sandboxsdk.store import BLOB
from tests import trees
from tests.swapping import compiled, fingerprint, swapping

LOOKS = int(os.environ.get("SANDBOXSDK_RACED_LOOKS", "100000"))
MOUNTING = Path(__file__).parents[1] / "programs" / "mounting.py"
CANARY = b"canary-7d1f5c"
FILES = 40
ROOT = os.geteuid() == 0


class Kept(trees.Counting):
    """A sink that keeps all it was ever given, and counts the contents."""

    def holds(self, wanted: bytes) -> bool:
        return any(wanted in data for _, data in self.objects.values())


@pytest.fixture(scope="module")
def swapper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("swapper"))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Give a directory that has every name of the tree; all in it, names too, has the canary."""
    place = tmp_path / "outside"
    for folder in (place, place / "kept", place / "kept" / "kept"):
        folder.mkdir()
        for number in range(FILES):
            (folder / f"f{number}").write_bytes(CANARY + b"%d" % number)
        (folder / os.fsdecode(CANARY)).touch()
    return place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Give an empty directory, and check that nothing stays open."""
    path = tmp_path / "place"
    path.mkdir()
    before = set(os.listdir("/proc/self/fd"))
    yield path
    assert set(os.listdir("/proc/self/fd")) <= before, "descriptors leaked"
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        remove_tree(fd, b"place")
    finally:
        os.close(fd)


def filled(path: Path, levels: int = 3) -> None:
    """Make a directory of files, with another one in it."""
    path.mkdir(parents=True)
    for number in range(FILES):
        (path / f"f{number}").write_bytes(b"inside %d" % number)
    if levels > 1:
        filled(path / "kept", levels - 1)


def contested(place: Path, outside: Path) -> list[tuple[Path, Path]]:
    """Make names that are to trade places: directories, files and links to what lies outside."""
    pairs = []
    for folder in (place, place / "deep" / "er"):
        filled(folder / "a")
        (folder / "b").symlink_to(outside)
        (folder / "f").write_bytes(b"inside")
        (folder / "g").symlink_to(outside / "f1")
        pairs += [(folder / "a", folder / "b"), (folder / "f", folder / "g")]
    # Inside of what is swapped itself: a directory deep down against a link to another deep one.
    kept = place / "a" / "kept"
    (kept / "link").symlink_to(outside / "kept" / "kept")
    filled(place / "one")
    filled(place / "two")
    return [*pairs, (kept / "kept", kept / "link"), (place / "one", place / "two")]


@pytest.mark.timeout(300)
def test_nothing_outside_is_read(place: Path, outside: Path, swapper: Path) -> None:
    """In over 100,000 raced looks no byte and no name of what lies outside came into the store, and
    nothing but typed errors came out.
    """
    pairs = contested(place, outside)
    before = fingerprint(outside)
    sink = Kept(BLOB)
    seen = {"done": 0, "refused": 0, "looks": 0}
    begun = clock.monotonic()
    phases = [*(([pair], share / 10) for share, pair in enumerate(pairs, 1)), (pairs[:4], 1.0)]
    for attacked, share in phases:
        with swapping(swapper, attacked):
            while seen["looks"] < LOOKS * share:
                taken = sink.taken
                try:
                    got = trees.walked(sink, place)
                except SandboxError:
                    seen["refused"] += 1
                    seen["looks"] += sink.taken - taken
                else:
                    seen["done"] += 1
                    found = trees.nodes(sink, got.tree)
                    seen["looks"] += len(found)
                    assert got.totals == totals_of(sink, got.tree)
    print(f"{seen} in {clock.monotonic() - begun:.1f} s")
    assert not sink.holds(CANARY)
    assert fingerprint(outside) == before
    assert seen["done"] > 10, seen
    assert sink.taken > LOOKS / 10
    # When they rest, the walk has all of it.
    found = trees.nodes(sink, trees.walked(sink, place).tree)
    assert len(found) > 12 * FILES


def test_paths_would_lead_out(place: Path, outside: Path, swapper: Path) -> None:
    """The same attacker takes a walk that goes by paths out at once."""
    pairs = contested(place, outside)
    with swapping(swapper, pairs[:1]):
        for _ in range(100_000):
            path = place / "a"
            if path.is_symlink():
                continue
            with contextlib.suppress(OSError):
                if (path / "f0").read_bytes().startswith(CANARY):
                    return
    pytest.fail("the attacker is not able to do harm, so it proves nothing")


# --- The table ------------------------------------------------------------------------------------


def worked(work: Callable[[random.Random], None], rounds: Callable[[], object], count: int) -> None:
    """Let a thread work for as long as it takes to do something a number of times."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def loop() -> None:
        chance = random.Random(1)
        try:
            while not stop.is_set():
                work(chance)
        except BaseException as error:
            failed.append(error)

    worker = threading.Thread(target=loop)
    worker.start()
    try:
        for _ in range(count):
            rounds()
    finally:
        stop.set()
        worker.join()
    assert not failed, failed


def fifo(place: Path, outside: Path) -> None:
    (place / "x").write_bytes(b"content")
    os.mkfifo(place / "y")
    swapped = (str(place / "x"), str(place / "y"), str(place / "z"))

    def work(chance: random.Random) -> None:
        one, two, spare = swapped
        os.rename(one, spare)
        os.rename(two, one)
        os.rename(spare, two)

    def rounds() -> None:
        sink = trees.Memory()
        found = trees.nodes(sink, trees.walked(sink, place).tree)
        for node in found.values():
            assert node.kind in (t.DIRECTORY, t.FIFO, t.FILE)
            assert not node.is_file or trees.content(sink, node) == b"content"

    worked(work, rounds, 150)


def bound_socket(place: Path, outside: Path) -> None:
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(place)
        try:
            listener.bind("s")
        finally:
            os.chdir(here)
        listener.listen()
        listener.setblocking(False)
        got = trees.walked(trees.Memory(), place)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert got.skipped == ("s",)


def device(place: Path, outside: Path) -> None:
    # An ordinary user can make this one alone.
    os.mknod(place / "d", 0o20600, 0)
    if ROOT:
        os.mknod(place / "tty", 0o20600, os.makedev(5, 0))
    got = trees.walked(trees.Memory(), place)
    assert got.skipped == (("d", "tty") if ROOT else ("d",))
    assert got.totals == (0, 0)


def sparse(place: Path, outside: Path) -> None:
    with open(place / "f", "wb") as file:
        size = 1 << 30
        for wanted in (2**63 - 1, (1 << 44) - 4096, 1 << 40):
            with contextlib.suppress(OSError):
                file.truncate(wanted)
                size = wanted
                break
    sink = Kept(BLOB)
    assert trees.walked(sink, place).totals == (1, size)
    assert sink.taken == 0


def growth(place: Path, outside: Path) -> None:
    with open(place / "f", "wb", buffering=0) as file:
        file.write(b"x" * (1 << 20))

        def work(chance: random.Random) -> None:
            if os.fstat(file.fileno()).st_size < 64 << 20:
                file.write(b"y" * 65536)

        def rounds() -> None:
            sink = trees.Memory()
            got = trees.walked(sink, place)
            node = trees.nodes(sink, got.tree)[b"f"]
            data = trees.content(sink, node)
            assert len(data) == node.size
            assert data == (b"x" * (1 << 20)).ljust(len(data), b"y")

        worked(work, rounds, 8)


def appended(place: Path, outside: Path) -> None:
    numbers = iter(range(10**9))

    def work(chance: random.Random) -> None:
        number = next(numbers)
        (place / f"n{number}").touch()
        with contextlib.suppress(FileNotFoundError):
            os.rename(place / f"n{number}", place / f"r{number % 500}")

    def rounds() -> None:
        sink = trees.Memory()
        got = trees.walked(sink, place)
        assert got.totals == totals_of(sink, got.tree)

    worked(work, rounds, 60)


def deep(place: Path, outside: Path) -> None:
    fd = os.open(place, os.O_RDONLY)
    for _ in range(4096):
        os.mkdir("n", dir_fd=fd)
        inner = os.open("n", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    with open(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=fd), "wb") as file:
        file.write(b"x")
    os.close(fd)
    most = 0

    class Watching(trees.Memory):
        def add(self, kind: int, data: bytes) -> bytes:
            nonlocal most
            most = max(most, len(os.listdir("/proc/self/fd")) if kind == BLOB else 0)
            return super().add(kind, data)

    before = len(os.listdir("/proc/self/fd"))
    assert trees.walked(Watching(), place).totals == (1, 1)
    assert most - before <= 64


def moved(place: Path, outside: Path) -> None:
    filled(place / "p" / "q" / "r")
    (place / "other").mkdir()

    def work(chance: random.Random) -> None:
        for one, two in (("p/q", "other/q"), ("other/q", "p/q")):
            os.rename(place / one, place / two)

    seen = {"done": 0}

    def rounds() -> None:
        sink = trees.Memory()
        with contextlib.suppress(SandboxError):
            got = trees.walked(sink, place)
            assert got.totals == totals_of(sink, got.tree)
            seen["done"] += 1

    worked(work, rounds, 60)
    assert trees.walked(trees.Memory(), place).totals.files == 3 * FILES


def inner_mount(place: Path, outside: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for covered in ("directory", "file"):
        (place / covered).mkdir()
        done = subprocess.run(
            [sys.executable, "-B", MOUNTING, place / covered, covered, "same", "openat2"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            env=environment,
        )
        if done.stdout.startswith("no namespaces"):
            pytest.skip(done.stdout)
        assert done.stdout == "fine\n", done.stderr


def unreadable(place: Path, outside: Path) -> None:
    (place / "d").mkdir()
    (place / "d" / "f").write_bytes(CANARY)
    (place / "d" / "f").chmod(0)
    sink = Kept(BLOB)
    if not ROOT:
        with pytest.raises(Denied, match="/w/d/f: may not be read"):
            trees.walked(sink, place, shown="/w/")
    got = trees.walked(sink, place, exclude=excluding(["f"]))
    assert set(trees.nodes(sink, got.tree)) == {b".", b"d"}
    assert not sink.holds(CANARY)


def names(place: Path, outside: Path) -> None:
    hostile = [
        b"\n",
        b"\x1b]0;x\x07",
        b"\xff\xfe",
        b"n" * 255,
        b"-rf",
        b"\xe2\x80\xaetxt.exe",
        b"...",
    ]
    for name in hostile:
        with open(os.path.join(os.fsencode(place), name), "wb") as file:
            file.write(name)
    sink = trees.Memory()
    found = trees.nodes(sink, trees.walked(sink, place).tree)
    assert {name: trees.content(sink, found[name]) for name in hostile} == {n: n for n in hostile}


class Row(NamedTuple):
    id: str
    what: str
    expected: str
    probe: Callable[[Path, Path], None]


def swapped(place: Path, outside: Path) -> None:
    """Let threads do what the program does above, for where there is no compiler."""
    pairs = contested(place, outside)
    sink = Kept(BLOB)

    def work(chance: random.Random) -> None:
        one, two = chance.choice(pairs[:4])
        with contextlib.suppress(OSError):
            os.rename(one, one.parent / "spare")
            os.rename(two, one)
            os.rename(one.parent / "spare", two)

    def rounds() -> None:
        with contextlib.suppress(SandboxError):
            trees.walked(sink, place)

    worked(work, rounds, 12)
    assert not sink.holds(CANARY)


ROWS = [
    Row("H01", "names trade places with links out", "no byte outside is read", swapped),
    Row("H02", "FIFO in place of a file and back", "nobody is waited for", fifo),
    Row("H03", "socket", "named, not connected to", bound_socket),
    Row("H04", "device", "named, not opened", device),
    Row("H05", "sparse file of 8 EiB", "costs nothing", sparse),
    Row("H06", "file that grows without end", "bounded, flagged", growth),
    Row("H07", "names appended while listing", "ends", appended),
    Row("H08", "4,096 levels", "at most 64 descriptors", deep),
    Row("H09", "parents renamed meanwhile", "typed error or whole tree", moved),
    Row("H10", "mounts below, of directories and files", "refused or empty", inner_mount),
    Row("H11", "unreadable file", "named; excluded, nothing", unreadable),
    Row("H12", "newline, escape, no text, 255 bytes", "as they are", names),
]


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Take a line a row, and print them when all rows of this process are done."""
    lines: list[str] = []
    yield lines
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    if reporter is not None and capture is not None:
        with capture.global_and_fixture_disabled():
            reporter.write_line("")
            for line in sorted(lines):
                reporter.write_line(line)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_hostile_directory_ends_as_the_table_says(
    row: Row, place: Path, outside: Path, table: list[str]
) -> None:
    """Whatever a directory holds and whatever is done to it meanwhile, the walk ends as the row
    says.
    """
    verdict = "FAILED"
    before = fingerprint(outside)
    try:
        row.probe(place, outside)
        assert fingerprint(outside) == before
        verdict = "held"
    except pytest.skip.Exception:
        verdict = "n/a"
        raise
    finally:
        table.append(f"{row.id}  {row.what:<42} {row.expected:<28} {verdict}")
