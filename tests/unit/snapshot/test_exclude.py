"""Patterns as in a .gitignore file, for paths of any bytes."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sandboxsdk.errors import UsageError
from sandboxsdk.snapshot import excluding

_NAMES = (
    "a",
    "b",
    "ab",
    "a.log",
    "build",
    "x",
    "\n",
    "a\n",
    "\nb",
    "x\ny",
    "\udcff",
    "[a]",
    "!b",
    "#c",
)
_PATTERNS = (
    *(
        "a",
        "b/",
        "/a",
        "*.log",
        "build/",
        "a/b",
        "a/*",
        "**/b",
        "a/**",
        "a?",
        "?",
        "*",
        "!a",
        "!a/b",
    ),
    *(
        "[ab]",
        "[!a]",
        "x*",
        "*y",
        "\\!b",
        "\\#c",
        "\\[a\\]",
        "# comment",
        "",
        "  ",
        "a/**/b",
        "/*/b",
    ),
)


def test_no_patterns_leave_nothing_out():
    """Without patterns there is nothing to ask."""
    assert excluding([]) is None
    assert excluding(()) is None


@pytest.mark.parametrize(
    ("patterns", "path", "is_directory", "left_out"),
    [
        (["secret"], b"secret", False, True),
        (["secret"], b"secret\n", False, False),
        (["secret"], b"\nsecret", False, False),
        (["secret"], b"a\nb/secret", False, True),
        (["secret"], b"\n/secret", True, True),
        (["*.key"], b"a\nb.key", False, True),
        (["*.key"], b"a.key\n", False, False),
        (["/top"], b"a\nb/top", False, False),
        (["build/"], b"build", False, False),
        (["build/"], b"build", True, True),
        (["build/"], b"x\n/build", True, True),
        (["\udcff"], b"\xff", False, True),
        (["*"], b"\xff\xfe", False, True),
        (["a?b"], b"a\nb", False, True),
        (["*", "!keep"], b"keep", False, False),
        (["# text"], b"# text", False, False),
        ([""], b"a", False, False),
    ],
)
def test_paths_are_matched_as_bytes(patterns, path, is_directory, left_out):
    """A newline or a byte that is no text is a character like any other, in any name."""
    assert excluding(patterns)(path, is_directory) is left_out


@pytest.mark.parametrize("patterns", [[3], [None], ["a", b"\0", object()]])
def test_what_is_no_pattern_is_refused(patterns):
    """What cannot be a pattern is a `UsageError` that says how to write one."""
    with pytest.raises(UsageError, match="is no pattern"):
        excluding(patterns)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@settings(max_examples=25)
@example(patterns=["b/", "!a"], paths=["a/a", "a/b/a"])
@given(
    patterns=st.lists(st.sampled_from(_PATTERNS), min_size=1, max_size=3),
    paths=st.lists(
        st.lists(st.sampled_from(_NAMES), min_size=1, max_size=3).map("/".join),
        min_size=1,
        max_size=12,
    ),
)
def test_git_agrees(tmp_path_factory, patterns, paths):
    """What a walk with these patterns reaches is what git does not ignore."""
    place = tmp_path_factory.mktemp("git")
    (place / "tree").mkdir()
    made = set()
    for path in paths:
        inner = place / "tree" / path
        try:
            inner.parent.mkdir(parents=True, exist_ok=True)
            inner.touch()
        except OSError:
            continue  # A file is where it needs a directory.
        if inner.is_file():
            made.add(path)
    (place / "ignore").write_bytes(os.fsencode("\n".join(patterns) + "\n"))
    environment = {"PATH": os.environ["PATH"], "HOME": str(place), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "init", "-q", "tree"], cwd=place, env=environment, check=True)
    command = ["git", "ls-files", "-z", "--others", "--exclude-from", str(place / "ignore")]
    listed = subprocess.run(
        command, cwd=place / "tree", env=environment, check=True, capture_output=True
    ).stdout
    excluded = excluding(patterns)

    def left_out(path: bytes) -> bool:
        parts = path.split(b"/")
        return any(
            excluded(b"/".join(parts[:end]), end < len(parts)) for end in range(1, len(parts) + 1)
        )

    kept = {path for path in map(os.fsencode, made) if not left_out(path)}
    assert kept == set(listed.split(b"\0")) - {b""}
