"""Crafted trees and prepared targets: every attack on a restore is tried, and ends as the table
says.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .rows import ROWS, Row
from .stand import Stand


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Print the table when all rows of this process are done."""
    lines: list[str] = []
    yield lines
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    if reporter is not None and capture is not None:
        with capture.global_and_fixture_disabled():
            reporter.write_line("")
            for line in sorted(lines):
                reporter.write_line(line)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_an_attack_ends_as_the_table_says(row: Row, table: list[str], tmp_path) -> None:
    """A crafted tree or target has the outcome that the row names, and nothing outside of the
    target changes; or the row says why it cannot apply.
    """
    verdict = "FAILED"
    try:
        assert row.probe or row.absent, "a row has a probe, or a reason not to"
        if row.probe is not None:
            stand = Stand(tmp_path)
            row.probe(stand)
            stand.check()
        verdict = "held" if row.probe else f"n/a: {row.absent}"
    except pytest.skip.Exception as skipped:
        verdict = f"skipped: {skipped}"
        raise
    finally:
        table.append(f"{row.id}  {row.tried:<36} {row.expected:<32} {verdict}")


@pytest.mark.parametrize("name", ["P05", "P06", "P07", "P10", "P11", "P14", "P21", "P29", "P32"])
def test_an_attack_on_the_way_ends_the_same_without_openat2(name: str, tmp_path, monkeypatch):
    """Where the kernel has no openat2, names are opened one by one, and lead nowhere else."""
    monkeypatch.setattr("sandboxsdk.snapshot.restore.has_openat2", lambda: False)
    stand = Stand(tmp_path)
    probe = next(row.probe for row in ROWS if row.id == name)
    assert probe is not None
    probe(stand)
    stand.check()


def test_every_row_is_named_once() -> None:
    """The table has P01 to P36, in order, and each row says what it is about."""
    assert [row.id for row in ROWS] == [f"P{n:02}" for n in range(1, 37)]
    assert all(row.tried and row.expected for row in ROWS)
