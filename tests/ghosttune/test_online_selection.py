"""Of the candidates of a step, the best train: scores, choice, update size and accounts against slow references."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupting import interrupt_at

from ghosttune import open_run, train
from ghosttune.config.loading import load_config
from ghosttune.config.schema import RunConfig
from ghosttune.data.splitting import draw
from ghosttune.errors import ConfigError, GhosttuneError
from ghosttune.proving.freezing import differences
from ghosttune.proving.specimens import short_run, write_rows
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import read_table
from ghosttune.stages.model import adapted_model
from ghosttune.stages.prepare import Prepared, prepare
from ghosttune.stages.runs import Run
from ghosttune.training import checkpoints
from ghosttune.training.candidates import best_update
from ghosttune.training.guide import evaluating
from ghosttune.workflows.report import report
from ghosttune.workflows.train import Stopped, resume

STEPS = 6
BRIEF: dict[str, Any] = {
    "train__max_steps": STEPS,
    "train__per_device_train_batch_size": 3,
    "train__warmup_steps": 0,
    "train__learning_rate": 0.01,
    "train__max_grad_norm": 0,
    "train__save_steps": 1,
    "train__save_total_limit": 20,
    "data__guide__rows": 4,
    "data__online_selection__candidates": 3,
    "measure__ledger__guide_every": 2,
}


def by_step(run: Run) -> dict[int, list[dict[str, Any]]]:
    """The candidates of each update, as the run's table has them."""
    found = defaultdict(list)
    for row in read_table(run.folder, "selection").to_pylist():
        found[row["step"]].append(row)
    return found


@pytest.fixture(scope="module")
def chosen_by(tiny_model, tmp_path_factory):
    """Finished runs by what they were chosen by."""
    folder = tmp_path_factory.mktemp("chosen")
    rows = write_rows(folder / "rows.jsonl")
    runs: dict[str, Run] = {}

    def chosen(by: str, **changes: Any) -> Run:
        name = "-".join([by, *map(str, changes.values())])
        if name not in runs:
            config = short_run(tiny_model, rows, **BRIEF | {"data__online_selection__by": by} | changes)
            runs[name] = train(config, folder / name)
        return runs[name]

    return chosen


BY = ("value", "loss", "gradient_norm", "random")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_best_update_is_that_of_all_subsets(data):
    count = data.draw(st.integers(1, 8))
    keep = data.draw(st.integers(1, count))
    values = np.array(data.draw(st.lists(st.integers(-50, 50), min_size=count, max_size=count)), float)
    targets = np.array(data.draw(st.lists(st.integers(1, 20), min_size=count, max_size=count)), float)
    best = max(
        values[list(some)].sum() / targets[list(some)].sum() for some in itertools.combinations(range(count), keep)
    )
    chosen = best_update(values, targets, keep)
    assert len(set(chosen.tolist())) == keep
    assert values[chosen].sum() / targets[chosen].sum() == pytest.approx(best, abs=1e-12)


def test_long_rows_are_not_better_for_being_long():
    """The three best values are those of long rows; the update of the short ones moves further."""
    values, targets = np.array([9.0, 8.0, 7.0, 3.0, 3.0, 3.0]), np.array([30.0, 30.0, 30.0, 1.0, 1.0, 1.0])
    assert sorted(best_update(values, targets, 3).tolist()) == [3, 4, 5]


@pytest.mark.parametrize("by", BY)
def test_as_many_rows_train_as_without_selection(chosen_by, by):
    """26 - 4 guide and dev rows: two steps of nine candidates, and one of what is left, before they come again."""
    run = chosen_by(by)
    train_rows = run.record["data"]["rows"]["train"]
    for step, candidates in by_step(run).items():
        assert sum(row["kept"] for row in candidates) == min(3, len(candidates))
        assert len({row["example_id"] for row in candidates}) == len(candidates)
        assert len(candidates) == (9 if step % 3 else train_rows - 18)
    totals = run.record["online_selection"]
    assert totals["candidates"] == sum(len(rows) for rows in by_step(run).values())
    assert totals["kept"] == 3 * STEPS
    assert totals["rows_offered"] == train_rows
    assert totals["rows_kept"] == len({r["example_id"] for rows in by_step(run).values() for r in rows if r["kept"]})
    assert totals["steps_drawn"] == {"random": STEPS, "value": 1}.get(by, 0)
    assert 0 < totals["seconds"] < run.record["stage_seconds"]["train"]


@pytest.mark.parametrize("by", BY)
def test_what_trained_is_what_was_kept(chosen_by, by):
    """The ledger saw the rows in the backward pass of training."""
    run = chosen_by(by)
    seen = defaultdict(set)
    for row in read_table(run.folder, "ledger", ["step", "example_id"]).to_pylist():
        seen[row["step"]].add(row["example_id"])
    kept = {step: {row["example_id"] for row in rows if row["kept"]} for step, rows in by_step(run).items()}
    assert seen == kept


def model_before(run: Run, prepared: Prepared, step: int) -> Any:
    model = adapted_model(prepared).model
    if step > 1:
        checkpoints.restore_adapter(run.folder.checkpoint(step - 1), model)
    return model


def row_scores(run: Run, by: str, step: int) -> dict[str, float]:
    """Of every training row, at the weights that the step starts from: one pass per row, without padding."""
    prepared = prepare(run.config)
    model = model_before(run, prepared, step)
    trained = [p for p in model.parameters() if p.requires_grad]
    scores = {}
    with evaluating(model):
        for row in prepared.train.features:
            nats = prepared.task.example_loss(model, prepared.collator([row])).sum()
            if by == "loss":
                scores[row.example_id] = float(nats.detach()) / row.targets
                continue
            squares = [g.double().square().sum() for g in torch.autograd.grad(nats, trained)]
            scores[row.example_id] = float(torch.stack(squares).sum().sqrt())
    return scores


@pytest.mark.parametrize("by", ["loss", "gradient_norm"])
@pytest.mark.parametrize("step", [1, 2, 5])
def test_scores_are_those_of_the_weights_before_the_step(chosen_by, by, step):
    run = chosen_by(by)
    expected = row_scores(run, by, step)
    candidates = by_step(run)[step]
    for row in candidates:
        assert row["score"] == pytest.approx(expected[row["example_id"]], rel=1e-4)
    worst_kept = min(row["score"] for row in candidates if row["kept"])
    assert all(row["score"] <= worst_kept for row in candidates if not row["kept"])


def test_scores_are_adamws_values_in_the_ledger(chosen_by):
    """A kept row's entries in the ledger are its score over the targets of the step; nothing was clipped."""
    run = chosen_by("value", measure__ledger__values="adamw")
    prepared = prepare(run.config)
    targets = {row.example_id: row.targets for row in prepared.train.features}
    credited = defaultdict(float)
    for row in read_table(run.folder, "ledger").to_pylist():
        credited[row["step"], row["example_id"]] += row["value"] or 0.0
    for step in range(2, STEPS + 1):
        kept = [row for row in by_step(run)[step] if row["kept"]]
        divisor = sum(targets[row["example_id"]] for row in kept)
        scale = max(abs(row["score"]) for row in kept) / divisor
        for row in kept:
            assert credited[step, row["example_id"]] == pytest.approx(
                row["score"] / divisor, rel=1e-3, abs=1e-4 * scale
            )


@pytest.mark.parametrize("lowest", [False, True])
def test_the_update_kept_is_the_best_of_all(chosen_by, lowest):
    run = chosen_by("value", **({"data__online_selection__lowest": True} if lowest else {}))
    targets = {row.example_id: row.targets for row in prepare(run.config).train.features}
    for step in (2, 4, 6):
        candidates = by_step(run)[step]
        lowered = [
            sum(row["score"] for row in some) / sum(targets[row["example_id"]] for row in some)
            for some in itertools.combinations(candidates, 3)
        ]
        kept = [row for row in candidates if row["kept"]]
        own = sum(row["score"] for row in kept) / sum(targets[row["example_id"]] for row in kept)
        assert own == pytest.approx((min if lowest else max)(lowered))


def test_before_adamw_knows_its_step_the_rows_are_drawn(chosen_by):
    run = chosen_by("value")
    first = by_step(run)[1]
    assert all(row["score"] is None for row in first)
    draws = {row["example_id"]: draw(run.config.train.seed, "step 1", row["example_id"]) for row in first}
    assert {row["example_id"] for row in first if row["kept"]} == set(sorted(draws, key=draws.__getitem__)[:3])
    assert all(row["score"] is not None for step, rows in by_step(run).items() if step > 1 for row in rows)


def test_the_lowest_losses(chosen_by):
    for candidates in by_step(chosen_by("loss", data__online_selection__lowest=True)).values():
        best_left = min((row["score"] for row in candidates if not row["kept"]), default=np.inf)
        assert all(row["score"] <= best_left for row in candidates if row["kept"])


def test_one_candidate_pool_however_many_micro_batches(chosen_by):
    """Chosen among the candidates of the whole step: accumulation changes no choice and no weight."""
    one = chosen_by("loss", train__per_device_train_batch_size=4)
    two = chosen_by("loss", train__per_device_train_batch_size=2, train__gradient_accumulation_steps=2)
    for step, rows in by_step(one).items():
        if len(rows) == 12:
            kept = [{row["example_id"] for row in some if row["kept"]} for some in (rows, by_step(two)[step])]
            assert kept[0] == kept[1]


SWITCHED = BRIEF | {
    "data__online_selection__by": "value",
    "method__lora_dropout": 0.1,
    "train__max_grad_norm": 1.0,
    "phases__plan": "attention@0-3 > mlp@3-",
}


@pytest.fixture(scope="module")
def switched(tiny_model, tmp_path_factory) -> RunConfig:
    return short_run(tiny_model, write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl"), **SWITCHED)


@pytest.fixture(scope="module")
def whole(switched, tmp_path_factory) -> Run:
    """A run of it that nothing interrupted."""
    return train(switched, tmp_path_factory.mktemp("whole") / "run")


def test_interrupted_and_resumed_it_chooses_the_same(switched, whole, tmp_path):
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises((Stopped, KeyboardInterrupt)):
        train(switched, tmp_path / "parts", listen=stop)
    resume(tmp_path / "parts")
    assert differences(whole.path, tmp_path / "parts") == []
    records = [open_run(path).record["online_selection"] for path in (whole.path, tmp_path / "parts")]
    assert {**records[0], "seconds": 0} == {**records[1], "seconds": 0}


def test_a_run_that_was_stopped_says_what_it_chose_so_far(switched, tmp_path):
    with pytest.raises(Stopped):
        train(switched, tmp_path / "run", listen=interrupt_at(3))
    chosen = open_run(tmp_path / "run").record["online_selection"]
    assert chosen["kept"] == 3 * open_run(tmp_path / "run").record["step"] and chosen["seconds"] > 0
    page = report(tmp_path / "run").read_text()
    assert f"{chosen['kept']} of {chosen['candidates']} candidates trained" in page


def test_killed_after_its_last_step_it_still_says_what_it_chose(switched, whole, tmp_path, monkeypatch):
    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ghosttune.workflows.train.throughput", cut)
        with pytest.raises(KeyboardInterrupt):
            train(switched, tmp_path / "run")
    folder = RunDir(tmp_path / "run")
    record = folder.read_record()
    folder.write_record(record | {"status": "running", "stage_seconds": {}})
    assert record["step"] == STEPS and "online_selection" not in record
    done = resume(tmp_path / "run").record
    assert done["step"] == STEPS and done["online_selection"]["kept"] == 3 * STEPS
    assert differences(whole.path, tmp_path / "run") == []
    assert "candidates trained" in report(tmp_path / "run").read_text()


def test_with_phases_the_tokens_are_those_that_trained(whole):
    lines = (whole.folder.tables / "phases.csv").read_text().splitlines()
    names = lines[0].split(",")
    tokens = [int(dict(zip(names, line.split(","), strict=True))["tokens"]) for line in lines[1:]]
    kept = {step: sum(row["tokens"] for row in rows if row["kept"]) for step, rows in by_step(whole).items()}
    assert tokens == [sum(kept[step] for step in (1, 2, 3)), sum(kept[step] for step in (4, 5, 6))]


def test_a_loss_that_is_not_a_number_is_not_lost_among_the_candidates(make_config, tmp_path, monkeypatch):
    config = make_config(**BRIEF | {"data__online_selection__by": "loss"})
    prepared = prepare(config)
    broken_row = prepared.train.features[5]
    tokens = torch.as_tensor(broken_row.input_ids)
    loss = type(prepared.task).example_loss

    def broken(self: Any, model: Any, batch: Any) -> Any:
        rows = batch["input_ids"]
        width = min(rows.shape[1], len(tokens))
        is_broken = (rows[:, :width] == tokens[:width]).all(1) & (batch["attention_mask"].sum(1) == len(tokens))
        return torch.where(is_broken, float("nan"), loss(self, model, batch))

    monkeypatch.setattr(type(prepared.task), "example_loss", broken)
    with pytest.raises(GhosttuneError, match=f"the loss is not a number at step . .rows {broken_row.example_id}"):
        train(config, tmp_path / "run")


def test_an_epoch_is_one_look_at_every_row(make_config, tmp_path):
    """22 rows, nine of them to a step."""
    changes = BRIEF | {"data__online_selection__by": "random", "train__max_steps": None, "train__num_train_epochs": 2}
    run = train(make_config(**changes), tmp_path / "run")
    assert run.record["step"] == 6
    seen = [row["example_id"] for step in (1, 2, 3) for row in by_step(run)[step]]
    assert len(seen) == len(set(seen)) == run.record["data"]["rows"]["train"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"by": "worth"}, "data.online_selection.by"),
        ({"by": "loss", "candidates": 1}, "data.online_selection.candidates"),
        ({"candidates": 3}, "data.online_selection.candidates: does nothing while data.online_selection.by is null"),
        ({"lowest": True}, "data.online_selection.lowest: does nothing while data.online_selection.by is null"),
        ({"by": "random", "lowest": True}, "data.online_selection.lowest: means nothing for a random draw"),
    ],
)
def test_what_means_nothing_is_refused(given, message):
    with pytest.raises(ConfigError) as caught:
        load_config({"data": {"train": {"path": "builtin:rows"}, "online_selection": given}})
    assert message in str(caught.value)


def test_check_and_training_say_among_how_many(make_config, tmp_path, capsys):
    from ghosttune.cli.display import Display
    from ghosttune.workflows.check import check

    config = make_config(**BRIEF | {"data__online_selection__by": "loss", "train__max_steps": 1})
    assert check(config).plan["chosen_per_step"] == {"rows": 3, "of": 9}
    with Display() as display:
        train(config, tmp_path / "run", listen=display.listen)
    assert "steps      1 of 3 rows, chosen from 9 by loss\n" in capsys.readouterr().out


def test_values_need_the_ledger():
    tree = {
        "data": {"train": {"path": "builtin:rows"}, "online_selection": {"by": "value"}},
        "measure": {"ledger": None},
    }
    with pytest.raises(ConfigError, match=r"data\.online_selection\.by: is value, which the guide gradient"):
        load_config(tree)


def test_null_switches_it_off_and_drops_its_options(tmp_path):
    file = tmp_path / "run.yaml"
    tree = {"data": {"train": {"path": "builtin:rows"}, "online_selection": {"by": "loss", "candidates": 7}}}
    file.write_text(json.dumps(tree))
    assert load_config(str(file)).data.online_selection.offered == 7
    assert load_config(str(file), overrides=["data.online_selection=null"]).data.online_selection.offered == 1
