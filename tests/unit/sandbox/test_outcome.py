"""The one decision about why a command ended."""

from __future__ import annotations

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxsdk.model import Reason
from sandboxsdk.runtime import Ended, Pressure
from sandboxsdk.sandbox.outcome import judge, start_trouble

CALM = Pressure()
OOM = Pressure(oom_kills=1)
CROWDED = Pressure(pids_refused=1)


def ended(exit_code: int | None, *, lost: bool = False) -> Ended:
    return Ended(started=True, exit_code=exit_code, lost=lost)


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 128, 193, 200, 255])
def test_an_ordinary_exit_code(code):
    """What does not stand for a signal is an exit."""
    assert judge(ended(code), None, CALM, CALM) == ("exit", code, None)


@pytest.mark.parametrize("signal", [1, 2, 9, 11, 15, 31, 34, 64])
def test_a_signal_keeps_its_exit_code(signal):
    """128 + n is signal n, and the exit code stays as a shell gives it."""
    assert judge(ended(128 + signal), None, CALM, CALM) == ("signal", 128 + signal, signal)


@pytest.mark.parametrize("cause", ["timeout", "killed", "oom", "disk"])
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("code", [None, 0, 137])
def test_our_own_kill_is_the_reason(cause, lost, code):
    """Who killed the command knows why it ended, whatever else happened to it meanwhile."""
    assert judge(ended(code, lost=lost), cause, CALM, OOM) == (cause, code, None)


@pytest.mark.parametrize("code", [0, 1, 137, None])
def test_the_counter_tells_of_memory(code):
    """A kill for want of memory is told by the counter, also when a shell hides it and exits 0."""
    assert judge(ended(code), None, CALM, OOM) == ("oom", code, None)
    assert judge(ended(code), None, OOM, OOM).reason != "oom"


def test_refused_processes():
    """A failure while the kernel refused processes is told as such; a success is a success."""
    assert judge(ended(1), None, CALM, CROWDED) == ("pids", 1, None)
    assert judge(ended(0), None, CALM, CROWDED) == ("exit", 0, None)
    assert judge(ended(1), None, CROWDED, CROWDED) == ("exit", 1, None)


def test_a_lost_box():
    """A command whose box died under it is lost and has no exit code."""
    assert judge(ended(None, lost=True), None, CALM, CALM) == ("lost", None, None)


def test_an_end_without_a_code():
    """A command that nobody of us killed and that left no code was killed from outside."""
    assert judge(ended(None), None, CALM, CALM) == ("killed", None, None)


PRESSURES = st.builds(Pressure, st.integers(0, 2), st.integers(0, 2))
REASONS = typing.get_args(Reason)


@given(
    code=st.none() | st.integers(0, 255),
    lost=st.booleans(),
    cause=st.none() | st.sampled_from(["timeout", "killed", "oom", "disk"]),
    before=PRESSURES,
    after=PRESSURES,
)
def test_every_end_has_one_reason(code, lost, cause, before, after):
    """Whatever comes in, the reason is one of the eight, a signal has its number, and without an
    exit code nothing is called an exit.
    """
    outcome = judge(ended(code, lost=lost), cause, before, after)
    assert outcome.reason in REASONS
    assert (outcome.signal is not None) == (outcome.reason == "signal")
    if outcome.exit_code is None:
        assert outcome.reason not in ("exit", "signal", "pids")
    if outcome.signal is not None:
        assert outcome.exit_code == 128 + outcome.signal


@pytest.mark.parametrize(
    "said, theirs, reason",
    [
        (
            "bwrap: execvp nope: No such file or directory\n",
            True,
            "nope: No such file or directory",
        ),
        ("bwrap: Can't chdir to /workspace/x: Not a directory\n", True, None),
        ("bwrap: Creating new namespace failed: Resource temporarily unavailable", False, None),
        ("", False, "it ended before it began"),
    ],
)
def test_whose_fault_it_is_that_nothing_started(said, theirs, reason):
    """A missing program or directory is the caller's mistake; everything else is the host's."""
    found = start_trouble(Ended(started=False), said)
    assert found[0] is theirs
    assert found[1] == (reason or said.removeprefix("bwrap: ").strip())


def test_what_the_holder_could_not_do_is_the_callers_fault():
    """Too long an argument list fails before bubblewrap runs; the holder says so itself."""
    trouble = "[Errno 7] Argument list too long"
    assert start_trouble(Ended(started=False, trouble=trouble), "") == (True, trouble)
