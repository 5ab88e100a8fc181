"""Every bug of the register is planted or named, and every plant finds its place and its test."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from bugs import BUGS, NOT_PLANTED

from ghosttune import train
from ghosttune.judging import evaluate
from ghosttune.proving.specimens import short_run, write_model, write_rows
from ghosttune.run.directory import RunDir

REPOSITORY = Path(__file__).parents[2]
REGISTER = {"000": 16, "001": 9, "003": 11, "004": 18, "100": 7}
"""Project -> how many bugs of it the register holds; 100 is this one."""

SECONDS = 2500


def test_every_bug_of_the_register_is_planted_or_named():
    register = {f"R-{project}-{number:02}" for project, count in REGISTER.items() for number in range(1, count + 1)}
    planted = {name[:8] for name in BUGS}
    assert planted | NOT_PLANTED.keys() == register and not planted & NOT_PLANTED.keys()
    assert all(bug.what for bug in BUGS.values())


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_finds_its_place_and_names_a_test_that_exists(name):
    with pytest.MonkeyPatch.context() as patch:
        BUGS[name].plant(patch)
    paths = [word.partition("::") for word in shlex.split(BUGS[name].tests.partition(" -k ")[0])]
    for path, _, function in paths:
        text = (REPOSITORY / path).read_text()
        assert not function or re.search(rf"^def {function}\(", text, re.MULTILINE), (path, function)


def test_a_failing_evaluation_fails_the_run(tmp_path, monkeypatch):
    """R-000-12: nothing that goes wrong in the evaluation is swallowed."""

    def fail(*given):
        raise ZeroDivisionError("no answers")

    monkeypatch.setattr(evaluate, "answered", fail)
    config = short_run(write_model(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl"))
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "run")
    assert RunDir(tmp_path / "run").read_record()["status"] == "failed"


@pytest.mark.slow(seconds=15)
def test_the_gate_tells_caught_from_missed(tmp_path, monkeypatch):
    command = [sys.executable, str(REPOSITORY / "scripts" / "mutation_gate.py"), "R-004-02", "R-004-14a"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0 and "2 of 2 bugs are caught" in done.stdout, done.stdout + done.stderr
