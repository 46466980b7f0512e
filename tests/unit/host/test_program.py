"""Programs of ours run alone; the host's facts are told without its secrets."""

from __future__ import annotations

import os
import re
import sys

import pytest

from sandboxsdk.errors import HostRefused
from sandboxsdk.host import (
    boot_id,
    command_line,
    environment,
    host_name,
    output_of,
    start_python,
)

TELL = """
import os, sys
facts = [len(os.environ) - ("LC_CTYPE" in os.environ), os.getcwd(), os.getsid(0) == os.getpid(),
         "site" in sys.modules, sys.flags.isolated, sys.argv[1:],
         list(map(int, os.listdir("/proc/self/fd")))]
os.write(int(sys.argv[1]), repr(facts).encode())
"""


def test_program_runs_alone():
    """It has a session and an environment of its own, no site-packages, and no other descriptor."""
    reader, writer = os.pipe()
    try:
        program = start_python(TELL, [str(writer), "two words"], [writer])
        os.close(writer)
        told = b""
        while chunk := os.read(reader, 4096):
            told += chunk
        program.wait(60)
        assert not program.alive()
        facts = eval(told)
    finally:
        os.close(reader)
    assert facts[:5] == [0, "/", True, False, 1]
    assert facts[5] == [str(writer), "two words"]
    # One more is the listing's own.
    assert len(set(facts[6]) - {0, 1, 2, writer}) <= 1


def test_wait_has_an_end():
    """A program that stays is left alone after the time is over."""
    reader, writer = os.pipe()
    program = start_python(
        "import sys; sys.stdin = open(int(sys.argv[1])); sys.stdin.read()", [str(reader)], [reader]
    )
    os.close(reader)
    assert program.alive()
    pid = program._process.pid
    program.wait(0.01)
    os.close(writer)
    os.waitpid(pid, 0)


def test_program_that_cannot_start_is_refused(monkeypatch, tmp_path):
    """An interpreter that is gone is a typed error."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    with pytest.raises(HostRefused, match="gone"):
        start_python("", [], [])
    for nothing in ("", None):
        monkeypatch.setattr(sys, "executable", nothing)
        with pytest.raises(HostRefused):
            start_python("", [], [])


def test_output_is_given_or_none():
    """Success gives the text; failure, absence and delay give None."""
    assert output_of(["echo", "x"]) == "x\n"
    assert output_of(["printf", r"\377"]) == "\ufffd"
    assert output_of(["false"]) is None
    assert output_of(["no-such-program-here"]) is None
    assert output_of(["/"]) is None
    assert output_of(["sleep", "60"], timeout=0.05) is None


def test_output_comes_from_a_clean_environment(monkeypatch):
    """The caller's environment, which may hold secrets or a strange PATH, is not passed on."""
    monkeypatch.setenv("CANARY", "x")
    assert "CANARY" not in (output_of(["env"]) or "CANARY")


def test_facts(monkeypatch):
    """The boot, the host, the program's name and single variables can be asked for."""
    assert re.fullmatch("[0-9a-f-]{36}", boot_id())
    assert host_name()
    monkeypatch.setenv("SANDBOXSDK_TEST", "x")
    assert environment("SANDBOXSDK_TEST") == "x"
    monkeypatch.delenv("SANDBOXSDK_TEST")
    assert environment("SANDBOXSDK_TEST") is None


def test_program_name_has_no_arguments(monkeypatch):
    """Arguments may hold secrets; the name is shown to others."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/deploy", "--token=canary"])
    assert command_line() == "deploy"
    for nothing in ([], [""]):
        monkeypatch.setattr(sys, "argv", nothing)
        assert command_line() == "python"
