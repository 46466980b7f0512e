"""Errors say what happened and what to do, in one tree, and cross to other processes."""

from __future__ import annotations

import builtins
import copy
import multiprocessing
import pickle
import threading

import pytest

from sandboxsdk import errors
from sandboxsdk.errors import SandboxError, UsageError
from sandboxsdk.model import ExecResult

EVERY = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, SandboxError)
]
RESULT = ExecResult(exit_code=3, stdout_bytes=b"out", stderr_bytes=b"wrong\n\x1b[2J")
FACTS = {
    "what": "name",
    "value": "x\ty",
    "reason": "is not good",
    "path": "a/b",
    "wanted": "abc",
    "home": "/h",
    "matches": "1, 2",
    "task": "t1",
    "holder": "process 5",
    "since": "today",
    "command": "make test",
    "result": RESULT,
    "timeout": 2.5,
    "runtime": "bubblewrap",
    "box": "b1",
    "to": "/work",
    "paths": ["a/b", "c"],
    "status": "completed",
}
SECOND = {
    errors.UsageError: ValueError,
    errors.NotFound: LookupError,
    errors.Denied: PermissionError,
    errors.Conflict: None,
    errors.LimitExceeded: None,
    errors.Unavailable: None,
    errors.Corrupt: None,
}


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
class TestEvery:
    def test_comes_back_from_pickle_as_it_was(self, kind):
        """Type, facts, attributes, hint and text survive pickling and copying."""
        error = kind(**FACTS, hint="do this")
        for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
            assert type(again) is kind
            assert again.fields == FACTS
            assert (again.hint, again.path, again.result) == ("do this", "a/b", RESULT)
            assert str(again) == str(error)

    def test_says_what_happened_and_what_to_do(self, kind):
        """The text has no gap where a fact belongs, ends with the hint, and every kind has one."""
        text = str(kind(**FACTS))
        assert "<" not in text
        assert text.splitlines()[0].strip()
        assert str(kind(**FACTS, hint="do this")).endswith("\n  hint: do this")
        if kind is not SandboxError:
            assert kind.hint
            assert text.endswith(f"hint: {kind.hint}")

    def test_escapes_what_would_move_the_cursor(self, kind):
        """No control character or lone surrogate of a fact or hint reaches the terminal."""
        facts = {name: "a\x1b[2J\r\x07\u202e\udc80b" for name in FACTS if name != "result"}
        text = str(kind(**facts, result=RESULT, hint="\x1b]0;x\x07"))
        assert all(c.isprintable() or c == "\n" for c in text)
        text.encode()

    def test_survives_facts_that_are_missing_or_cannot_be_shown(self, kind):
        """An error never hides behind an error of its own text."""

        class Rude:
            def __repr__(self):
                raise RuntimeError

        facts = {name: value for name, value in FACTS.items() if name in {"result", "command"}}
        assert str(kind(**facts))
        facts.update(value=10**6000, reason=Rude(), path=Rude(), wanted=Rude(), what=None)
        assert str(kind(**facts))

    def test_crosses_to_another_process_whatever_it_holds(self, kind):
        """A fact that cannot be pickled is replaced by its text."""
        error = kind(**{**FACTS, "value": threading.Lock(), "extra": lambda: None})
        again = pickle.loads(pickle.dumps(error))
        assert "lock" in again.fields["value"]
        assert again.fields["path"] == "a/b"


def test_codes_are_unique():
    """Each error has a code of its own, of small letters."""
    codes = [kind.code for kind in EVERY]
    assert len(set(codes)) == len(codes)
    assert all(code.replace("_", "").isalpha() and code.islower() for code in codes)


def test_second_level_is_the_builtin_that_callers_know():
    """ValueError, LookupError and PermissionError catch the kinds that are promised to be these."""
    assert {kind for kind in EVERY if kind.__bases__[0] is SandboxError} == set(SECOND)
    for kind, builtin in SECOND.items():
        known = [
            base for base in kind.__mro__ if base.__name__ in dir(builtins) and base is not object
        ]
        if builtin is None:
            assert known == [Exception, BaseException]
        else:
            assert builtin in known


def test_root_is_no_builtin_mix():
    """`except ValueError` or `except OSError` catches no error that is not one."""
    assert SandboxError.__bases__ == (Exception,)


def test_leaves_hang_on_the_second_level_and_are_final():
    """What can be raised is a leaf of the second level, or the second level itself."""
    for kind in set(EVERY) - {SandboxError, *SECOND}:
        assert kind.__bases__[0] in SECOND
        assert kind.__final__


def test_deadlines_are_timeout_errors():
    """`except TimeoutError` catches what ran out of time."""
    assert issubclass(errors.ExecTimeout, TimeoutError)
    assert issubclass(errors.WaitTimeout, TimeoutError)
    assert issubclass(errors.FileMissing, FileNotFoundError)


def test_value_is_shown_as_it_was_written():
    """Text is quoted once, a number is not."""
    assert "(got 'a\\x1bb')" in str(UsageError(what="n", value="a\x1bb", reason="r"))
    assert "(got 5)" in str(UsageError(what="n", value=5, reason="r"))
    assert "(got b'x')" in str(UsageError(what="n", value=b"x", reason="r"))


def test_newline_in_a_name_fakes_no_line():
    """Only a reason may have several lines."""
    text = str(errors.Denied(path="a\n  hint: run this", reason="one\ntwo"))
    assert text.splitlines()[:2] == ["a\\n  hint: run this: one", "two"]


def test_long_facts_are_shortened():
    """A megabyte of text does not make a megabyte of message."""
    assert len(str(UsageError(what="name", value="x" * 10**6, reason="is long"))) < 5000


def test_command_failed_shows_the_end_of_what_was_printed():
    """The last lines of stderr are in the text, those of stdout if there are none."""
    text = str(errors.CommandFailed(command="make", result=RESULT))
    assert text.startswith("command make ended with exit code 3\nwrong")
    quiet = ExecResult(exit_code=None, stdout_bytes=b"out", reason="oom")
    text = str(errors.CommandFailed(command="make", result=quiet))
    assert text.startswith("command make ended by its memory limit (reason: oom)\nout")


def test_errors_cross_a_multiprocessing_pool():
    """A pool gives errors back, raised or returned, as what they were."""
    context = multiprocessing.get_context("spawn")
    error = errors.TaskLocked(task="t", holder="process 1", since="now")
    with context.Pool(1) as pool:
        again = pool.apply(copy.copy, (error,))
        assert (type(again), again.fields) == (type(error), error.fields)
        with pytest.raises(errors.Denied, match="p: no"):
            pool.apply(exec, ("raise error", {"error": errors.Denied(path="p", reason="no")}))
