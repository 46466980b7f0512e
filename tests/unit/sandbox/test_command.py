"""Commands as people type them."""

from __future__ import annotations

import contextlib
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxsdk.errors import SandboxError, UsageError
from sandboxsdk.sandbox.command import resolve_command, shown


def resolve(typed, *, cwd=None, env=None, call_env=None, user=None):
    return resolve_command(typed, cwd=cwd, env=env or {}, call_env=call_env, user=user)


def test_a_str_goes_to_the_shell():
    """A str is one argument of /bin/sh -c, unchanged."""
    assert resolve("echo 'a b' | cat").argv == ("/bin/sh", "-c", "echo 'a b' | cat")


def test_a_list_is_taken_as_it_is():
    """Parts of a list are str, bytes or paths, and no shell looks at them."""
    command = resolve(["ls", b"\xff", PurePosixPath("/a b"), "$HOME", ""])
    assert command.argv == ("ls", "\udcff", "/a b", "$HOME", "")
    assert resolve(("true",)).argv == ("true",)


@pytest.mark.parametrize(
    "typed", [[], [""], b"true", 5, None, {"a"}, ["a", 5], ["a", None], "a\0b"]
)
def test_what_is_no_command(typed):
    """Nothing to run, bytes instead of text, and parts that are no text are refused."""
    with pytest.raises(UsageError):
        resolve(typed)


def test_an_argument_that_the_kernel_refuses():
    """An argument of 128 KiB is refused with a way out, counted in bytes; one byte less is not."""
    longest = "x" * (128 * 1024 - 1)
    assert resolve(["echo", longest]).argv[1] == longest
    for too_long in (longest + "x", "ü" * (64 * 1024)):
        with pytest.raises(UsageError, match="128 KiB") as caught:
            resolve(["echo", too_long])
        assert "input=" in caught.value.hint
        with pytest.raises(UsageError):
            resolve(too_long)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "cwd, expected",
    [
        (None, "/workspace"),
        (".", "/workspace"),
        ("sub/dir/", "/workspace/sub/dir"),
        ("../tmp", "/tmp"),
        ("/tmp", "/tmp"),
        (PurePosixPath("a"), "/workspace/a"),
        ("/procession", "/procession"),
    ],
)
def test_where_it_runs(cwd, expected):
    """A relative directory is below /workspace, an absolute one is itself."""
    assert resolve("true", cwd=cwd).cwd == expected


@pytest.mark.parametrize("cwd", ["", "a\0b", "/proc", "/proc/self/fd/3", "/tmp/../proc/1/root"])
def test_where_it_cannot_run(cwd):
    """An empty name, a NUL and the process file system are no working directories."""
    with pytest.raises(UsageError):
        resolve("true", cwd=cwd)


def test_later_variables_win():
    """What the call says goes over what the box says."""
    command = resolve("true", env={"A": "box", "B": "box"}, call_env={"B": "call", "C": "a\nb"})
    assert command.env == {"A": "box", "B": "call", "C": "a\nb"}


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A": "x\0y"}, {"A\0": "x"}, {"A": 5}])
def test_variables_that_cannot_be(env):
    """A name that is empty or holds = or NUL, and a value that is no text, are refused."""
    with pytest.raises(UsageError):
        resolve("true", call_env=env)


@pytest.mark.parametrize(
    "user, expected",
    [(None, "sandbox"), ("sandbox", "sandbox"), (1000, "sandbox"), ("root", "root"), (0, "root")],
)
def test_who_runs_it(user, expected):
    """There are two users, by name or by number."""
    assert resolve("true", user=user).user == expected


@pytest.mark.parametrize("user", ["nobody", "", 1001, False, -1])
def test_who_does_not_exist(user):
    """Any other user is refused."""
    with pytest.raises(UsageError):
        resolve("true", user=user)


ODD = st.none() | st.integers() | st.text() | st.binary() | st.lists(st.text() | st.binary())


@given(typed=ODD, cwd=st.none() | st.text())
def test_never_fails_in_another_way(typed, cwd):
    """Whatever is typed either resolves to arguments without NUL, or is a typed error."""
    with contextlib.suppress(SandboxError):
        command = resolve(typed, cwd=cwd)
        assert command.argv[0]
        assert not any("\0" in part for part in command.argv)
        assert command.cwd.startswith("/")


def test_shown_short():
    """A command in a message is text of bounded length."""
    assert shown(["ls", b"\xff", PurePosixPath("/a")]) == "ls \udcff /a"
    assert len(shown("x" * 5000)) < 250
