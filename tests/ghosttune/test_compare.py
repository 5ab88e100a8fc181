"""Arms are compared on the same rows, and whatever makes them unlike is refused or said."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ghosttune import train
from ghosttune.cli.main import app
from ghosttune.errors import InputError, RunError
from ghosttune.judging.compare import compare
from ghosttune.metrics.pooling import pooled
from ghosttune.metrics.scoring import of_hits, of_mean, of_sums, ratio
from ghosttune.proving.reading import ROWS
from ghosttune.proving.specimens import short_run, write_rows
from ghosttune.run.directory import RunDir

ARMS = {"small-1": (2, 1), "small-2": (2, 2), "large-1": (4, 1), "large-2": (4, 2)}


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory) -> Path:
    """Four runs of two updates: two ranks under two seeds, dev rows drawn by seed."""
    folder = tmp_path_factory.mktemp("arms")
    rows = write_rows(folder / "rows.jsonl")
    for name, (r, seed) in ARMS.items():
        own = {"method__r": r, "train__seed": seed, "train__max_steps": 2, "train__warmup_steps": 0}
        more = {"evaluate__limit": 7, "evaluate__metrics": ["exact_match", "chrf"]}
        train(short_run(tiny_model, rows, data__dev__fraction=0.3, **own, **more), folder / name)
    return folder


@pytest.fixture
def copied(runs, tmp_path) -> Path:
    """The same runs, to be tampered with."""
    for name in ARMS:
        shutil.copytree(runs / name, tmp_path / name)
    return tmp_path


def losses(run: Path) -> dict[str, tuple[float, float]]:
    with open(run / "tables" / "dev_losses.csv", newline="") as file:
        return {row["example_id"]: (float(row["nats"]), float(row["targets"])) for row in csv.DictReader(file)}


def set_losses(run: Path, change) -> None:
    """Writes each dev row's nats anew; `change` takes its place and its nats."""
    path = run / "tables" / "dev_losses.csv"
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for place, row in enumerate(rows):
        row["nats"] = str(change(place, float(row["nats"])))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_runs_of_equal_settings_are_one_arm_and_pairs_have_the_same_seed(runs):
    result = compare([runs / name for name in ("small-1", "large-2", "large-1", "small-2")])
    assert {name: arm["seeds"] for name, arm in result["arms"].items()} == {"small-1": [1, 2], "large-2": [1, 2]}
    change = result["tests"]["large-2"]["dev_loss"]["change"]["value"]
    totals = {}
    for size in ("small", "large"):
        pairs = [pair for seed in (1, 2) for pair in losses(runs / f"{size}-{seed}").values()]
        totals[size] = [sum(column) for column in zip(*pairs, strict=True)]
    assert change == pytest.approx(totals["large"][0] / totals["large"][1] - totals["small"][0] / totals["small"][1])
    assert set(result["tests"]["large-2"]) == {"dev_loss", "exact_match", "chrf", "stopped"}
    assert list(result["differing_settings"]) == ["method.r"]
    assert any(flag.startswith("budget: trainable parameters differ") for flag in result["flags"])
    assert not any(flag.startswith("seed") for flag in result["flags"])


def test_the_numbers_of_an_arm_are_those_its_run_reports(runs):
    result = compare([runs / "small-1", runs / "large-1"])
    for name in ("small-1", "large-1"):
        said = json.loads((runs / name / "evaluation.json").read_text())["dev"]["adapter"]
        found = result["arms"][name]["metrics"]
        assert {metric: found[metric] for metric in said} == said
        assert found["dev_loss"]["value"] == pytest.approx(RunDir(runs / name).read_record()["verdict"]["dev_loss"])
    assert "seed: one run per arm" in " ".join(result["flags"])


def test_a_planted_difference_is_found_and_chance_is_not(copied):
    set_losses(copied / "large-1", lambda place, nats: nats)
    base = losses(copied / "small-1")
    nats = [value for value, _ in base.values()]
    set_losses(copied / "large-1", lambda place, _: nats[place] - 0.5 - 0.1 * (place % 3))
    arms = [copied / "small-1", copied / "large-1"]
    assert compare(arms)["tests"]["large-1"]["dev_loss"]["verdict"] == "better"
    assert compare(arms[::-1])["tests"]["small-1"]["dev_loss"]["verdict"] == "worse"
    set_losses(copied / "large-1", lambda place, _: nats[place] + (0.5 if place % 2 else -0.5))
    assert compare(arms)["tests"]["large-1"]["dev_loss"]["verdict"] == "not distinguishable"


def test_a_difference_that_not_every_seed_shows_is_not_one(copied):
    for seed, shift in ((1, -4.0), (2, 0.5)):
        nats = [value for value, _ in losses(copied / f"small-{seed}").values()]
        set_losses(copied / f"large-{seed}", lambda place, _, nats=nats, shift=shift: nats[place] + shift)
    test = compare([copied / name for name in ARMS])["tests"]["large-1"]["dev_loss"]
    assert test["change"]["value"] < 0 and test["seeds_agree"] == "1 of 2"
    assert test["verdict"] == "not distinguishable"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["small-1"], "nothing to be compared with"),
        (["small-1", "small-2"], "one arm"),
        (["small-1", "small-1"], "given twice"),
        (["small-1", "large-2"], "judged on different dev rows"),
        (["small-1", "small-2", "large-1"], None),
        (["small-1", "nowhere"], "does not exist"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, names, said):
    if said is None:
        flags = compare([runs / name for name in names])["flags"]
        assert "seed: 2 of small-1 left out, which not every arm has" in flags
        return
    with pytest.raises(InputError, match=said):
        compare([runs / name for name in names])


def test_damaged_and_unfinished_runs_are_refused_by_name(copied):
    arms = [copied / "small-1", copied / "large-1"]
    shutil.copytree(copied / "large-1", copied / "again")
    with pytest.raises(InputError, match=r"equal settings and an equal train\.seed"):
        compare([*arms, copied / "again"])
    path = copied / "large-1" / "predictions" / "dev.jsonl"
    path.write_text(path.read_text().replace('"prompt": "', '"prompt": "x', 1))
    with pytest.raises(RunError, match="another prompt or reference"):
        compare(arms)
    (copied / "large-1" / "tables" / "dev_losses.csv").unlink()
    with pytest.raises(RunError, match=r"dev_losses\.csv is missing"):
        compare(arms)
    record = RunDir(copied / "large-1").read_record()
    RunDir(copied / "large-1").write_record(record | {"status": "stopped"})
    with pytest.raises(RunError, match=r"not finished \(stopped\); continue it with"):
        compare(arms)


def test_other_data_and_other_targets_are_said(copied):
    record = RunDir(copied / "large-1").read_record()
    record["data"]["fingerprints"] = {"elsewhere.jsonl": "0"}
    RunDir(copied / "large-1").write_record(record)
    path = copied / "large-1" / "tables" / "dev_losses.csv"
    lines = path.read_text().splitlines()
    name, targets, *rest = lines[1].split(",")
    path.write_text("\n".join([lines[0], ",".join([name, str(float(targets) + 1), *rest]), *lines[2:], ""]))
    result = compare([copied / "small-1", copied / "large-1"])
    said = " ".join(result["flags"])
    assert "data: the files of large-1 are not those of small-1" in said
    assert "dev_loss: large-1 and small-1 have other tokenizers or templates" in said
    assert "dev_loss" not in result["tests"]["large-1"] and "chrf" in result["tests"]["large-1"]


def test_the_command_writes_json_csv_and_markdown(runs, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        app(["compare", str(runs / "small-1"), str(runs / "large-1"), "--out", str(tmp_path / "out")])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "out" / "comparison.md").read_text()
    assert "Against small-1, on the same rows:" in printed and "| method.r | 2" in printed
    with open(tmp_path / "out" / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] != "" for row in rows] == [row["arm"] == "large-1" for row in rows]
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["reference"] == "small-1"


def test_labels_are_tested_by_their_probabilities_and_what_is_not_tested_is_said(tiny_model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(ROWS["sequence_classification"](n)) + "\n" for n in range(24)))
    task = {"task__type": "sequence_classification", "model__init": "random", "train__warmup_steps": 0}
    few = {"train__max_steps": 1, "data__dev__fraction": 0.3, "evaluate__limit": None}
    for r in (2, 4):
        train(short_run(tiny_model, rows, method__r=r, **task, **few), tmp_path / str(r))
    result = compare([tmp_path / "2", tmp_path / "4"], tmp_path / "out")
    tested, untested = set(result["tests"]["4"]), set(result["not_tested"]["4"])
    assert {"dev_loss", "likelihood_accuracy", "likelihood_macro_f1"} <= tested and tested | untested >= {"auc"}
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == result


def test_rows_answered_twice_are_drawn_together():
    """Against drawing names, one by one, and taking every answer of a drawn name."""
    random = np.random.default_rng(0)
    values, names = random.normal(size=12), ["a", "b", "c", "d", "e", "f"] * 2
    counts = random.integers(0, 3, (5, 6)) + 1
    found = pooled(of_mean(values.tolist()), names).of_counts(counts)
    for drawn, mean in zip(counts, found, strict=True):
        times = dict(zip("abcdef", drawn, strict=True))
        taken = [value for value, name in zip(values, names, strict=True) for _ in range(times[name])]
        assert mean == pytest.approx(np.mean(taken))
    assert pooled(of_hits([True] * 12), names).hits is None and pooled(of_hits([True] * 6), names[:6]).hits is not None
    sums = of_sums(np.ones((12, 2)), lambda totals: ratio(totals[:, 0], totals[:, 1]))
    assert pooled(sums, names).n == 6
