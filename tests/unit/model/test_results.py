"""Results are values that print well."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxsdk.model import Change, Description, ExecResult, Finding, LimitState, Report, Usage


@given(st.binary())
def test_output_is_text_and_bytes(data):
    """The text of any output turns back into its bytes."""
    result = ExecResult(exit_code=0, stdout_bytes=data, stderr_bytes=data)
    assert result.stdout.encode("utf-8", "surrogateescape") == data
    assert result.stderr == result.stdout


@pytest.mark.parametrize(("code", "ok"), [(0, True), (1, False), (None, False), (137, False)])
def test_only_zero_is_ok(code, ok):
    """A command is ok when it exited with 0, and only then."""
    assert ExecResult(exit_code=code).ok is ok


def test_results_pickle():
    """Results cross to other processes."""
    result = ExecResult(exit_code=0, stdout_bytes=b"\xff", usage=Usage(pids=3))
    assert pickle.loads(pickle.dumps(result)) == result


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (Change(kind="added", path="a", size=5), "+ a  (5 B)"),
        (Change(kind="removed", path="a"), "- a"),
        (Change(kind="modified", path="a", size=2048), "~ a  (2.0 KiB)"),
        (Change(kind="mode", path="a", mode=0o755), "~ a  [mode]"),
        (Change(kind="type", path="a"), "~ a  [type]"),
        (Change(kind="renamed", path="b", old_path="a"), "> a -> b"),
    ],
)
def test_change_is_one_line(change, text):
    """A sign, the path, and what else is worth knowing."""
    assert str(change) == text


@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)))
def test_change_never_moves_the_cursor(new, old):
    """Names made inside a sandbox are shown without control characters, both of a rename's."""
    for change in (
        Change(kind="renamed", path=new, old_path=old),
        Change(kind="added", path=new),
    ):
        assert str(change).isprintable()


def test_limits_and_description_show_how_each_is_kept():
    """The description names each limit, and is ok when none is unsupported."""
    kept = LimitState(name="memory", value=2 * 1024**3, how="enforced", by="cgroup")
    free = LimitState(name="wall_time", value=None, how="unlimited", by="nobody")
    gap = LimitState(name="pids", value=256, how="unsupported", by="nobody")
    assert "2.0 GiB" in str(kept)
    assert "none" in str(free)

    def described(*limits):
        return Description(
            runtime="r",
            version="1",
            isolation="namespace",
            user="u",
            image="i",
            workspace="w",
            network="n",
            limits=limits,
            notes=("careful",),
        )

    assert described(kept, free).ok
    assert not described(kept, gap).ok
    assert "note: careful" in str(described(kept))


def test_report_shows_the_remedy_of_each_gap():
    """A gap is marked and followed by what to do; one gap makes the report not ok."""
    good = Finding(name="bwrap", ok=True, found="0.11", remedy="none")
    gap = Finding(name="cgroup", ok=False, found="read-only", remedy="delegate one")
    assert Report(findings=(good,)).ok
    report = Report(findings=(good, gap))
    assert not report.ok
    assert "GAP  cgroup" in str(report)
    assert "-> delegate one" in str(report)
    assert "-> none" not in str(report)
