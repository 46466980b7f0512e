"""kill -9 in the midst of freezing, merging and exchanging layers: the next box shows what was
there before, or what was wanted.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .layering import LEAVING_OUT, OPERATIONS

# Operation: how many calls it has at least.
CALLS = {"checkpoint": 15, "checkpoint that merges": 25, "restore": 20, "drop": 10}
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("leaving_out", ["", LEAVING_OUT])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_kill_before_any_call_leaves_the_right_files(
    name: str, leaving_out: str, tmp_path: Path
) -> None:
    """At each call that changes something on disk; what is excluded stays in any case."""
    program = [sys.executable, "-m", "tests.integration.crash.layering"]
    command = [*program, name, str(tmp_path), leaving_out]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= CALLS[name] + (15 if leaving_out else 0)
