"""The first thing a newcomer runs does what it says."""

from __future__ import annotations

import re
from itertools import accumulate

import pytest

from ghosttune import quickstart
from ghosttune.choosing.opened import OpenedRun
from ghosttune.choosing.tokens import guide_shares


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return quickstart(tmp_path_factory.mktemp("quickstart") / "run")


@pytest.mark.slow(seconds=100)
def test_quickstart_learns_its_task(run):
    verdict, scores = run.record["verdict"], run.evaluation["dev"]
    assert verdict["verdict"] == "better"
    assert verdict["dev_loss"] < verdict["dev_loss_base"] / 2
    assert scores["base"]["exact_match"]["value"] == 0, "the untouched base must not know the task"
    assert scores["adapter"]["exact_match"]["low"] > 0.5, "most dev rows must be right"
    assert scores["adapter"]["stopped"]["value"] >= 0.99


@pytest.mark.slow
def test_the_planted_rows_come_out_at_the_bottom(run):
    """Proof 6 on the shipped rows: 10 % wrong answers, found by standing; proof 1's residuals."""
    account = run.record["ledger"]
    planted = account["columns"]["planted"]
    assert planted["rows"] == 40
    assert planted["auroc"]["value"] >= 0.95 and planted["verdict"] == "at the bottom"
    assert all(row["planted"] for row in run.lowest_rows(3))
    assert account["verdict"] == "better"
    assert abs(account["modules_residual"]) <= 0.05 * account["guide_loss_path"]
    drop = account["guide_loss_start"] - account["guide_loss_end"]
    assert abs(account["residual"]) <= 0.1 * drop, "the account by rows closes at the shipped recipe"
    assert sum(row["credit"] for row in run.values) == pytest.approx(account["rows"], rel=1e-9)
    assert sum(row["steps_seen"] for row in run.values) == 240 * 8


@pytest.mark.slow
def test_the_target_that_harms_most_lies_in_the_planted_mistake(run):
    """Of twenty wrong answers, each with two or three wrong tokens of some thirty, at least eighteen."""
    opened = OpenedRun(run.path)
    planted = [record for record in opened.train.records if record.metadata["planted"]][:20]
    shares = guide_shares(opened, [record.example_id for record in planted])
    found = []
    for record in planted:
        pieces = shares[record.example_id]
        ends = list(accumulate(len(piece.text) for piece in pieces))
        worst = min(range(len(pieces)), key=lambda place: pieces[place].share)
        wrong = [span for mistake in record.metadata["mistake"].split("; ") for span in spans(mistake, pieces)]
        found.append(any(start < ends[worst] <= end for start, end in wrong))
    assert sum(found) >= 18


def spans(mistake, pieces):
    """Where the answer says what `count: 5 -> 12` says that it does."""
    field, value = mistake.replace(": ", " -> ").split(" -> ")[::2]
    for found in re.finditer(re.escape(f"{field}: {value}"), "".join(piece.text for piece in pieces)):
        yield found.start() + len(field) + 2, found.end()
