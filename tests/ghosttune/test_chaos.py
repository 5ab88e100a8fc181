"""The short form of `make chaos`: a few kills and full disks of the commands that take seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "chaos.py"
LIMIT = 1400
"""Seconds; it takes 40 on an idle machine."""


@pytest.mark.slow(seconds=40)
def test_killed_at_random_writes_commands_leave_the_bytes_of_one_that_nobody_killed(record_property):
    options = ["--kills", "8", "--full", "3", "--kinds", "train,index,infer,merge,evaluate", "--minutes", "4"]
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=LIMIT)
    record_property("said", done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 failures in" in done.stdout
