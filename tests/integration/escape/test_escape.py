"""Hostile code in a box: every row of the table of escapes is tried, and ends as the table says."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .rows import ROWS, Row
from .stand import Stand, parsed

# What works for an ordinary user outside of a box. If it does not, a row proves nothing.
SUCCEED_OUTSIDE = {
    "calls": "process_vm_readv ptrace_sibling no_randomisation memfd_exec add_key unshare_files",
    "sockets": "netlink-0 netlink-16 family-1-1 family-2-1",
    "setid": "chmod fchmod fchmodat openat tmpfile mknod socket chmod-by-proc openat-dirty",
}


@pytest.fixture(scope="module")
def stand(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Stand]:
    """Make the boxes once, and print the table when all rows of this process are done."""
    made = Stand(tmp_path_factory.mktemp("escape"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SSH_AUTH_SOCK", "DOCKER_HOST", "DBUS_SESSION_BUS_ADDRESS", "API_TOKEN"):
            patch.setenv(name, made.canary)
        try:
            yield made
        finally:
            made.close()
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    if reporter is not None and capture is not None:
        with capture.global_and_fixture_disabled():
            reporter.write_line("")
            for line in sorted(made.table):
                reporter.write_line(line)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_an_attempt_ends_as_the_table_says(row: Row, stand: Stand) -> None:
    """What hostile code tries in a box has the outcome that the row names, or says why it cannot
    apply.
    """
    verdict = "FAILED"
    try:
        assert row.probes or row.absent, "a row has probes, or a reason not to"
        for probe in row.probes:
            probe(stand)
        verdict = "held" if row.probes else f"n/a: {row.absent}"
    finally:
        stand.table.append(f"{row.id}  {row.probed:<42} {row.expected:<50} {verdict}")


def test_the_attempts_succeed_outside(stand: Stand) -> None:
    """The same attacker, run by an ordinary user without a box, gets what the box refuses."""
    who = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        place = Path(directory)
        program = place / "probe"
        program.write_bytes(stand.program.read_bytes())
        program.chmod(0o755)
        for group, names in SUCCEED_OUTSIDE.items():
            done = subprocess.run(
                [str(program), group, str(place), "0"], capture_output=True, text=True, **who
            )
            found = parsed(done.stdout)
            assert {name: found[name] for name in names.split()} == dict.fromkeys(
                names.split(), "ok"
            )
            if group == "setid":
                assert found["set-id-left"] == "yes"


def test_every_row_is_named_once() -> None:
    """The table has X01 to X70, in order, and each row says what it is about."""
    names = [row.id for row in ROWS]
    assert [name for name in names if name[0] == "X"] == [f"X{n:02}" for n in range(1, 71)]
    assert len(names) == len(set(names))
    assert all(row.probed and (row.expected or row.absent) for row in ROWS)
