"""The known-answer proofs hold here, and `ghosttune prove` says so, or that they do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ghosttune.cli.main import main
from ghosttune.errors import InputError
from ghosttune.proving import proofs
from ghosttune.proving.findings import Bench, Finding, Proof, at_least, at_most, beside, every
from ghosttune.proving.proofs import PROOFS, prove

QUICK = (1, 5, 10, 11)
"""Tried in every run of the tests, and 3 by the command; the others take longer: `make proofs` tries all in full."""

SECONDS = 1000


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*")
@pytest.mark.parametrize("number", QUICK)
def test_proof(number, tmp_path):
    (proved,) = prove([number], quick=True, folder=tmp_path)
    assert proved.passed, proved


def test_there_is_a_proof_for_every_number():
    assert [proof.number for proof in PROOFS] == list(range(1, 12))
    with pytest.raises(InputError, match=r"no proof has the number 12; there are 1 to 11"):
        prove([3, 12])


def test_a_figure_beside_the_others_proves_nothing_and_not_a_number_fails():
    assert at_most("", float("nan"), 1).passed is False and at_least("", float("nan"), 1).passed is False
    assert at_most("", 1.0, 1).passed and not at_most("", 1.1, 1).passed
    assert every("", {"this": True, "that": False}) == Finding("", "1 of 2 (not that)", "all", False)
    assert not every("", []).passed, "no case at all proves nothing"


def failing(bench: Bench) -> list[Finding]:
    raise ZeroDivisionError("by nothing")


def test_a_proof_that_breaks_is_one_that_does_not_hold_and_the_others_are_tried(monkeypatch):
    passing = Proof(2, "holds", lambda bench: [at_most("one", 1, 1)])
    empty = Proof(3, "judges nothing", lambda bench: [beside("one", 1)])
    monkeypatch.setattr(proofs, "PROOFS", (Proof(1, "breaks", failing), passing, empty))
    told: list[int] = []
    found = prove(listen=lambda proved: told.append(proved.number))
    assert [proved.passed for proved in found] == [False, True, False] and told == [1, 2, 3]
    assert found[0].error == "ZeroDivisionError: by nothing"


def program(*arguments: str, folder: Path, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "ghosttune", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds)


IN_FULL = ((1, 6, 7, 9, 11), (2, 3, 4, 5, 8, 10))
"""Numbers that are tried together: first those that look at the same learned run."""


def test_in_full_means_all_of_them():
    assert sorted(number for numbers in IN_FULL for number in numbers) == [proof.number for proof in PROOFS]


@pytest.mark.slow(seconds=90)
@pytest.mark.timeout(7500)
@pytest.mark.parametrize("numbers", IN_FULL, ids=str)
def test_a_proof_holds_in_full(numbers, tmp_path, record_property):
    done = program("prove", *map(str, numbers), folder=tmp_path, seconds=7200)
    record_property("said", done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(numbers)} of {len(numbers)} proofs passed" in done.stdout


def test_the_command_prints_a_table_far_from_the_repository(tmp_path):
    done = program("prove", "3", "--quick", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "measuring leaves training bit-identical" in done.stdout and "1 of 1 proofs passed" in done.stdout
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_number_without_a_proof_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ghosttune", "prove", "99"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "there are 1 to 11" in capsys.readouterr().err


def test_the_command_as_json_and_its_exit_code(monkeypatch, capsys):
    from ghosttune.cli.main import app

    monkeypatch.setattr(
        proofs, "PROOFS", (Proof(1, "breaks", failing), Proof(2, "holds", lambda b: [at_most("x", 1, 1)]))
    )
    with pytest.raises(SystemExit) as end:
        app(["prove", "--json"])
    assert end.value.code == 1
    said = json.loads(capsys.readouterr().out)
    assert said["passed"] is False and [proof["passed"] for proof in said["proofs"]] == [False, True]
    assert said["proofs"][1]["findings"] == [{"what": "x", "measured": 1, "bar": "<= 1", "passed": True}]
