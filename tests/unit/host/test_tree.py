"""A Tree stays below its descriptor, follows no link, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxsdk.errors import (
    Denied,
    FileConflict,
    FileMissing,
    HostRefused,
    LimitExceeded,
    SandboxError,
)
from sandboxsdk.host import Tree, disk_usage, remove_tree
from sandboxsdk.host.descent import has_openat2

ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="only root can act with other ids")
OPERATIONS = int(os.environ.get("SANDBOXSDK_SWAP_OPERATIONS", "20000"))
SWAPPER = Path(__file__).parents[2] / "programs" / "swapper.c"


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def opened(path: Path):
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture(params=["openat2", "components"])
def walker(request):
    if request.param == "openat2" and not has_openat2():
        pytest.skip("this kernel has no openat2")
    return request.param == "openat2"


@pytest.fixture
def home(tmp_path):
    path = tmp_path / "tree"
    path.mkdir(mode=0o755)
    yield path
    if path.is_dir():
        with opened(tmp_path) as fd:
            remove_tree(fd, b"tree")


@pytest.fixture
def tree(home, walker):
    before = descriptors()
    with opened(home) as fd:
        yield Tree(fd, with_openat2=walker)
    assert descriptors() <= before, "descriptors leaked"


@pytest.mark.parametrize(
    "path", [b"", b"/", b"/etc/passwd", b"..", b"a/../b", b"a//b", b"a/", b"./a", b"a\0b", b"a/."]
)
@pytest.mark.parametrize(
    "operation",
    ["read", "stat", "listdir", "unlink", "rmdir", "remove_tree", "mkdir", "readlink", "content"],
)
def test_refuses_paths_that_are_not_plain(tree, path, operation):
    """Absolute, empty, dotted and NUL paths are refused before anything is opened."""
    with pytest.raises(Denied), contextlib.ExitStack() as stack:
        result = getattr(tree, operation)(path)
        if operation == "content":
            stack.enter_context(result)


def test_writes_and_reads(tree, home):
    """What is written is read back, with directories made on request and no temporary name left."""
    tree.write(b"a/b/\xff\n", b"one", parents=True)
    assert tree.read(b"a/b/\xff\n") == b"one"
    assert os.listdir(os.fsencode(home / "a/b")) == [b"\xff\n"]
    assert stat.S_IMODE(tree.stat(b"a/b/\xff\n").st_mode) == 0o644
    assert stat.S_IMODE(tree.stat(b"a").st_mode) == 0o755
    with pytest.raises(FileMissing):
        tree.write(b"missing/x", b"")


def test_keeps_permission_bits_and_drops_set_id(tree, home):
    """A replaced file keeps its permission bits; set-id bits are written by no operation."""
    (home / "f").write_bytes(b"")
    (home / "f").chmod(0o4751)
    tree.write(b"f", b"new")
    assert stat.S_IMODE(tree.stat(b"f").st_mode) == 0o751
    tree.write(b"f", b"new", 0o6640)
    assert stat.S_IMODE(tree.stat(b"f").st_mode) == 0o640
    tree.chmod(b"f", 0o7711)
    assert stat.S_IMODE(tree.stat(b"f").st_mode) == 0o1711
    tree.mkdir(b"d", 0o6755)
    assert stat.S_IMODE(tree.stat(b"d").st_mode) == 0o755


def test_follows_no_link(tree, home, tmp_path):
    """Links are refused anywhere; stat, rename and unlink act on the last one itself."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_bytes(b"secret")
    (home / "link").symlink_to(secret)
    (home / "inner").symlink_to("elsewhere")
    (home / "file").symlink_to(secret / "file")
    for call in (
        lambda: tree.read(b"link/file"),
        lambda: tree.read(b"file"),
        lambda: tree.write(b"link/new", b"x"),
        lambda: tree.write(b"link/a/new", b"x", parents=True),
        lambda: tree.write(b"file", b"x"),
        lambda: tree.listdir(b"link"),
        lambda: tree.stat(b"link/file"),
        lambda: tree.listdir(b"inner"),
        lambda: list(tree.walk(b"link")),
        lambda: tree.chmod(b"file", 0o600),
        lambda: tree.mkdir(b"link/d"),
        lambda: tree.mkdir(b"link", exist_ok=True),
        lambda: tree.remove_tree(b"link/file"),
        lambda: tree.rename(b"link/file", b"stolen"),
        lambda: tree.symlink(b"link/x", b"y"),
    ):
        with pytest.raises(Denied):
            call()
    tree.rename(b"file", b"moved")
    tree.remove_tree(b"moved")
    tree.unlink(b"link")
    assert [p.name for p in secret.iterdir()] == ["file"]
    assert tree.listdir() == [b"inner"]


def test_opens_nothing_but_regular_files(tree, home):
    """FIFOs, sockets and devices are neither opened nor written to; nothing blocks."""
    os.mkfifo(home / "fifo")
    with opened(home) as fd, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{fd}/sock")
    names = [b"fifo", b"sock"]
    if ROOT:
        os.mknod(home / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        names.append(b"null")
    for name in names:
        with pytest.raises(FileConflict):
            tree.read(name)
        with pytest.raises(FileConflict):
            tree.write(name, b"x")
    tree.mkdir(b"d")
    with pytest.raises(FileConflict):
        tree.read(b"d")
    with pytest.raises(FileConflict):
        tree.write(b"d", b"x")
    with pytest.raises(FileConflict):
        tree.stat(b"fifo/x")
    with pytest.raises(FileMissing):
        tree.stat(b"none")


def test_bounds_what_is_read(tree, home):
    """A file beyond the limit is refused by its size, before a byte of it is read."""
    with open(home / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(LimitExceeded):
        tree.read(b"sparse")
    (home / "ten").write_bytes(b"0123456789")
    assert tree.read(b"ten", 10) == b"0123456789"
    with pytest.raises(LimitExceeded):
        tree.read(b"ten", 9)


def test_reads_no_more_than_the_size_at_opening(tree, home):
    """A file that grows while it is read ends where it ended when it was opened."""
    (home / "log").write_bytes(b"a" * 10)
    with tree.content(b"log") as (entry, chunks):
        with open(home / "log", "ab") as file:
            file.write(b"b" * 100)
        assert entry.st_size == 10
        assert b"".join(chunks) == b"a" * 10


def test_keeps_holes(tree, home):
    """A chunk of zeros is not written, and the file has its full length all the same."""
    chunk = bytes(1 << 20)
    tree.write(b"holes", iter([b"x" * 4096, chunk, chunk]))
    entry = tree.stat(b"holes")
    assert entry.st_size == 4096 + (2 << 20)
    assert entry.st_blocks * 512 < 1 << 20


def test_failed_write_leaves_what_was_there(tree, home):
    """A write that fails in the middle changes nothing and leaves no temporary file."""

    def broken():
        yield b"half"
        raise HostRefused(what="read", path="x", reason="test")

    tree.write(b"f", b"old")
    with pytest.raises(HostRefused):
        tree.write(b"f", broken())
    assert tree.listdir() == [b"f"]
    assert tree.read(b"f") == b"old"


def test_walks_directories_before_their_children(tree):
    """A walk is depth first and sorted, holds no root, and can be told where not to go."""
    for path in (b"b/x/1", b"b/y", b"a", b"c/z"):
        tree.write(path, b"", parents=True)
    assert [path for path, _ in tree.walk()] == [
        b"a",
        b"b",
        b"b/x",
        b"b/x/1",
        b"b/y",
        b"c",
        b"c/z",
    ]
    assert [path for path, _ in tree.walk(b"b", enter=lambda _: False)] == [b"b/x", b"b/y"]


def test_renames(tree):
    """A rename replaces nothing unless told to, and says what stands in the way."""
    tree.write(b"a", b"1")
    tree.write(b"b", b"2")
    with pytest.raises(FileConflict):
        tree.rename(b"a", b"b")
    tree.rename(b"a", b"b", replace=True)
    assert tree.read(b"b") == b"1"
    tree.mkdir(b"d/e", parents=True)
    with pytest.raises(HostRefused):
        tree.rename(b"d", b"d/e/f")
    with pytest.raises(FileMissing):
        tree.rename(b"b", b"none/b")


def test_makes_directories(tree):
    """Making a directory that exists is a conflict, unless allowed and it is a directory."""
    tree.mkdir(b"a/b", parents=True)
    with pytest.raises(FileConflict):
        tree.mkdir(b"a/b")
    tree.mkdir(b"a/b", exist_ok=True)
    tree.write(b"f", b"")
    with pytest.raises(FileConflict):
        tree.mkdir(b"f", exist_ok=True)
    with pytest.raises(FileMissing):
        tree.mkdir(b"x/y")
    with pytest.raises(FileConflict):
        tree.rmdir(b"a")
    tree.symlink(b"l", b"target")
    assert tree.readlink(b"l") == b"target"
    tree.symlink(b"f", b"other", replace=True)
    assert tree.readlink(b"f") == b"other"


def make_deep(root: int, depth: int) -> None:
    """Make directories with two entries each, so that a walk has to come back to every one."""
    fd = os.dup(root)
    for _ in range(depth):
        os.mkdir(b"d" * 10, dir_fd=fd)
        os.close(os.open(b"e", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open(b"d" * 10, os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_deep_trees_need_few_descriptors(tree, home):
    """A tree 4,096 deep is walked, read and removed with far fewer than 64 descriptors."""
    with opened(home) as fd:
        make_deep(fd, 4096)
        before = len(descriptors())
        count = most = 0
        longest = b""
        for path, _ in tree.walk():
            count += 1
            longest = max(longest, path, key=len)
            if count % 500 == 0:
                most = max(most, len(descriptors()) - before)
        assert count == 2 * 4096
        assert most <= 8
        assert tree.listdir(longest) == []
        assert disk_usage(fd) >= 4096 * 512
        tree.remove_tree(b"d" * 10)
    assert tree.listdir() == [b"e"]


def test_removes_what_nobody_may_read(tree, home):
    """Directories of mode 000 and 0500 that belong to us are removed with all they hold."""
    (home / "work/work/x").mkdir(parents=True)
    (home / "work/work/x/f").write_bytes(b"")
    (home / "work/work/x").chmod(0)
    (home / "work/work").chmod(0o500)
    if ROOT:
        os.mknod(home / "work" / "whiteout", stat.S_IFCHR, 0)
    (home / "work").chmod(0)
    tree.remove_tree(b"work")
    assert tree.listdir() == []
    with pytest.raises(FileMissing):
        tree.remove_tree(b"work")
    with pytest.raises(Denied):
        tree.remove_tree(b".")


def test_removes_many_names(tree, home):
    """A directory with more names than one batch is emptied."""
    (home / "many").mkdir()
    with opened(home / "many") as fd:
        for number in range(12_000):
            os.mkdir(str(number), dir_fd=fd) if number % 3 == 0 else os.symlink(
                "x", str(number), dir_fd=fd
            )
    tree.remove_tree(b"many")
    assert tree.listdir() == []


def test_measures_hard_links_once(home):
    """Disk usage counts a file once, whatever number of names it has."""
    (home / "f").write_bytes(os.urandom(1 << 20))
    with opened(home) as fd:
        once = disk_usage(fd)
        os.link(home / "f", home / "g")
        assert disk_usage(fd) == once
    assert once >= 1 << 20


def test_comes_back_only_to_where_it_came_from(tree, home):
    """A directory that is moved while the walk is in it does not lead the walk elsewhere."""
    tree.write(b"a/b/c/f", b"", parents=True)
    tree.write(b"a/z", b"", parents=True)
    (home.parent / "outside" / "deep").mkdir(parents=True)
    seen = []
    for path, _ in tree.walk():
        seen.append(path)
        if path == b"a/b/c/f":
            os.rename(home / "a/b/c", home.parent / "outside" / "deep" / "c")
    assert seen == [b"a", b"a/b", b"a/b/c", b"a/b/c/f", b"a/z"]


@pytest.mark.skipif(not ROOT, reason="mounting in a namespace of its own needs root")
def test_does_not_cross_mounts(home, walker):
    """A mount below the root is another tree: nothing in it is read, listed or removed."""
    (home / "mnt").mkdir()
    script = f"""
import os, sys
from sandboxsdk import syscalls as sc
from sandboxsdk.errors import Denied
from sandboxsdk.host import Tree
sc.unshare(sc.CLONE_NEWNS)
sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)
other = {str(home.parent / "other")!r}
os.mkdir(other)
open(other + "/f", "w").close()
sc.mount(other, {str(home / "mnt")!r}, None, sc.MS_BIND)
tree = Tree(os.open({str(home)!r}, os.O_PATH), with_openat2={walker})
for call in (lambda: tree.read(b"mnt/f"), lambda: tree.listdir(b"mnt"), lambda: list(tree.walk()),
             lambda: tree.remove_tree(b"mnt")):
    try:
        call()
    except Denied:
        continue
    sys.exit("crossed a mount")
assert os.listdir(other) == ["f"]
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(__import__("sys").path)},
    )
    assert done.returncode == 0, done.stderr


def thread_ids() -> list[str]:
    with open(f"/proc/self/task/{threading.get_native_id()}/status", encoding="ascii") as file:
        return [line for line in file if line.startswith(("Uid", "Gid", "Groups"))]


@as_root
def test_acts_with_other_ids(home, walker):
    """With ids, what is made belongs to them, and what only root may read is refused."""
    os.chown(home, 12345, 12346)
    (home / "roots").write_bytes(b"secret")
    (home / "roots").chmod(0o640)
    with opened(home) as fd:
        tree = Tree(fd, ids=(12345, 12346), with_openat2=walker)
        before = thread_ids()
        tree.write(b"d/f", b"x", parents=True)
        tree.symlink(b"l", b"x")
        tree.chmod(b"d", 0o700)
        for name in (b"d", b"d/f", b"l"):
            entry = tree.stat(name)
            assert (entry.st_uid, entry.st_gid) == (12345, 12346)
        with pytest.raises(Denied):
            tree.read(b"roots")
        with pytest.raises(Denied):
            tree.chmod(b"roots", 0o777)
        assert tree.read(b"d/f") == b"x"
        (home / "d").chmod(0)
        tree.remove_tree(b"d")
        assert thread_ids() == before


@as_root
def test_ids_are_those_of_one_thread_and_for_one_call(home):
    """Other threads keep their ids, and an exception or an open walk leaves none behind."""
    os.chown(home, 12345, 12346)
    with opened(home) as fd:
        tree = Tree(fd, ids=(12345, 12346))
        before = thread_ids()
        others: list[list[str]] = []
        with pytest.raises(KeyError), tree.acting():
            assert thread_ids()[0].split()[1:] == ["0", "0", "0", "12345"]
            assert thread_ids()[1].split()[4] == "12346"
            assert thread_ids()[2].split()[1:] == []
            thread = threading.Thread(target=lambda: others.append(thread_ids()))
            # A new thread is a copy of the one that starts it, so it is compared to one that was
            # there.
            thread.start()
            thread.join()
            with open(f"/proc/self/task/{os.getpid()}/status", encoding="ascii") as file:
                main = [line for line in file if line.startswith("Uid")]
            raise KeyError(main[0])
        assert thread_ids() == before
        tree.write(b"a/b", b"", parents=True)
        for _ in tree.walk():
            assert thread_ids() == before
        with pytest.raises(FileMissing):
            tree.read(b"none")
        assert thread_ids() == before


@as_root
def test_other_threads_keep_their_ids(home):
    """While one thread acts with other ids, a thread that was there before is still root."""
    go, seen = threading.Event(), []
    done = threading.Event()

    def other() -> None:
        go.wait(30)
        seen.append(thread_ids())
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    before = thread_ids()
    with opened(home) as fd, Tree(fd, ids=(12345, 12346)).acting():
        go.set()
        done.wait(30)
    thread.join()
    assert seen == [before]


@pytest.mark.skipif(ROOT, reason="root may act with any ids")
def test_ids_need_permission(home):
    """An ordinary user who asks for other ids is refused, and keeps its own."""
    before = thread_ids()
    with opened(home) as fd, pytest.raises(SandboxError):
        Tree(fd, ids=(12345, 12346)).stat(b".")
    assert thread_ids() == before


NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


@settings(max_examples=40, deadline=None)
@given(names=st.lists(NAMES, unique=True, max_size=8), data=st.binary(max_size=100))
def test_any_legal_name_works(tmp_path_factory, names, data):
    """Names are bytes: whatever the kernel takes is written, listed, read and removed."""
    path = tmp_path_factory.mktemp("names")
    with opened(path) as fd:
        tree = Tree(fd)
        for name in names:
            tree.write(b"d/" + name, data, parents=True)
        if names:
            assert tree.listdir(b"d") == sorted(names)
            assert all(tree.read(b"d/" + name) == data for name in names)
            tree.remove_tree(b"d")
        assert tree.listdir() == []


@pytest.fixture(scope="module")
def swapper(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("swapper") / "swapper"
    subprocess.run([compiler, "-O2", "-o", path, SWAPPER], check=True, timeout=60)
    return path


@pytest.mark.timeout(300)
def test_swapped_directory_leads_nowhere(tree, home, tmp_path, swapper):
    """While a directory and a link out trade names, not a byte is read or written outside."""
    secret = tmp_path / "secret"
    secret.mkdir()
    for name in ("file", "victim", "only-outside"):
        (secret / name).write_bytes(b"secret")
    (secret / "sub").mkdir()
    before = snapshot(secret)
    (home / "a").mkdir()
    (home / "a" / "file").write_bytes(b"inside")
    (home / "b").symlink_to(secret)
    seen = {"through": 0, "refused": 0}
    operations = [
        lambda n: tree.read(b"a/file") == b"inside",
        lambda n: tree.write(b"a/new", b"x") is None,
        lambda n: tree.write(b"a/sub/new", b"x", parents=True) is None,
        lambda n: b"only-outside" not in tree.listdir(b"a"),
        lambda n: tree.remove_tree(b"a/sub") is None,
        lambda n: b"secret" not in {path.rpartition(b"/")[2] for path, _ in tree.walk(b"a")},
        lambda n: all(b"only-outside" not in path for path, _ in tree.walk(b"a")),
        lambda n: tree.chmod(b"a/new", 0o600) is None,
        lambda n: tree.symlink(b"a/l", b"x", replace=True) is None,
        lambda n: tree.rename(b"a/new", b"a/newer", replace=True) is None,
        lambda n: tree.unlink(b"a/newer") is None,
        lambda n: stat.S_ISREG(tree.stat(b"a/file").st_mode),
    ]
    with subprocess.Popen([swapper, home, "a", "b"], stdout=subprocess.PIPE) as attacker:
        try:
            assert attacker.stdout is not None
            assert attacker.stdout.readline() == b"ready\n"
            for number in range(OPERATIONS):
                try:
                    assert operations[number % len(operations)](number)
                except Denied:
                    seen["refused"] += 1
                except (FileMissing, FileConflict):
                    pass
                else:
                    seen["through"] += 1
        finally:
            attacker.kill()
    assert snapshot(secret) == before
    assert seen["through"] > 10, seen
    assert seen["refused"] > 10, seen


def snapshot(directory: Path) -> list[tuple[object, ...]]:
    return sorted(
        (p.name, p.lstat().st_mode, p.lstat().st_ino, p.is_file() and p.read_bytes())
        for p in [directory, *directory.rglob("*")]
    )
