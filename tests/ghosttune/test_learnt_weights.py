"""Weights that a run learns: the rules against slow references, rows and signals against the ledger, the same bytes."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from float64_training import train_in_float64
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupting import interrupt_at, kill, start, wait_for_step

from ghosttune import train
from ghosttune.config.loading import load_config
from ghosttune.config.rendering import plain_yaml
from ghosttune.errors import ConfigError, DataError
from ghosttune.proving.freezing import differences
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import read_table
from ghosttune.stages.prepare import prepare
from ghosttune.training.mixture import Bandit, Excess, Exponentiated
from ghosttune.training.order import WHOLE, Draws, LearntOrder, MicroBatches
from ghosttune.workflows.check import check
from ghosttune.workflows.preview import preview
from ghosttune.workflows.report import report
from ghosttune.workflows.train import Stopped, resume
from processes import run_group

NAMES = ["a", "b", "c"]
SIGNALS = st.lists(st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=3, max_size=3), min_size=1, max_size=8)


def learnt(learner: Any, windows: list[list[float | None]], first: list[float]) -> list[list[float]]:
    weights = np.array(first)
    found = []
    for signals in windows:
        weights = learner.learn(np.array(signals, float), weights)
        found.append(weights.tolist())
    return found


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SIGNALS)
def test_exponentiated_gradient_is_that_of_a_slow_reference(windows):
    first, floor = [0.5, 0.3, 0.2], 0.12
    weights, gained, turns, expected = first, [0.0] * 3, 0, []
    for signals in windows:
        seen = [place for place in range(3) if signals[place] is not None]
        if seen:
            mean = sum(weights[k] * signals[k] for k in seen) / sum(weights[k] for k in seen)  # type: ignore[operator]
            gains = [mean if one is None else one for one in signals]
            if largest := max(map(abs, gains)):
                gained = [a + b / largest for a, b in zip(gained, gains, strict=True)]
                turns += 1
        rate = math.sqrt(2 * math.log(3) / turns) if turns else 0.0
        raw = [a * math.exp(rate * (b - max(gained))) for a, b in zip(first, gained, strict=True)]
        weights = [(1 - floor) * one / sum(raw) + floor / 3 for one in raw]
        expected.append(weights)
    np.testing.assert_allclose(learnt(Exponentiated(first, floor), windows, first), expected, rtol=1e-9)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SIGNALS)
def test_the_bandit_is_that_of_a_slow_reference(windows):
    """As published, but for the two things that `Bandit` names."""
    first, floor, rows = [0.5, 0.3, 0.2], 0.12, 4
    weights, rewards, expected = first, [math.nan] * 3, []
    for turn, signals in enumerate(windows, 1):
        for k, signal in enumerate(signals):
            if signal is not None:
                reward = signal / min(1.0, weights[k] * rows)
                rewards[k] = reward if math.isnan(rewards[k]) else 0.9 * rewards[k] + 0.1 * reward
        known = [one for one in rewards if not math.isnan(one)]
        filled = [sum(known) / len(known) if math.isnan(one) and known else one for one in rewards]
        filled = [0.0 if math.isnan(one) else one for one in filled]
        before, now = (min(1 / 3, math.sqrt(math.log(3) / (3 * t))) if t else 1 / 3 for t in (turn - 1, turn))
        raw = [a * math.exp(before * (b - max(filled))) for a, b in zip(first, filled, strict=True)]
        least = max(now, floor / 3)
        weights = [(1 - 3 * least) * one / sum(raw) + least for one in raw]
        expected.append(weights)
    np.testing.assert_allclose(learnt(Bandit(first, floor, rows), windows, first), expected, rtol=1e-9)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(SIGNALS)
def test_excess_is_that_of_a_slow_reference(windows):
    first, floor = [0.5, 0.3, 0.2], 0.12
    raw, expected = first, []
    for signals in windows:
        raw = [weight * math.exp(signal or 0.0) for weight, signal in zip(raw, signals, strict=True)]
        raw = [weight / sum(raw) for weight in raw]
        expected.append([(1 - floor) * weight + floor / 3 for weight in raw])
    np.testing.assert_allclose(learnt(Excess(first, floor), windows, first), expected, rtol=1e-9)


def test_the_better_source_gets_all_but_the_floor_and_chance_gets_nothing():
    better = learnt(Exponentiated([0.5, 0.5], 0.1), [[0.1**n, 0.0] for n in range(40)], [0.5, 0.5])
    assert better[0][0] > 0.7 and better[-1] == pytest.approx([0.95, 0.05], abs=1e-3)
    noise = np.random.default_rng(0).normal(size=(20, 400, 2)).tolist()
    last = [learnt(Exponentiated([0.5, 0.5], 0.1), one, [0.5, 0.5])[-1][0] for one in noise]
    assert np.median(np.abs(np.array(last) - 0.5)) < 0.3 and abs(np.mean(last) - 0.5) < 0.15


def order_of(parts: list[int], rows_per_step: int, seed: int, every: int) -> LearntOrder:
    ends = np.cumsum([0, *parts])
    positions = {name: np.arange(a, b) for name, a, b in zip(NAMES, ends, ends[1:], strict=False)}
    draws = Draws(positions, dict(zip(NAMES, parts, strict=False)))
    return LearntOrder([1] * sum(parts), rows_per_step, seed, False, draws, every)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 20), min_size=2, max_size=3),
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(0, 99),
    st.data(),
)
def test_a_window_has_its_shares_and_no_row_is_two_times_ahead(parts, size, every, seed, data):
    order = order_of(parts, size, seed, every)
    source = [name for name, count in zip(NAMES, parts, strict=False) for _ in range(count)]
    taken: list[int] = []
    for epoch in range(3):
        order.set_epoch(epoch)
        steps = MicroBatches(order, size).steps()
        for _ in range(len(order) // size):
            if len(taken) // size // every == len(order.shares):  # a window begins
                cuts = st.lists(st.integers(0, WHOLE), min_size=len(parts) - 1, max_size=len(parts) - 1)
                order.shares.append(np.diff([0, *sorted(data.draw(cuts)), WHOLE]).tolist())
            taken += next(steps)
        assert next(steps, None) is None
    windows = len(taken) // (size * every)
    times = Counter(taken[: windows * size * every])  # a window's rows are shuffled, so that its end tells
    for name in NAMES[: len(parts)]:
        own = [times[row] for row in range(len(source)) if source[row] == name]
        assert max(own) - min(own) <= 1, "all rows of a source before any comes a further time"
    for window in range(windows):
        own = Counter(source[row] for row in taken[window * size * every : (window + 1) * size * every])
        for place, share in enumerate(order.shares[window]):
            assert abs(own[NAMES[place]] - share * size * every / WHOLE) < 1
    assert len(taken) == 3 * len(order) and len(order) == -(-sum(parts) // size) * size
    again = order_of(parts, size, seed, every)
    again.shares = order.shares
    again.set_epoch(2)
    assert list(again) == taken[2 * len(order) :], "however one comes to the epoch"


def test_a_share_below_one_row_comes_in_some_windows():
    order = order_of([20, 20], 2, 1, 1)
    order.shares = [[WHOLE - 1000, 1000]]
    found = order.counts(2000)
    assert set(found[:, 1]) == {0, 1} and abs(found[:, 1].mean() - 0.2) < 0.02


LEARNT = {
    "data__mixture__by": "guide",
    "data__mixture__every": 3,
    "data__guide__rows": 4,
    "measure__ledger__guide_every": 2,
    "measure__ledger__values": "adamw",
    "train__save_steps": 5,
    "train__logging_steps": 1,
    "train__warmup_steps": 0,
}


def windows_of(run: Path) -> dict[int, dict[str, dict[str, Any]]]:
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for row in read_table(RunDir(run), "mixture").to_pylist():
        found.setdefault(row["step"], {})[row["source"]] = row
    return found


def test_signals_are_the_ledgers_and_a_run_that_was_interrupted_learns_the_same(mixed, tmp_path):
    config = mixed(**LEARNT)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole)
    with pytest.raises(Stopped):
        train(config, parts, listen=interrupt_at(7))
    resume(parts)
    assert differences(whole, parts) == []
    record, again = (json.loads((run / "run.json").read_text()) for run in (whole, parts))
    assert {**record["mixture"], "seconds": 0} == {**again["mixture"], "seconds": 0}

    windows = windows_of(whole)
    assert list(windows) == [1, 4, 7, 10] and record["mixture"]["changes"] == 3
    targets = {row.example_id: row.targets for row in prepare(config).train.features}
    ledger = read_table(RunDir(whole), "ledger").to_pylist()
    for begin in (4, 7, 10):
        for name, row in windows[begin].items():
            own = [
                one for one in ledger if begin - 3 <= one["step"] < begin and one["example_id"].startswith(f"{name}/")
            ]
            seen = Counter((one["step"], one["example_id"]) for one in own)
            assert row["rows"] >= len(seen) and abs(row["rows"] - windows[begin - 3][name]["weight"] * 12) < 1
            if row["rows"] == len(seen):  # no row came twice in a step, whose entries do not tell
                assert row["targets"] == sum(targets[example_id] for _, example_id in seen)
            value = sum(one["value"] or 0.0 for one in own)
            assert row["signal"] == (pytest.approx(value / row["targets"], rel=1e-4) if row["rows"] else None)
        assert sum(row["weight"] for row in windows[begin].values()) == pytest.approx(1)
    assert windows[10]["many"]["weight"] != windows[1]["many"]["weight"]

    page = report(whole).read_text(encoding="utf-8")
    assert "Learnt weights of the sources" in page and "learning the mixture" in page
    assert (whole / "report" / "dev_loss_by_set.csv").read_text().startswith("step,source,loss\n0,many,")
    plan = check(config).plan["mixture"]
    assert plan["learnt by"] == "guide" and plan["begins with"] == {
        name: row["weight"] for name, row in windows[1].items()
    }
    assert "then as learnt by guide" in preview(config, 1)[0].drawn


def test_the_signal_does_not_depend_on_what_values_are_of(mixed, tmp_path):
    one, two = (
        train(mixed(**LEARNT | {"measure__ledger__values": kind}), tmp_path / kind) for kind in ("adamw", "removal")
    )
    assert windows_of(one.path) == windows_of(two.path)


def test_the_bandit_follows_the_training_loss(mixed, tmp_path):
    config = mixed(**{**LEARNT, "data__mixture__by": "odm", "data__mixture__every": 1})
    run = train(config, tmp_path / "run")
    losses = {event["step"]: event["loss"] for event in run.events if event["event"] == "log"}
    windows = windows_of(run.path)
    for step in range(2, 13):
        rows = [row for row in windows[step].values() if row["rows"]]
        nats, targets = sum(row["signal"] * row["targets"] for row in rows), sum(row["targets"] for row in rows)
        assert nats / targets == pytest.approx(losses[step - 1], rel=1e-5)
        assert sum(row["rows"] for row in rows) == 4
    with pytest.raises(Stopped):
        train(config, tmp_path / "parts", listen=interrupt_at(6))
    resume(tmp_path / "parts")
    assert differences(run.path, tmp_path / "parts") == []


def test_doremi_follows_what_is_above_the_reference(mixed, tmp_path):
    """A reference of 0 leaves the loss itself; one between the losses leaves what is above it; a high one nothing."""
    ids = {row.example_id: row.targets for row in prepare(mixed(**LEARNT)).train.features}
    file = tmp_path / "losses.jsonl"
    signals = {}
    for name, reference in {"nothing": 0.0, "middle": 5.0, "high": 1e3}.items():
        file.write_text("".join(json.dumps({"example_id": one, "score": reference}) + "\n" for one in ids))
        changes = {"data__mixture__by": "doremi", "data__mixture__reference_losses": str(file)}
        run = train(mixed(**LEARNT | changes), tmp_path / name)
        signals[name] = {source: row["signal"] for source, row in windows_of(run.path)[4].items()}
        found = run.record["mixture"]["weights"]
        assert sum(weight["mean"] for weight in found.values()) == pytest.approx(1)
        if name == "high":
            assert all(abs(weight["last"] - weight["first"]) < 0.1 for weight in found.values()), "but for the floor"
    odm = train(mixed(**LEARNT | {"data__mixture__by": "odm"}), tmp_path / "odm")
    losses = {source: row["signal"] for source, row in windows_of(odm.path)[4].items()}
    assert signals["nothing"] == pytest.approx(losses), "the first window is drawn alike"
    assert all(losses[name] - 5 <= signals["middle"][name] + 1e-6 < losses[name] for name in losses)
    assert set(signals["high"].values()) == {0.0}
    file.write_text(json.dumps({"example_id": next(iter(ids)), "score": 1.0}) + "\n")
    with pytest.raises(DataError, match=rf"has no score for {len(ids) - 1} of the {len(ids)} training rows"):
        train(mixed(**LEARNT | changes), tmp_path / "short")
    assert not (tmp_path / "short").exists()


@pytest.mark.slow(seconds=25)
@pytest.mark.parametrize("by", ["guide", "odm", None])
def test_a_mixture_that_was_killed_ends_in_the_same_bytes(mixed, tmp_path, by):
    """SIGKILL in the middle, behind a checkpoint."""
    changes = LEARNT if by else {name: one for name, one in LEARNT.items() if "mixture" not in name}
    config = mixed(**changes | ({"data__mixture__by": by} if by else {}))
    train(config, tmp_path / "whole")
    (tmp_path / "run.yaml").write_text(plain_yaml(config))
    process = start(tmp_path / "run.yaml", "--out", tmp_path / "parts")
    wait_for_step(8, tmp_path / "parts", process)
    kill(process)
    assert RunDir(tmp_path / "parts").read_record()["status"] == "running"
    resume(tmp_path / "parts")
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.slow(seconds=25)
@pytest.mark.parametrize("by", ["guide", "odm"])
def test_two_processes_draw_the_rows_that_one_draws(two_processes, mixed, tmp_path, by):
    for name, size in (("one", 4), ("two", 2)):
        config = mixed(**LEARNT | {"data__mixture__by": by, "train__per_device_train_batch_size": size})
        (tmp_path / f"{name}.yaml").write_text(plain_yaml(config))
    train_in_float64(str(tmp_path / "one.yaml"), str(tmp_path / "one"))
    run_group(train_in_float64, tmp_path / "two.yaml", tmp_path / "two")
    one, two = (read_table(RunDir(tmp_path / name), "mixture").to_pydict() for name in ("one", "two"))
    np.testing.assert_allclose(np.array(two.pop("signal"), float), np.array(one.pop("signal"), float), rtol=1e-6)
    assert two == one
    shown = [
        Counter(
            (row["step"], row["example_id"]) for row in read_table(RunDir(tmp_path / name), "ledger").to_pylist()
        ).keys()
        for name in ("one", "two")
    ]
    assert shown[0] == shown[1]


MIXED = {
    "data.train.sources": {"a": {"path": "a"}, "b": {"path": "b"}},
    "data.mixture.by": "odm",
    "train.max_steps": 60,
}


@pytest.mark.parametrize(
    ("changes", "setting", "said"),
    [
        ({"data.train.sources": {"a": {"path": "a"}}}, "data.mixture.by", "two or more"),
        ({"data.mixture.by": "guide", "measure.ledger": None}, "data.mixture.by", "set measure.ledger.guide_every"),
        ({"data.online_selection.by": "loss"}, "data.mixture.by", "cannot be with data.online_selection.by: loss"),
        ({"train.order": "length"}, "data.mixture.by", "cannot be with train.order: length"),
        ({"data.mixture.every": 60}, "data.mixture.every", "never change"),
        ({"data.mixture.by": None, "data.mixture.floor": 0.5}, "data.mixture.floor", "does nothing while"),
        ({"data.mixture.by": "doge"}, "data.mixture.by", "odm"),
        ({"data.mixture.by": "doremi"}, "data.mixture.reference_losses", "ghosttune select RUN --by loss"),
        ({"data.mixture.reference_losses": "x.jsonl"}, "data.mixture.reference_losses", "does nothing for"),
    ],
)
def test_what_cannot_be_learnt_is_refused(changes, setting, said):
    with pytest.raises(ConfigError) as refusal:
        load_config(overrides=[f"{path}={json.dumps(value)}" for path, value in (MIXED | changes).items()])
    assert any(problem.setting == setting and said in problem.message for problem in refusal.value.problems)
