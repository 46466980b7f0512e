"""`box.files`: what people write as paths, what comes back, and copies to and from the host."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxsdk.errors import (
    Denied,
    FileConflict,
    FileMissing,
    LimitExceeded,
    SandboxError,
    UsageError,
)
from sandboxsdk.host import Tree, remove_tree
from sandboxsdk.sandbox.files import Files
from sandboxsdk.sandbox.transfer import TransferReport

OPERATIONS = int(os.environ.get("SANDBOXSDK_SWAP_OPERATIONS", "20000"))
SWAPPER = Path(__file__).parents[2] / "programs" / "swapper.c"
PLACES = {"/workspace": "workspace", "/tmp": "tmp", "/home/sandbox": "home"}


@contextlib.contextmanager
def files_below(directory: Path, *, with_openat2: bool | None = None):
    with contextlib.ExitStack() as stack:
        trees = {}
        for prefix, name in PLACES.items():
            (directory / name).mkdir(exist_ok=True)
            fd = os.open(directory / name, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, fd)
            trees[prefix] = fd
        # New trees at each call, as a box that was entered anew gives them.
        yield Files(lambda: {p: Tree(fd, with_openat2=with_openat2) for p, fd in trees.items()})


@pytest.fixture
def box(tmp_path):
    path = tmp_path / "box"
    path.mkdir()
    yield path
    fd = os.open(tmp_path, os.O_PATH)
    remove_tree(fd, "box")
    os.close(fd)


@pytest.fixture
def files(box):
    with files_below(box) as files:
        yield files


def test_writes_and_reads_text(files, box):
    """Text and bytes come back as they were written, relative paths below the workspace."""
    files.write("a/b.txt", "grüße\n\udcff")
    assert files.read_text("/workspace/a/./b.txt") == "grüße\n\udcff"
    assert files.read_bytes(PurePosixPath("a/b.txt")) == "grüße\n".encode() + b"\xff"
    files.write("/tmp/x", b"1", mode=0o4700)
    files.write("/home/sandbox/y", b"2")
    assert files.stat("/tmp/x").mode == 0o700
    assert files.stat("/tmp/x").path == "/tmp/x"
    assert (box / "home/y").read_bytes() == b"2"
    with pytest.raises(LimitExceeded):
        files.read_text("a/b.txt", limit=3)


@pytest.mark.parametrize(
    "path",
    ["a/../b", "..", "/etc/passwd", "/", "/home", "/workspaces/x", "", "a\0b", "/tmp/../etc"],
)
def test_refuses_paths_outside(files, path):
    """What does not lie plainly below one of the places is denied, and told of them."""
    for call in (files.read_bytes, files.stat, files.exists, files.remove, files.list, files.mkdir):
        with pytest.raises(Denied) as caught:
            call(path)
    if path.startswith("/") and ".." not in path:
        assert "/home/sandbox, /tmp, /workspace" in str(caught.value)


def test_describes_entries(files, box):
    """Stat and list describe entries, links as links with their targets, sorted by name."""
    files.write("d/f", "12345")
    (box / "workspace/d/link").symlink_to("/etc/passwd")
    os.mkfifo(box / "workspace/d/fifo")
    files.mkdir("d/sub")
    listed = files.list("d")
    assert [(e.path, e.kind, e.target) for e in listed] == [
        ("d/f", "file", None),
        ("d/fifo", "fifo", None),
        ("d/link", "symlink", "/etc/passwd"),
        ("d/sub", "directory", None),
    ]
    assert listed[0].size == 5
    assert files.stat("d/link").kind == "symlink"
    assert files.stat(".").kind == "directory"
    assert [e.path for e in files.list()] == ["d"]
    with pytest.raises(FileConflict):
        files.list("d/f")
    with pytest.raises(Denied):
        files.list("d/link")


def test_tells_what_exists(files, box):
    """An entry exists if it is there, be it a dangling link; what lies behind a link is denied."""
    (box / "workspace/dangling").symlink_to("nowhere")
    (box / "workspace/etc").symlink_to("/etc")
    files.write("f", "")
    assert files.exists("f")
    assert files.exists("dangling")
    assert not files.exists("g")
    assert not files.exists("f/g")
    with pytest.raises(Denied):
        files.exists("etc/passwd")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", [".hidden", "a", "b.py", "link"]),
        ("*.py", ["b.py"]),
        ("**/*.py", ["a/c.py", "a/d/e.py", "b.py"]),
        ("a/**", ["a/c.py", "a/d", "a/d/e.py", "a/d/f[1]"]),
        ("a/**/e.py", ["a/d/e.py"]),
        ("**/d/**/e.py", ["a/d/e.py"]),
        ("**", [".hidden", "a", "a/c.py", "a/d", "a/d/e.py", "a/d/f[1]", "b.py", "link"]),
        ("?/?.py", ["a/c.py"]),
        ("a/[a-c].py", ["a/c.py"]),
        ("a/[!a-c].py", []),
        ("a/d/f[[]1]", ["a/d/f[1]"]),
        ("link/*", []),
        ("./a/c.py", ["a/c.py"]),
        ("/workspace/a/*.py", ["a/c.py"]),
        ("/tmp/*", ["/tmp/t"]),
        (".", []),
    ],
)
def test_globs(files, box, pattern, expected):
    """Patterns fit name by name, `**` any directories, and no link is followed."""
    for path in ("a/c.py", "a/d/e.py", "a/d/f[1]", "b.py", ".hidden", "/tmp/t"):
        files.write(path, "")
    (box / "workspace/link").symlink_to("a")
    assert files.glob(pattern) == expected


def test_globs_past_what_cannot_be_read(files, box):
    """A directory that cannot be read is passed over, not an error."""
    files.write("open/f", "")
    files.write("shut/f", "")
    (box / "workspace/shut").chmod(0)
    found = files.glob("*/f")
    (box / "workspace/shut").chmod(0o700)
    assert "open/f" in found


def test_removes(files, box):
    """Remove takes files, links themselves and empty directories; more needs `recursive`."""
    files.write("d/e/f", "")
    (box / "outside").mkdir()
    (box / "workspace/link").symlink_to(box / "outside")
    files.remove("link", recursive=True)
    assert (box / "outside").is_dir()
    with pytest.raises(FileConflict, match="recursive=True"):
        files.remove("d")
    files.remove("d", recursive=True)
    with pytest.raises(FileMissing):
        files.remove("d")
    files.remove("d", missing_ok=True)
    with pytest.raises(SandboxError):
        files.remove(".", recursive=True)


def test_moves(files, box):
    """A move renames, replaces only when told to, never a directory, and works between places."""
    files.write("a", "1")
    files.write("b", "2")
    with pytest.raises(FileConflict, match="overwrite=True"):
        files.move("a", "b")
    files.move("a", "b", overwrite=True)
    assert files.read_text("b") == "1"
    files.write("d/x", "3")
    with pytest.raises(FileConflict):
        files.move("b", "d", overwrite=True)
    with pytest.raises(UsageError):
        files.move("d", "d/e")
    with pytest.raises(UsageError):
        files.move("b", "b", overwrite=True)
    with pytest.raises(UsageError):
        files.move(".", "/tmp/all")
    (box / "workspace/d/link").symlink_to("x")
    files.move("d", "/tmp/d")
    assert files.read_text("/tmp/d/x") == "3"
    assert files.stat("/tmp/d/link").target == "x"
    assert not files.exists("d")
    os.mkfifo(box / "tmp/d/fifo")
    with pytest.raises(FileConflict, match="fifo"):
        files.move("/tmp/d", "back")
    assert not files.exists("back")
    assert files.exists("/tmp/d/x")


def test_makes_directories(files):
    """Directories are made with their parents; one that is there is a conflict unless allowed."""
    files.mkdir("a/b/c")
    with pytest.raises(FileConflict):
        files.mkdir("a")
    files.mkdir("a", exist_ok=True)
    with pytest.raises(FileMissing):
        files.mkdir("x/y", parents=False)


def test_copies_single_files(files, tmp_path):
    """A file goes in and comes out with its bits; what is in the way on the host is a conflict."""
    (tmp_path / "in").write_bytes(b"content")
    (tmp_path / "in").chmod(0o4711)
    (tmp_path / "link").symlink_to("in")
    report = files.upload(tmp_path / "link", "d/f")
    assert report.ok
    assert str(report) == "1 file, 7 B"
    assert files.stat("d/f").mode == 0o711
    files.download("d/f", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"content"
    (tmp_path / "dir").mkdir()
    with pytest.raises(FileConflict):
        files.download("d/f", tmp_path / "dir")
    with pytest.raises(Denied):
        files.download("d/f", tmp_path / "link")
    with pytest.raises(UsageError):
        files.download("d/f", tmp_path / "none" / "f")
    with pytest.raises(UsageError):
        files.upload(tmp_path / "none", "x")
    with pytest.raises(LimitExceeded):
        files.upload(tmp_path / "in", "x", limit=3)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError):
        files.upload(tmp_path / "fifo", "x")


def test_download_needs_an_empty_directory(files, tmp_path):
    """A directory is downloaded to a new or an empty one, nothing else."""
    files.write("d/f", "1")
    files.download("d", tmp_path / "new")
    assert (tmp_path / "new/f").read_text() == "1"
    with pytest.raises(FileConflict):
        files.download("d", tmp_path / "new")
    (tmp_path / "empty").mkdir()
    files.download("d", f"{tmp_path}/empty/.")
    assert (tmp_path / "empty/f").read_text() == "1"
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(Denied):
        files.download("d", tmp_path / "link")


def test_copies_skip_what_is_special(files, box, tmp_path):
    """FIFOs and sockets are skipped and named; links are made as links and not followed."""
    files.write("d/f", "1")
    (box / "workspace/d/evil").symlink_to(tmp_path / "secret")
    (box / "workspace/d/dir").symlink_to("/etc")
    os.mkfifo(box / "workspace/d/fi\nfo")
    fd = os.open(box / "workspace/d", os.O_PATH)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{fd}/sock")
    os.close(fd)
    report = files.download("d", tmp_path / "out")
    assert report.skipped == ("fi\nfo", "sock")
    assert not report.ok
    assert "skipped fi\\nfo" in str(report)
    assert os.readlink(tmp_path / "out/dir") == "/etc"
    assert sorted(os.listdir(tmp_path / "out")) == ["dir", "evil", "f"]
    assert files.upload(tmp_path / "out", "back").ok
    with pytest.raises(FileConflict):
        files.download("d/fi\nfo", tmp_path / "fifo")


def test_upload_writes_through_no_planted_link(files, box, tmp_path):
    """A link planted where a directory is to go is refused, and nothing behind it changes."""
    (tmp_path / "in/d").mkdir(parents=True)
    (tmp_path / "in/d/f").write_text("new")
    (tmp_path / "outside").mkdir()
    files.mkdir("target")
    (box / "workspace/target/d").symlink_to(tmp_path / "outside")
    with pytest.raises(Denied):
        files.upload(tmp_path / "in", "target")
    assert os.listdir(tmp_path / "outside") == []


def test_upload_into_itself_ends(files, box):
    """A directory uploaded to a place below itself is copied once, without the copy."""
    files.write("a/f", "1")
    files.upload(box / "workspace", "copy")
    assert files.glob("copy/**") == ["copy/a", "copy/a/f"]


def test_report_shows_few_of_many():
    """A report names the first of what it skipped, and counts the rest."""
    report = TransferReport(files=2, bytes=2048, skipped=tuple(map(str, range(15))))
    assert str(report).splitlines()[0] == "2 files, 2.0 KiB"
    assert str(report).splitlines()[-1] == "skipped 5 more"


NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
LEAVES = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=50), st.integers(0o400, 0o777)),
    st.tuples(st.just("link"), st.binary(min_size=1, max_size=30).filter(lambda t: b"\0" not in t)),
)
TREES = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=4),
    lambda below: st.dictionaries(NAMES, st.one_of(LEAVES, below), max_size=4),
    max_leaves=12,
)


def plant(directory: bytes, tree: dict[bytes, object]) -> None:
    for name, what in tree.items():
        path = directory + b"/" + name
        if isinstance(what, dict):
            os.mkdir(path, 0o750)
            plant(path, what)
        elif what[0] == "link":
            os.symlink(what[1], path)
        else:
            with open(path, "wb") as file:
                file.write(what[1])
            os.chmod(path, what[2])


def pictured(directory: bytes) -> dict[bytes, tuple[object, ...]]:
    found = {}
    for parent, directories, names in os.walk(directory):
        for name in directories + names:
            path = os.path.join(parent, name)
            entry = os.lstat(path)
            content: object = None
            if stat.S_ISLNK(entry.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(entry.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            found[path[len(directory) :]] = (entry.st_mode, content)
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=TREES)
def test_round_trip(tmp_path_factory, tree):
    """Any tree of files, links and directories is the same after an upload and a download."""
    path = tmp_path_factory.mktemp("trip")
    (path / "box").mkdir()
    (path / "in").mkdir()
    plant(os.fsencode(path / "in"), tree)
    with files_below(path / "box") as files:
        assert files.upload(path / "in", "x").ok
        assert files.download("x", path / "out").ok
        assert len(files.glob("x/**")) == len(pictured(os.fsencode(path / "in")))
    assert pictured(os.fsencode(path / "out")) == pictured(os.fsencode(path / "in"))


@pytest.fixture(scope="module")
def swapper(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("swapper") / "swapper"
    subprocess.run([compiler, "-O2", "-o", path, SWAPPER], check=True, timeout=60)
    return path


def state_of(directory: Path) -> list[tuple[object, ...]]:
    return sorted(
        (str(p), p.lstat().st_mode, p.lstat().st_ino, p.is_file() and p.read_bytes())
        for p in [directory, *directory.rglob("*")]
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("with_openat2", [None, False], ids=["kernel", "components"])
def test_swapped_directory_leads_nowhere(box, tmp_path, swapper, with_openat2):
    """Where a directory trades names with a link, nothing outside is seen or changed."""
    secret = tmp_path / "secret"
    (secret / "sub").mkdir(parents=True)
    (secret / "file").write_text("secret")
    (secret / "outside").write_text("secret")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/new").write_text("new")
    before = state_of(secret)
    seen = {"through": 0, "refused": 0}
    out = tmp_path / "out"

    def download(files: Files) -> bool:
        shutil.rmtree(out, ignore_errors=True)
        files.download("w", out)
        # A link that was copied as a link leads to the secret, rightly; only real files count.
        real = [p for p in out.rglob("*") if not p.is_symlink() and p.is_file()]
        return not any(p.name == "outside" or p.read_text() == "secret" for p in real)

    operations = [
        lambda f: f.read_text("w/a/file") == "inside",
        lambda f: f.write("w/a/new", "x") is None,
        lambda f: f.write("w/a/sub/new", "x") is None,
        lambda f: not any("outside" in e.path for e in f.list("w/a")),
        lambda f: not any("outside" in path for path in f.glob("w/**")),
        lambda f: f.remove("w/a/sub", recursive=True) is None,
        lambda f: f.upload(tmp_path / "in", "w/a/up") is not None,
        lambda f: f.move("w/a/new", "w/a/newer", overwrite=True) is None,
        lambda f: f.mkdir("w/a/made", exist_ok=True) is None,
        lambda f: f.stat("w/a/file").size == len("inside"),
        lambda f: f.remove("w/a/newer") is None,
        download,
    ]
    with files_below(box, with_openat2=with_openat2) as files:
        files.write("w/a/file", "inside")
        work = box / "workspace/w"
        (work / "b").symlink_to(secret)
        with subprocess.Popen([swapper, work, "a", "b"], stdout=subprocess.PIPE) as attacker:
            try:
                assert attacker.stdout is not None
                assert attacker.stdout.readline() == b"ready\n"
                for number in range(OPERATIONS // 2):
                    try:
                        assert operations[number % len(operations)](files)
                    except Denied:
                        seen["refused"] += 1
                    except (FileMissing, FileConflict):
                        pass
                    else:
                        seen["through"] += 1
            finally:
                attacker.kill()
    assert state_of(secret) == before
    assert seen["through"] > 10, seen
    assert seen["refused"] > 10, seen
