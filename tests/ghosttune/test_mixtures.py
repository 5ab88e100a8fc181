"""Runs on mixtures: which rows an epoch has, counted by hand, and the same bytes after an interruption."""

from __future__ import annotations

import csv
import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupting import interrupt_at

from ghosttune import train
from ghosttune.choosing.select import select
from ghosttune.config.loading import load_config
from ghosttune.config.sections.data import SourceSettings
from ghosttune.data.mixing import rows_in_an_epoch, source_of_row
from ghosttune.errors import ConfigError, DataError, InputError
from ghosttune.judging.evaluate import evaluate
from ghosttune.proving.freezing import differences
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import read_table
from ghosttune.stages.prepare import prepare
from ghosttune.training.order import Draws, MicroBatches, RowOrder
from ghosttune.workflows.check import check
from ghosttune.workflows.preview import preview
from ghosttune.workflows.report import report
from ghosttune.workflows.train import Stopped, resume


def mixture(names: list[str], **shares: Any) -> SourceSettings:
    """Settings with `weight` or `repeat` of each source, or the `temperature` of all."""
    temperature = shares.pop("temperature", None)
    each = {name: {key: values[at] for key, values in shares.items()} for at, name in enumerate(names)}
    return SourceSettings(sources=each, temperature=temperature)  # pyright: ignore[reportArgumentType]


NAMES = list("abcdef")
PARTS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 999)), min_size=1, max_size=6))
def test_shares_are_rounded_by_largest_remainder(parts):
    names = NAMES[: len(parts)]
    rows = {name: count for name, (count, _) in zip(names, parts, strict=True)}
    found = rows_in_an_epoch(mixture(names, weight=[float(weight) for _, weight in parts]), rows)
    assert found is not None and sum(found.values()) == sum(rows.values())
    total = sum(weight for _, weight in parts)
    exact = {name: Fraction(weight * sum(rows.values()), total) for name, (_, weight) in zip(names, parts, strict=True)}
    assert all(found[name] in (int(share), int(share) + 1) for name, share in exact.items())
    up = [exact[name] % 1 for name in names if found[name] > exact[name]]
    down = [exact[name] % 1 for name in names if found[name] <= exact[name]]
    assert not up or not down or min(up) >= max(down)


def test_temperature_lies_between_the_rows_and_equal_shares():
    rows = {"large": 900, "small": 100}
    assert rows_in_an_epoch(mixture(list(rows), temperature=1.0), rows) == rows
    assert rows_in_an_epoch(mixture(list(rows), temperature=2.0), rows) == {"large": 750, "small": 250}
    assert rows_in_an_epoch(mixture(list(rows), temperature=1e6), rows) == {"large": 500, "small": 500}
    assert rows_in_an_epoch(mixture(list(rows), temperature=1e-3), rows) == {"large": 1000, "small": 0}
    assert rows_in_an_epoch(mixture(list(rows)), rows) is None
    assert rows_in_an_epoch(mixture(list(rows), repeat=[1, 3]), rows) == {"large": 900, "small": 300}


def draws_of(parts: list[tuple[int, int]]) -> Draws:
    ends = np.cumsum([0, *(rows for rows, _ in parts)])
    names = NAMES[: len(parts)]
    positions = {name: np.arange(ends[at], ends[at + 1]) for at, name in enumerate(names)}
    return Draws(positions, {name: count for name, (_, count) in zip(names, parts, strict=True)})


@settings(max_examples=100, deadline=None, derandomize=True)
@given(PARTS, st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_an_epoch_has_its_counts_and_no_row_is_two_times_ahead(parts, rows_per_step, seed):
    draws = draws_of(parts)
    order = RowOrder([1] * sum(rows for rows, _ in parts), rows_per_step, seed, draws=draws)
    seen: Counter[int] = Counter()
    for epoch in range(5):
        order.set_epoch(epoch)
        taken = list(order)
        assert len(taken) == len(order) == sum(count for _, count in parts)
        assert sorted(taken) == sorted(draws.of_epoch(seed, epoch).tolist())
        assert taken == list(order), "asking twice changes nothing"
        seen.update(taken)
        for name, (_, count) in zip(draws.positions, parts, strict=True):
            own = [seen[row] for row in draws.positions[name].tolist()]
            assert sum(own) == count * (epoch + 1)
            assert max(own) - min(own) <= 1, "all rows of a source before any comes a further time"
    fresh = RowOrder([1] * sum(rows for rows, _ in parts), rows_per_step, seed, draws=draws_of(parts))
    fresh.set_epoch(4)
    assert list(fresh) == taken, "however one comes to the epoch"
    batches = [row for step in MicroBatches(order, rows_per_step).steps() for row in step]
    assert batches == taken


def test_scores_order_the_rows_that_are_drawn():
    scores = np.random.default_rng(0).permutation(12).tolist()
    order = RowOrder([1] * 12, 4, 7, draws=draws_of([(8, 4), (4, 8)]), scores=scores)
    for epoch in range(2):
        order.set_epoch(epoch)
        drawn = draws_of([(8, 4), (4, 8)]).of_epoch(7, epoch).tolist()
        assert list(order) == sorted(drawn, key=lambda row: scores[row]) and len(set(drawn)) < 12


def test_without_draws_the_order_is_what_it_was():
    rows = RowOrder([1] * 20, 4, 7)
    random = np.random.default_rng([7, 0])
    steps = random.permutation(20).reshape(5, 4)
    assert list(rows) == [row for step in random.permutation(5) for row in steps[step].tolist()]


WRONG = """data:
  train:
    temperature: 2
    sources:
      a: {path: a, weight: 0}
      b: {path: b, weight: -1}
      c: {path: c, weight: .nan}
      d: {path: d, weight: "1"}
      e: {path: e, weight: 2, repeat: 3}
      f: {path: f, repeat: 0}
"""


def test_weights_that_mean_nothing_are_refused_all_at_once(tmp_path):
    (tmp_path / "run.yaml").write_text(WRONG)
    with pytest.raises(ConfigError) as refusal:
        load_config(tmp_path / "run.yaml")
    said = {problem.setting: str(problem) for problem in refusal.value.problems}
    place = "data.train.sources"
    assert [said[f"{place}.{name}.weight"].count("run.yaml") for name in "abcd"] == [1] * 4
    assert "must be more than 0 (got 0)" in said[f"{place}.a.weight"] and "finite" in said[f"{place}.c.weight"]
    assert "at least 1 (got 0)" in said[f"{place}.f.repeat"] and "excludes weights" in said[f"{place}.e.repeat"]
    assert "is missing" in said[f"{place}.f.weight"] and "excludes weights" in said["data.train.temperature"]
    assert len(said) == 8
    with pytest.raises(ConfigError, match=r"does nothing without data\.train\.sources"):
        load_config({"data": {"train": {"path": "a", "temperature": 2.0}}})


LEDGER = {"measure__ledger__guide_every": 3, "data__guide__rows": 4, "train__save_steps": 5, "train__logging_steps": 2}


def test_a_share_that_leaves_no_row_is_refused(mixed):
    sources = {name: one.model_dump() for name, one in mixed().data.train.sources.items()}
    sources["few"]["weight"] = 0.001
    with pytest.raises(ConfigError, match=r"sources\.few\.weight: leaves no row of few to an epoch of \d+ rows"):
        prepare(mixed(data__train__sources=sources))
    for one in sources.values():
        one["weight"] = None
    with pytest.raises(ConfigError, match=r"temperature: leaves no row of few"):
        prepare(mixed(data__train__sources=sources, data__train__temperature=0.1))


def test_check_and_preview_count_the_rows_of_an_epoch(mixed):
    plan = check(mixed()).plan
    rows = plan["rows"]["train"]
    shares = {name: counts["epoch"] for name, counts in plan["sources"].items()}
    assert sum(shares.values()) == rows and abs(shares["few"] - 2 * rows / 3) < 1
    assert plan["steps"]["per_epoch"] == -(-rows // 4)
    first = preview(mixed(), 3)
    assert [source_of_row(row.example_id) for row in first] == ["many", "few", "many"]
    assert first[1].drawn == f"{shares['few']} of {rows} rows of an epoch are of few"


def assert_losses_by_source(run: Path, record: dict[str, Any]) -> None:
    """Summed by hand from the losses of the dev rows."""
    with (run / "tables" / "dev_losses.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    evals = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evals = [event for event in evals if event["event"] == "eval"]
    best = next(event for event in evals if event["step"] == record["best_step"])
    told = record["verdict"]["sources"]
    assert told.keys() == best["sources"].keys() == {"many", "few"}
    for name, own in told.items():
        mine = [row for row in rows if row["example_id"].startswith(f"{name}/")]
        targets = sum(float(row["targets"]) for row in mine)
        assert own["change"]["n"] == len(mine) > 0
        tuned, base = (sum(float(row[kind]) for row in mine) / targets for kind in ("nats", "base_nats"))
        assert own["dev_loss"] == pytest.approx(tuned) == pytest.approx(best["sources"][name])
        assert own["dev_loss_base"] == pytest.approx(base) == pytest.approx(evals[0]["sources"][name])


def test_an_interrupted_mixture_ends_in_the_same_bytes_and_every_command_reads_it(mixed, tmp_path):
    """The rows of its steps are counted in the ledger, which notes each row that it was shown."""
    config = mixed(**LEDGER)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole)
    with pytest.raises(Stopped):
        train(config, parts, listen=interrupt_at(7))
    resume(parts)
    assert differences(whole, parts) == []
    prepared = prepare(config)
    order = RowOrder.of_run(prepared.train.features, config.train, prepared.draws)
    expected: list[set[str]] = []
    for epoch in range(4):
        order.set_epoch(epoch)
        expected += [
            {prepared.train.features[row].example_id for row in step} for step in MicroBatches(order, 4).steps()
        ]
    ledger = read_table(RunDir(whole), "ledger", ["step", "example_id"]).to_pydict()
    shown: dict[int, set[str]] = {}
    for step, name in zip(ledger["step"], ledger["example_id"], strict=True):
        shown.setdefault(step, set()).add(name)
    assert [shown[step] for step in sorted(shown)] == expected[:12]
    record = json.loads((whole / "run.json").read_text())
    assert record["data"]["sources"]["few"]["epoch"] == prepared.sources["few"]["epoch"]
    assert_losses_by_source(whole, record)
    columns = read_table(RunDir(whole), "values", ["example_id", "source"]).to_pydict()
    assert columns["source"] == [source_of_row(name) for name in columns["example_id"]]
    chosen = select(whole, tmp_path / "kept.jsonl", keep=0.5, by="value", stratify="source")
    assert Counter(source_of_row(one.example_id) for one in [*chosen.kept, *chosen.dropped]) == Counter(
        columns["source"]
    )
    again = prepare(mixed(data__train__keep=str(tmp_path / "kept.jsonl")))
    assert {row.example_id for row in again.train_records} == {one.example_id for one in chosen.kept}
    assert "few" in report(whole).read_text(encoding="utf-8")
    assert evaluate(whole, split="train", overrides=["evaluate.limit=2"], device="cpu")["train"]["questions"] == 2
    with pytest.raises(InputError, match=r"--fix sorts the rows of one source"):
        check(config, fix=tmp_path / "fixed.jsonl")
    few = Path(config.data.train.sources["few"].path)
    few.write_text(few.read_text() + json.dumps({"prompt": "More", "completion": "x"}) + "\n")
    (whole / "run.json").write_text(json.dumps(record | {"status": "stopped"}))
    with pytest.raises(DataError, match=r"few\.jsonl changed since"):
        resume(whole)


def test_dev_sets_are_judged_one_by_one(make_config, rows_file, tmp_path):
    """Beside a single training source; of a set that has splits, its dev rows."""
    first = tmp_path / "first.jsonl"
    first.write_text("".join(json.dumps({"prompt": f"Say {n}", "completion": "a " * (n + 1)}) + "\n" for n in range(5)))
    splits = tmp_path / "splits.jsonl"
    rows = [{"prompt": f"Tell {n}", "completion": "b", "split": ("train", "dev")[n % 2]} for n in range(6)]
    splits.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = {"many": {"path": str(first), "limit": 4}, "few": {"path": str(splits)}}
    config = make_config(data__dev__fraction=None, data__dev__sources=sets, train__max_steps=4)
    run = train(config, tmp_path / "run")
    assert run.record["data"]["dev_sets"] == {"many": 4, "few": 3} == check(config).plan["dev_sets"]
    assert_losses_by_source(run.path, run.record)
    assert "Dev loss of each set" in report(run.path).read_text(encoding="utf-8")
    splits.write_text("".join(json.dumps(row | {"split": "test"}) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"data\.dev\.sources: no rows of few judge"):
        prepare(config)


def test_dev_sets_that_say_nothing_are_refused_all_at_once():
    sets = {"a": {"format": "text"}, "b": {"path": "b"}, "c": {"path": "b"}}
    with pytest.raises(ConfigError) as refusal:
        load_config({"data": {"train": {"path": "x"}, "dev": {"sources": sets, "fraction": 0.1}}})
    said = {problem.setting: problem.message for problem in refusal.value.problems}
    assert said.keys() == {"data.dev.sources", "data.dev.sources.a.path", "data.dev.sources.c"}
    assert "excludes data.dev.fraction" in said["data.dev.sources"]
