"""A patch from one tree to another: git and patch make of the old files the new ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from sandboxsdk.checkpoint.patch import make_patch
from sandboxsdk.checkpoint.unified import hunks
from sandboxsdk.errors import Corrupt, LimitExceeded
from sandboxsdk.snapshot import compare_trees
from sandboxsdk.snapshot import tree as t
from tests import trees

# A tree as it is written down: bytes are a file of mode 0644, a str a link, a dict a directory, a
# pair of either with a mode, and FIFO.
Spec = dict[bytes, Any]
FIFO = None
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
WAYS = ("plain", "repository", "index")
NAMED = re.compile(r'# not in this patch: "((?:[^"\\\n]|\\.)*)": [^\n]+\n')
ESCAPE = re.compile(rb"\\([0-7]{3}|.)")
LETTERS = dict(zip(b"abtnvfr", b"\a\b\t\n\v\f\r", strict=True))


def write(root: bytes, spec: Spec) -> None:
    """Make the files that a spec tells of."""
    for name, told in spec.items():
        what, mode = told if isinstance(told, tuple) else (told, None)
        path = root + b"/" + name
        if what is FIFO:
            os.mkfifo(path, 0o644)
        elif isinstance(what, str):
            os.symlink(os.fsencode(what), path)
        elif isinstance(what, dict):
            os.mkdir(path)
            write(path, what)
            os.chmod(path, 0o755 if mode is None else mode)
        else:
            Path(os.fsdecode(path)).write_bytes(what)
            os.chmod(path, 0o644 if mode is None else mode)


class Stage:
    """Two directories, the patch between them, and copies of the old one to try it on."""

    def __init__(self, place: Path, old: Spec, new: Spec) -> None:
        self.place, self.sink = place, trees.Memory()
        for name, spec in (("old", old), ("new", new)):
            (place / name).mkdir(mode=0o755)
            write(os.fsencode(place / name), spec)
        self.old, self.new = self.captured("old"), self.captured("new")
        self.patch = make_patch(self.sink, self.old, self.new)
        assert not re.search(r"[\ud800-\udfff]", self.patch)
        preamble, *parts = re.split(r"^(?=diff --git )", self.patch, maxsplit=1, flags=re.MULTILINE)
        assert NAMED.sub("", preamble) == ""
        self.named = {unquoted(quoted) for quoted in NAMED.findall(preamble)}
        self.empty = not parts

    @property
    def is_binary(self) -> bool:
        return "\nGIT binary patch\n" in self.patch

    def captured(self, name: str) -> bytes:
        return trees.capture(self.sink, self.place / name)

    def run(self, name: str, *command: str, given: str = "") -> str:
        """Run a program in one of the directories, as anybody with a common umask runs it."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.place),
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CEILING_DIRECTORIES": str(self.place),
        }
        kept = self.place / f"{name}.git"
        if kept.exists():
            environment |= {"GIT_DIR": str(kept), "GIT_WORK_TREE": str(self.place / name)}
        done = subprocess.run(
            command,
            cwd=self.place / name,
            env=environment,
            input=given.encode(),
            capture_output=True,
            umask=0o022,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr, given[:4000])
        return os.fsdecode(done.stdout)

    def copied(self, way: str) -> None:
        """Copy the old files, and make a repository of the copy if the way needs one."""
        shutil.copytree(self.place / "old", self.place / way, symlinks=True, copy_function=copy)
        if way in ("repository", "index"):
            (self.place / f"{way}.git").mkdir()
            self.run(way, "git", "init", "-q")
            self.run(way, "git", "add", "-A", "-f")

    def apply(self, way: str, *options: str) -> None:
        if not self.empty:
            index = ["--index"] if way == "index" else []
            self.run(way, "git", "apply", *index, *options, given=self.patch)

    def differences(self, way: str, wanted: bytes) -> list[str]:
        """Tell what differs from a tree and is not named by the patch."""
        found = []
        for change in compare_trees(self.sink, self.captured(way), wanted):
            for shown in filter(None, (change.path, change.old_path)):
                path = os.fsencode(shown)
                above = any(named.startswith(path + b"/") for named in self.named)
                below = any(f"{shown}/".startswith(f"{os.fsdecode(n)}/") for n in self.named)
                if not above and not below:
                    found.append(f"{change.kind} {shown} {change.mode or 0:o}")
        return found

    def lacking(self, way: str) -> list[str]:
        """Tell what differs from the old files, but for empty directories that are not there."""
        found = []
        for change in compare_trees(self.sink, self.captured(way), self.old):
            kept = self.place / "old" / change.path
            folder = kept.is_dir() and not kept.is_symlink()
            if change.kind != "added" or not folder:
                found.append(f"{change.kind} {change.path}")
        return found


def copy(source: str, target: str) -> None:
    """Copy one file, whatever it is: opening a FIFO would wait."""
    found = os.lstat(source)
    if os.path.isfile(source):
        shutil.copy2(source, target)
    else:
        os.mkfifo(target, found.st_mode & 0o7777)


def unquoted(text: str) -> bytes:
    def meant(found: re.Match[bytes]) -> bytes:
        told = found[1]
        if len(told) == 3:
            return bytes([int(told, 8)])
        return bytes([LETTERS.get(told[0], told[0])])

    return ESCAPE.sub(meant, text.encode())


def leaf(name: bytes) -> Spec:
    return {name: b"one\ntwo\n"}


LINES = b"".join(b"line %d\n" % number for number in range(40))
# Each with what it is made of and what it becomes.
CASES: dict[str, tuple[Spec, Spec]] = {
    "added": ({}, {b"f": b"1\n2\n"}),
    "removed": ({b"f": b"1\n2\n"}, {}),
    "one line": ({b"f": LINES}, {b"f": LINES.replace(b"line 20\n", b"another\n")}),
    "both ends": ({b"f": LINES}, {b"f": b"first\n" + LINES + b"last\n"}),
    "six lines between": (
        {b"f": LINES},
        {b"f": LINES.replace(b"e 3\n", b"x\n").replace(b"e 10", b"y")},
    ),
    "seven lines between": (
        {b"f": LINES},
        {b"f": LINES.replace(b"e 3\n", b"x\n").replace(b"e 11", b"y")},
    ),
    "two hunks": ({b"f": LINES}, {b"f": LINES.replace(b"e 3\n", b"e x\n").replace(b"30", b"y")}),
    "newline comes": ({b"f": b"1\n2"}, {b"f": b"1\n2\n"}),
    "newline goes": ({b"f": b"1\n2\n"}, {b"f": b"1\n2"}),
    "never a newline": ({b"f": b"1\n2"}, {b"f": b"0\n2"}),
    "empty comes": ({}, {b"e": b"", b"d": {b"e": b""}}),
    "empty goes": ({b"e": b"", b"d": {b"e": b""}}, {}),
    "to empty": ({b"f": b"1\n"}, {b"f": b""}),
    "from empty": ({b"f": b""}, {b"f": b"1\n"}),
    "crlf": ({b"f": b"1\r\n2\r\n"}, {b"f": b"1\r\n3\r\n\r"}),
    "odd ends of lines": (
        {b"f": b"1\x0c2\r3\xe2\x80\xa84\n5\x0b\x1c\x85\n".replace(b"\x85", b"\xc2\x85")},
        {b"f": b"1\x0c2\r3\xe2\x80\xa84\n6\x0b\x1c\xc2\x85\n"},
    ),
    "looks like a patch": (
        {b"f": b"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n"},
        {b"f": b"-- a/x\n++ b/x\ndiff --git a/x b/x\n-x\n+y\n\\ No newline at end of file\n"},
    ),
    "nul": ({b"f": b"1\0\n"}, {b"f": b"1\0\0\n" * 50}),
    "no utf-8": ({b"f": b"\xff\n"}, {b"f": b"text\n"}),
    "surrogate": ({b"f": b"text\n"}, {b"f": b"\xed\xb2\x80\n"}),
    "binary comes": ({}, {b"f": bytes(range(256)) * 3}),
    "binary goes": ({b"f": bytes(range(256)) * 3}, {}),
    "to executable": ({b"f": b"x\n"}, {b"f": (b"x\n", 0o755)}),
    "from executable": ({b"f": (b"x\n", 0o755)}, {b"f": (b"y\n", 0o644)}),
    "executable": ({b"o": (b"x\n", 0o755)}, {b"n": (b"y\n", 0o755)}),
    "renamed": ({b"a": b"x\n", b"k": b""}, {b"d": {b"b": b"x\n"}, b"k": b""}),
    "renamed, binary, executable": ({b"a": b"\0"}, {b"b": (b"\0", 0o755)}),
    "links": ({b"g": "a", b"c": "a", b"k": "k"}, {b"n": "nowhere/é", b"c": "b", b"k": "k"}),
    "link to no text": ({b"l": "a"}, {b"l": "\udcff", b"m": "a\nb\n"}),
    "link to file": ({b"l": "a", b"m": "b"}, {b"l": b"a\n", b"m": b""}),
    "file to link": ({b"l": b"a\n", b"m": b""}, {b"l": "a", b"m": "b"}),
    "file to directory": ({b"d": b"x\n"}, {b"d": {b"e": {b"f": b"y\n"}}}),
    "directory to file": ({b"d": {b"e": {b"f": b"y\n"}, b"g": b"z\n"}}, {b"d": b"x\n"}),
    "link to directory": ({b"d": "k", b"k": leaf(b"f")}, {b"d": leaf(b"f"), b"k": leaf(b"f")}),
    "directory to link": ({b"d": leaf(b"f"), b"k": leaf(b"f")}, {b"d": "k", b"k": leaf(b"f")}),
    "empty directory to file": ({b"d": {}}, {b"d": b"x\n"}),
    "moved into what was a file": ({b"d": b"x\n", b"m": b"y\n"}, {b"d": {b"n": b"y\n"}}),
    "moved out of what is a file": ({b"d": {b"n": b"y\n"}}, {b"d": b"x\n", b"m": b"y\n"}),
    "below and beside": (
        {b"a": b"1\n", b"a-b": b"2\n", b"a.c": b"3\n"},
        {b"a": {b"b": b"1\n"}, b"a-b": b"4\n", b"a.c": {b"x": b"2\n"}},
    ),
    "spaces": (
        {b"a b": b"1\n", b"e e": b"", b"m m": b"m\n", b" x": (b"x\n", 0o644)},
        {b"a b": b"2\n", b"c  d": b"3\n", b"n n": b"m\n", b"f f": b"", b" x": (b"x\n", 0o755)},
    ),
    "space at the end": ({b"a ": b"1\n", b"b ": b"", b"t\t": b"x\n"}, {b"a ": b"2\n", b"c ": b""}),
    "not ascii": ({b"\xc3\xa4": b"1\n"}, {b"\xc3\xa4": b"2\n", b"\xff\xfe": b"", b"\x7f": b"3\n"}),
    "control": (
        {b"a\tb": b"1\n", b"c\nd": b"2\n", b"m\x01": b"m\n"},
        {b"a\tb": b"3\n", b"c\nd": b"4\n", b"n\x1b[": b"m\n", b"\a\b\v\f\r": b""},
    ),
    "quotes": ({b'a"b': b"1\n", b"c\\d": b"2\n"}, {b'a"b': b"3\n", b"c\\d": b"4\n", b'"q"': b""}),
    "dashes": ({b"-x": b"1\n", b"--": b""}, {b"-x": b"2\n", b"---": b"3\n", b"+++ b": b"4\n"}),
    "like prefixes": (
        {b"a": {b"b": b"1\n"}, b"b": {b"a": b"2\n"}, b"x b": {}},
        {b"a": {b"b": b"3\n"}, b"b": {b"a": b""}, b"x b": {b"x": b""}, b"dev": {b"null": b"4\n"}},
    ),
}
# GNU patch removes last of all; it refuses what git itself writes of these, too.
NOT_BY_PATCH = {
    *("file to directory", "directory to file", "link to directory", "directory to link"),
    *("empty directory to file", "moved into what was a file", "moved out of what is a file"),
    "below and beside",
}


@pytest.fixture(autouse=True)
def common_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_git_makes_the_new_files_and_the_old_ones_again(tmp_path, case, way):
    """Nothing is left out, in a plain directory, in a repository, and with its index."""
    stage = Stage(tmp_path, *CASES[case])
    assert stage.named == set()
    stage.copied(way)
    stage.apply(way)
    assert compare_trees(stage.sink, stage.captured(way), stage.new) == []
    stage.apply(way, "-R")
    assert stage.lacking(way) == []


@pytest.mark.skipif(shutil.which("patch") is None, reason="patch is not installed")
@pytest.mark.parametrize("case", sorted(CASES.keys() - NOT_BY_PATCH))
def test_patch_makes_the_new_files(tmp_path, case):
    """`patch -p1` does the same, if nothing binary changed."""
    stage = Stage(tmp_path, *CASES[case])
    stage.copied("plain")
    if stage.is_binary:
        return
    stage.run("plain", "patch", "-p1", "--force", given=stage.patch)
    assert compare_trees(stage.sink, stage.captured("plain"), stage.new) == []


# Old, new, and what is named.
UNCARRIED: dict[str, tuple[Spec, Spec, set[bytes]]] = {
    "empty directories": ({b"g": {}}, {b"n": {b"m": {}}, b"o": {}}, {b"g", b"n/m", b"o"}),
    "emptied": ({b"d": {b"f": b"x\n"}}, {b"d": {}}, {b"d"}),
    "mode of a directory": ({b"d": {b"f": b""}}, {b"d": ({b"f": b""}, 0o700)}, {b"d"}),
    "new directory of a mode": ({}, {b"d": ({b"f": b"x\n"}, 0o700)}, {b"d"}),
    "directory that git makes anew": (
        {b"d": ({b"f": b"x\n"}, 0o700)},
        {b"d": ({b"g": b"y\n"}, 0o700)},
        {b"d"},
    ),
    "directory that stays": (
        {b"d": ({b"f": b"x\n", b"k": b""}, 0o700)},
        {b"d": ({b"g": b"y\n", b"k": b""}, 0o700)},
        set(),
    ),
    "new file of a mode": ({}, {b"f": (b"x\n", 0o600)}, {b"f"}),
    "edited file of a mode": ({b"f": (b"x\n", 0o600)}, {b"f": (b"y\n", 0o600)}, {b"f"}),
    "renamed file of a mode": ({b"f": (b"x\n", 0o600)}, {b"g": (b"x\n", 0o600)}, {b"g"}),
    "edited file of another mode": ({b"f": (b"x\n", 0o744)}, {b"f": (b"y\n", 0o755)}, {b"f"}),
    "edited file of a group": ({b"f": (b"x\n", 0o664)}, {b"f": (b"y\n", 0o755)}, {b"f"}),
    "mode alone": ({b"f": b"x\n"}, {b"f": (b"x\n", 0o640)}, {b"f"}),
    "right of the group": ({b"f": b"x\n"}, {b"f": (b"x\n", 0o664)}, {b"f"}),
    "set-id": ({b"f": (b"x\n", 0o755)}, {b"f": (b"x\n", 0o4755)}, {b"f"}),
    "fifo comes": ({}, {b"p": FIFO, b"d": {b"p": FIFO}}, {b"p", b"d/p"}),
    "fifo goes": ({b"p": FIFO, b"d": {b"p": FIFO, b"f": b""}}, {}, {b"p", b"d/p"}),
    "fifo to file": ({b"p": FIFO}, {b"p": b"x\n", b"q": b"y\n"}, {b"p"}),
    "file to fifo": ({b"p": b"x\n"}, {b"p": FIFO, b"q": b"y\n"}, {b"p"}),
    "fifo to directory": ({b"p": FIFO}, {b"p": {b"f": b"x\n"}, b"q": b""}, {b"p", b"p/f"}),
    "a fifo is in the way": (
        {b"d": {b"p": FIFO, b"f": b"x\n"}},
        {b"d": b"y\n", b"g": b"x\n"},
        {b"d", b"d/p"},
    ),
    "an empty directory is in the way": (
        {b"d": {b"e": {}, b"f": b"x\n"}},
        {b"d": "y", b"q": b"z\n"},
        {b"d", b"d/e"},
    ),
    "endless link to directory": (
        {b"l": "m", b"m": "./l", b"d": {b"n": "../d/../l"}},
        {b"l": {b"f": b"x\n"}, b"m": "./l", b"d": {b"n": {b"g": b""}}, b"q": b""},
        {b"l/f", b"d/n/g"},
    ),
    "names of git": (
        {b"d": {b".git": {b"config": b"1\n", b"HEAD": b"x"}, b"f": b"1\n"}},
        {b"d": {b".git": {b"config": b"2\n"}, b"f": b"2\n"}, b"e": {b".GIT": b""}, b"GIT~1": b""},
        {b"d/.git", b"e/.GIT", b"GIT~1"},
    ),
    "more of them": (
        {},
        {b".git .": b"", b".Git:x": b"", b".git\\x": b"", b".gitx": b"", b".gitmodules": "x"},
        {b".git .", b".Git:x", b".git\\x", b".gitmodules"},
    ),
    "name that looks like a patch": (
        {},
        {b"x\ndiff --git a": {b"f b": {}}, b"@@ -1 +1 @@\r": {}},
        {b"x\ndiff --git a/f b", b"@@ -1 +1 @@\r"},
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", UNCARRIED)
def test_what_git_does_not_know_is_named(tmp_path, case, way):
    """It is named before the first part, and all the rest is carried."""
    old, new, named = UNCARRIED[case]
    stage = Stage(tmp_path, old, new)
    assert stage.named == named
    stage.copied(way)
    stage.apply(way)
    assert stage.differences(way, stage.new) == []
    stage.apply(way, "-R")
    # Modes that git lost on the way, it does not find again.
    assert [told for told in stage.lacking(way) if not told.startswith("mode ")] == []


def test_what_is_written_is_what_git_writes(tmp_path):
    """Headers and hunks of text are those of git."""
    old = {b"f": LINES, b"l": "a", b"m": (b"x\n", 0o755), b"o": b"old\n", b"g": b"gone", b"e": b""}
    new = {b"f": LINES[:-8], b"l": "b", b"m": b"y\n", b"n": b"old\n", b"\xff x": b"\r\n"}
    stage = Stage(tmp_path, old, new)
    stage.copied("index")
    tree = stage.run("index", "git", "write-tree").strip()
    stage.apply("index")
    told = stage.run(
        "index", "git", "diff-index", "-p", "--full-index", "--binary", "-M100%", "--cached", tree
    )
    # git shows a line that a hunk is below; that is for readers.
    assert stage.patch == re.sub(r"^(@@.*@@).*$", r"\1", told, flags=re.MULTILINE)


@pytest.fixture
def sink():
    return trees.Memory()


def test_nothing_differs(sink):
    """Equal trees, and those that differ in times alone, have no patch."""
    one = trees.tree(sink, {b"f": trees.file(sink, b"f", b"x", mtime=1)})
    two = trees.tree(sink, {b"f": trees.file(sink, b"f", b"x", mtime=2)})
    assert make_patch(sink, one, one) == ""
    assert make_patch(sink, one, two) == ""


def test_a_file_in_parts_is_read_as_one(sink):
    """However a file is stored, holes included: equal bytes make no part, others the same one."""
    whole = trees.tree(sink, {b"f": trees.file(sink, b"f", b"ab\n" + bytes(5) + b"c\n")})
    parts = trees.tree(sink, {b"f": trees.sparse(sink, b"f", [b"ab", b"\n", 5, b"c\n"])})
    other = trees.tree(sink, {b"f": b"ab\n"})
    assert make_patch(sink, whole, parts) == ""
    assert make_patch(sink, other, parts) == make_patch(sink, other, whole)
    assert make_patch(sink, parts, other) == make_patch(sink, whole, other)


def test_content_of_another_size_is_no_content(sink):
    """A blob that is shorter or longer than what names it says is an error."""
    fine = trees.file(sink, b"f", b"x\n")
    lying = t.msgspec.structs.replace(fine, size=7)
    with pytest.raises(Corrupt, match="another size"):
        make_patch(sink, trees.tree(sink, {}), trees.tree(sink, {b"f": lying}))
    part = t.write_parts(sink, [t.Part(9, fine.content)])
    lying = t.Node(b"f", t.PARTS, 0o644, size=9, content=part)
    with pytest.raises(Corrupt, match="another size"):
        make_patch(sink, trees.tree(sink, {}), trees.tree(sink, {b"f": lying}))
    gone = t.msgspec.structs.replace(fine, content=bytes(32))
    with pytest.raises(Corrupt):
        make_patch(sink, trees.tree(sink, {}), trees.tree(sink, {b"f": gone}))


def test_large_files_devices_and_long_paths_are_named(sink, monkeypatch):
    """They are named without being read; too much for a patch is an error."""
    large = trees.sparse(sink, b"l", [(64 << 20) + 1])
    deep = trees.directory(sink, [trees.file(sink, b"f", b"x\n")])
    for _ in range(3000):
        deep = trees.directory(sink, [trees.below(b"d", deep)])
    new = {
        b"l": large,
        b"c": t.Node(b"c", t.CHARACTER, 0o600, size=259),
        b"s": t.Node(b"s", t.SOCKET, 0o600),
        b"d": trees.below(b"d", deep),
    }
    old = trees.tree(sink, {b"l": b"small\n"})
    patch = make_patch(sink, old, trees.tree(sink, new))
    reasons = [line.rpartition(": ")[2] for line in patch.splitlines()]
    assert reasons[0] == "a device"
    assert set(reasons[1:-2]) == {"git takes no path of this name"}
    assert reasons[-2:] == ["a file of 67,108,865 bytes", "a socket"]
    monkeypatch.setattr("sandboxsdk.checkpoint.patch._PATCH_BYTES_MAX", 1000)
    with pytest.raises(LimitExceeded, match="1,000 bytes"):
        make_patch(sink, old, trees.tree(sink, {b"l": b"x\n" * 1000}))


# --- Lines ----------------------------------------------------------------------------------------


def patched(old: str, told: list[str]) -> str:
    """Apply hunks to a text, believing none of their numbers."""
    lines = re.findall(r"[^\n]*\n|[^\n]+\Z", old)
    made: list[str] = []
    at = 0
    for hunk in told:
        head, *rest = hunk.split("\n")[:-1]
        found = re.fullmatch(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", head)
        assert found
        first, ours, second, theirs = (
            1 if number is None else int(number) for number in found.groups()
        )
        start = first - 1 if ours else first
        made += lines[at:start]
        at = start
        assert len(made) == (second - 1 if theirs else second)
        body: list[list[str]] = []
        for line in rest:
            if line.startswith("\\"):
                body[-1][1] = body[-1][1][:-1]
            else:
                body.append([line[0], f"{line[1:]}\n"])
        assert sum(sign in " -" for sign, _ in body) == ours
        assert sum(sign in " +" for sign, _ in body) == theirs
        for sign, line in body:
            if sign in " -":
                assert lines[at] == line
                at += 1
            if sign in " +":
                made.append(line)
    return "".join(made + lines[at:])


TEXTS = st.lists(st.sampled_from(["a\n", "b\n", "c\n", "\n", "d\r\n", "e\x0c\u2028\n", "f"])).map(
    "".join
)


@settings(max_examples=400)
@given(old=TEXTS, new=TEXTS, most=st.sampled_from([0, 4, 10**6]), levels=st.sampled_from([0, 1, 9]))
def test_hunks_make_the_new_text(old, new, most, levels):
    """Whatever is compared in full, cut into anchors, or replaced whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sandboxsdk.checkpoint.unified._LINES_MAX", most)
        patch.setattr("sandboxsdk.checkpoint.unified._LEVELS_MAX", levels)
        told = list(hunks(old, new))
    assert patched(old, told) == new
    assert bool(told) == (old != new)


def peeled(count: int, junk: str) -> str:
    """Give a text in which each anchor makes the next one unique."""
    return "".join(f"u{k}\n{junk}{k}\nu{k + 1}\n" for k in range(count, 0, -1))


def repeated(count: int, junk: str) -> str:
    """Give a text with many gaps that are dear to compare."""
    return "".join(
        f"anchor {k}\n" + "".join(f"x\n{junk}{j}\n" for j in range(95)) for k in range(count)
    )


def test_only_text_is_written_as_text(tmp_path):
    """A NUL makes a file binary, as anything does that is not UTF-8."""
    for content in (b"a\0b\n", b"\xff\n", b"\xc0\x80\n"):
        place = tmp_path / content.hex()
        place.mkdir()
        assert Stage(place, {}, {b"f": content}).is_binary


def test_too_many_lines_are_one_hunk(monkeypatch):
    """Above the bound what is between the first and the last difference is replaced whole."""
    old = "".join(f"{k}\n" for k in range(30))
    new = old.replace("5\n", "x\n")
    assert len(list(hunks(old, new))) == 3
    monkeypatch.setattr("sandboxsdk.checkpoint.unified._LINES_MAX", 20)
    (hunk,) = hunks(old, new)
    assert hunk.startswith("@@ -3,27 +3,27 @@\n")
    assert patched(old, [hunk]) == new


def test_comparing_in_full_has_a_bound(monkeypatch):
    """When the steps are used up, a gap is replaced."""
    old, new = repeated(4, "a"), repeated(4, "b")
    assert hunks_kept(old, new) == 4 + 4 * 95
    monkeypatch.setattr("sandboxsdk.checkpoint.unified._STEPS_MAX", 4_000_000)
    assert 4 < hunks_kept(old, new) < 4 + 4 * 95


def hunks_kept(old: str, new: str) -> int:
    """Count the lines that stay."""
    lines = "".join(hunks(old, new)).split("\n")
    return old.count("\n") - sum(line.startswith("-") for line in lines)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "texts",
    [
        tuple("".join(f"{j}{k}\n" for k in range(100_000)) for j in "ab"),
        tuple(
            "".join(f"{k}\n" for k in order) for order in (range(100_000), range(100_000, 0, -1))
        ),
        tuple(peeled(33_000, junk) for junk in "ab"),
        tuple(repeated(500, junk) for junk in "ab"),
        ("a\n" * 1_100_000, "b\n" * 1_100_000),
        ("\n" * 100_000, "\n" * 99_000 + "x\n"),
    ],
    ids=["all", "reversed", "peeled", "repeated", "very many", "alike"],
)
def test_a_hostile_text_costs_no_time(texts):
    """The time does not grow with the square of the lines."""
    old, new = texts
    assert patched(old, list(hunks(old, new))) == new


def test_a_line_of_a_million():
    """One changed line is one hunk, in little time; two far away are two."""
    lines = [f"{number}\n" for number in range(1_000_000)]
    old = "".join(lines)
    lines[500_000] = "changed\n"
    (hunk,) = hunks(old, "".join(lines))
    assert hunk.count("\n") == 9
    lines[10] = "changed\n"
    assert len(list(hunks(old, "".join(lines)))) == 2


# --- Any trees ------------------------------------------------------------------------------------

NAMES = st.sampled_from([b"a", b"b", b"c", b"d", b"x y", b"\xff\n", b"-q", b"t ", b'"\\'])
CONTENTS = st.sampled_from(
    [
        b"",
        LINES,
        LINES.replace(b"7", b"x"),
        b"no newline",
        b"a\r\nb\r\n",
        b"\0\1",
        b"\xff",
        b"\xe2\x80\xa8\x0c\n",
    ]
)
MODES = st.sampled_from([0o644, 0o644, 0o755])
LEAVES = st.one_of(st.tuples(CONTENTS, MODES), st.sampled_from(["gone/x", "é", "\udcff"]))
SPECS = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=4),
    lambda below: st.dictionaries(NAMES, LEAVES | below, max_size=4),
    max_leaves=10,
)
ANY_LEAVES = st.one_of(
    st.tuples(CONTENTS, st.sampled_from([0o644, 0o600, 0o744, 0o4755])),
    st.sampled_from(["a", "./b", "../d/c", "/"]),
    st.just(FIFO),
)
ANY_SPECS = st.recursive(
    st.dictionaries(NAMES, LEAVES | ANY_LEAVES, max_size=4),
    lambda below: st.dictionaries(
        NAMES, LEAVES | ANY_LEAVES | below | st.tuples(below, st.just(0o700)), max_size=4
    ),
    max_leaves=10,
)


@st.composite
def pairs(draw, specs):
    """Give a tree, and what became of it: much is as it was, or elsewhere."""
    old = draw(specs)
    return old, draw(st.one_of(specs, changed(old, specs)))


@st.composite
def changed(draw, old, specs):
    new = {}
    for name, told in old.items():
        how = draw(st.sampled_from(["keep", "keep", "drop", "move", "below", "other"]))
        if how == "keep":
            new[name] = told
        elif how == "move":
            new[draw(NAMES)] = told
        elif how == "below" and isinstance(told, dict):
            new[name] = draw(changed(told, specs))
        elif how == "other":
            new |= draw(specs)
    return new


@settings(max_examples=150)
@given(pair=pairs(SPECS), way=st.sampled_from(WAYS))
def test_git_carries_any_tree_there_and_back(pair, way):
    """Of what git knows only empty directories are left out, and the way back is the same."""
    with tempfile.TemporaryDirectory() as place:
        stage = Stage(Path(place), *pair)
        stage.copied(way)
        stage.apply(way)
        assert stage.differences(way, stage.new) == []
        stage.apply(way, "-R")
        assert stage.lacking(way) == []


@settings(max_examples=150)
@given(pair=pairs(ANY_SPECS), way=st.sampled_from(WAYS))
def test_what_is_not_carried_is_named(pair, way):
    """Whatever the trees hold: git takes the patch, and all that differs then was named."""
    with tempfile.TemporaryDirectory() as place:
        stage = Stage(Path(place), *pair)
        stage.copied(way)
        stage.apply(way)
        assert stage.differences(way, stage.new) == []
