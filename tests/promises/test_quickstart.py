"""The first thing a newcomer runs does what it says."""

from __future__ import annotations

import pytest

from ghosttune import quickstart


@pytest.mark.slow
def test_quickstart_learns_its_task(tmp_path):
    run = quickstart(tmp_path / "run")
    verdict, scores = run.record["verdict"], run.evaluation["dev"]
    assert verdict["verdict"] == "better"
    assert verdict["dev_loss"] < verdict["dev_loss_base"] / 2
    assert scores["base"]["exact_match"]["value"] == 0, "the untouched base must not know the task"
    assert scores["adapter"]["exact_match"]["low"] > 0.5, "most dev rows must be right"
    assert scores["adapter"]["stopped"]["value"] >= 0.99
