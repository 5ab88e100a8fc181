"""Training again without some rows, against the runs it made, read by hand; and the numbers it draws from them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import ghosttune
from ghosttune.errors import InputError, RunError
from ghosttune.metrics.agreement import agreement, ceiling
from ghosttune.run.directory import RunDir
from ghosttune.workflows.report import report
from ghosttune.workflows.validate import validate

SETTINGS = {
    "data": {"train": {"path": "builtin:rows", "limit": 60}, "guide": {"rows": 6}},
    "train": {"max_steps": 10, "learning_rate": 5e-3, "per_device_train_batch_size": 4, "warmup_steps": 1},
    "measure": {"norms": {"every": None, "effective": None}},
    "evaluate": {"limit": 0},
}


def test_agreement_is_scipys_regression_and_rank_correlation():
    random = np.random.default_rng(0)
    predicted = random.normal(size=20)
    measured = 0.7 * predicted + 0.3 * random.normal(size=20)
    found, line = agreement(predicted, measured, in_nats=True), stats.linregress(predicted, measured)
    assert found.rank.value == pytest.approx(stats.spearmanr(predicted, measured).statistic)
    half = stats.t.ppf(0.975, 18) * line.stderr
    assert found.slope is not None and found.slope.value == pytest.approx(line.slope)
    assert (found.slope.low, found.slope.high) == (pytest.approx(line.slope - half), pytest.approx(line.slope + half))
    assert agreement(predicted, measured, in_nats=False).slope is None
    assert agreement(np.ones(20), measured, in_nats=True).slope is None


def test_ceiling_is_what_the_mean_over_seeds_has_in_common_with_the_truth():
    random, found, reached = np.random.default_rng(1), [], []
    for _ in range(200):
        truth = random.normal(size=200)
        measured = truth[:, None] + random.normal(size=(200, 4))
        found.append(ceiling(measured))
        reached.append(stats.spearmanr(truth, measured.mean(1)).statistic)
    assert np.mean(found) == pytest.approx(np.mean(reached), abs=0.02)
    assert ceiling(random.normal(size=(10, 1))) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> ghosttune.Run:
    out = tmp_path_factory.mktemp("validated") / "run"
    return ghosttune.train(ghosttune.load_config(SETTINGS), out=out)


def test_what_cannot_be_validated_is_said_before_anything_is_trained(run, tmp_path):
    for wrong, said in (({"subsets": 3}, "give 6 or more"), ({"seeds": 0}, "1 or more"), ({"drop": 0.9}, "0 and 0.5")):
        with pytest.raises(InputError, match=said):
            validate(run.path, **wrong)
    found = validate(run.path, plan=True)
    assert found["cost"]["runs"] == 36 and found["cost"]["seconds"] > 0
    assert not run.folder.validation.exists()
    without = {**SETTINGS, "measure": {"norms": {"every": None, "effective": None}, "ledger": None}}
    without["data"] = {"train": {"path": "builtin:rows", "limit": 20}}
    other = ghosttune.train(ghosttune.load_config(without), out=tmp_path / "other")
    with pytest.raises(RunError, match="no ledger"):
        validate(other.path)


@pytest.mark.slow(seconds=90)
def test_halves_are_trained_compared_kept_and_shown(run):
    """Also: a second call trains nothing, and the trained losses are those of the runs in validation/."""
    told: list[str] = []
    found = validate(run.path, subsets=6, processes=2, listen=lambda trial, what: told.append(what))
    assert told.count("finished") == 10
    values = {row["example_id"]: row["value"] or 0.0 for row in run.values}
    assert found["rows"] == len(values)
    for number in range(6):
        half = RunDir(run.folder.validation / "runs" / f"half-{number:03}" / "seed-42")
        account = half.read_record()["ledger"]
        kept = [json.loads(line)["example_id"] for line in _rows(run, f"half-{number:03}")]
        assert len(kept) == len(values) // 2 and set(kept) <= set(values)
        own = found["halves"][f"half-{number:03}"]
        assert own["measured"] == [pytest.approx(account["guide_loss_start"] - account["guide_loss_end"])]
        oftener = len(values) / len(kept)
        assert own["predicted"] == pytest.approx(oftener * sum(values[name] for name in kept))
    everything = RunDir(run.folder.validation / "runs" / "all" / "seed-42").read_record()["ledger"]
    assert everything["guide_loss_end"] == run.record["ledger"]["guide_loss_end"], "measuring changes no training"
    lowest = {row["example_id"] for row in run.lowest_rows(round(0.1 * len(values)))}
    kept = {json.loads(line)["example_id"] for line in _rows(run, "without-lowest")}
    assert kept == set(values) - lowest
    assert {"value", "standing"} <= found["scores"].keys() and "index" in found["not_compared"][0]

    told.clear()
    command = [sys.executable, "-m", "ghosttune", "validate", str(run.path), "--subsets", "6", "--json"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=2000, check=True)
    assert json.loads(again.stdout)["halves"] == found["halves"] and "started" not in again.stderr
    page = Path(report(run.path)).read_text(encoding="utf-8")
    assert "Did training again agree?" in page


def _rows(run: ghosttune.Run, arm: str) -> list[str]:
    return (run.folder.validation / "rows" / f"{arm}.jsonl").read_text(encoding="utf-8").splitlines()
