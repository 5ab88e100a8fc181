"""Every task, on every kind of model that has it: learns, moves only what it may, is saved, read back and measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from measured import MEASURED
from task_cases import CASES, MATRIX

from ghostgrad.store import GradientStore
from ghosttune.choosing.index import index
from ghosttune.data.labelled import SAID
from ghosttune.errors import InputError, RunError
from ghosttune.judging.evaluate import evaluate
from ghosttune.models.loading import load_adapter, load_model
from ghosttune.run.tables import read_table
from ghosttune.stages.model import adapted_model
from ghosttune.stages.prepare import Prepared, prepare
from ghosttune.stages.runs import Run
from ghosttune.training import checkpoints
from ghosttune.training.guide import evaluating
from ghosttune.training.order import RowOrder, rows_of_steps
from ghosttune.workflows.infer import infer
from ghosttune.workflows.train import Stopped, resume, train

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


@pytest.fixture(scope="module", params=MATRIX, ids="-".join)
def measured(request, task_config, tmp_path_factory) -> tuple[str, Run, Prepared]:
    """(case, a finished run of three steps with every instrument, what it was prepared from)."""
    case, family = request.param
    config = task_config(case, family, 16, **MEASURED)
    run = train(config, tmp_path_factory.mktemp("runs") / "run")
    return case, run, prepare(run.config)


def logits(model: Any, prepared: Prepared) -> list[torch.Tensor]:
    """What the task's loss says of the dev rows, one by one."""
    with torch.no_grad(), evaluating(model):
        return [prepared.task.example_loss(model, prepared.collator([row])) for row in prepared.dev.features]


def row_gradient(model: Any, case: str, prepared: Prepared, row: Any, divisor: float) -> dict[str, torch.Tensor]:
    """One backward through the model's own loss for one row without padding."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    loss = CASES[case].own_loss(model, prepared.collator([row]), row.targets) / divisor
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if gradient is None else gradient
        for (name, p), gradient in zip(trained.items(), gradients, strict=True)
    }


def rows_of_step(prepared: Prepared, step: int) -> list[Any]:
    order = RowOrder([len(row) for row in prepared.train.features], 4, prepared.config.train.seed)
    *_, taken = rows_of_steps(order, 4, 1, step)
    return [prepared.train.features[position] for position in taken]


def test_the_run_directory_says_what_was_learned(measured) -> None:
    _, run, prepared = measured
    assert run.record["status"] == "finished"
    evaluations = [event["loss"] for event in run.events if event["event"] == "eval"]
    assert len(evaluations) == 4
    losses = [float(loss) for loss in logits(adapted_model(prepared).model, prepared)]
    targets = sum(row.targets for row in prepared.dev.features)
    assert evaluations[0] == pytest.approx(sum(losses) / targets, rel=1e-5), "the untouched base"
    assert len(run.predictions) == len(prepared.dev_records)
    assert {row["example_id"] for row in run.predictions} == {record.example_id for record in prepared.dev_records}
    assert run.evaluation is not None
    scored = run.evaluation["dev"]
    assert list(scored["adapter"]) == list(scored["base"]) == prepared.task.metrics()
    assert scored["comparison"].keys() == {"base", "constant"}
    assert all(scored["adapter"][name]["n"] == len(prepared.dev_records) for name in scored["adapter"])


def test_the_commands_say_what_the_run_learned(measured, tmp_path) -> None:
    """`evaluate` alone gives the numbers of the run's end, and `infer` its predictions, row by row."""
    case, run, prepared = measured
    assert run.evaluation is not None
    again = evaluate(run.path, out=tmp_path / "again", device="cpu")["dev"]
    assert again == run.evaluation["dev"]
    columns = [r.columns or {"prompt": r.prompt[0].content} for r in prepared.dev_records]
    rows = [{name: value for name, value in each.items() if name not in SAID} for each in columns]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"strange": 1}]))
    done = infer(str(run.path), source, tmp_path / "out.jsonl", device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    said = {row["example_id"]: row["output"] for row in run.predictions}
    for record, line in zip(prepared.dev_records, lines, strict=False):
        expected = said[record.example_id]
        assert line["output"] == (pytest.approx(expected, rel=1e-4) if isinstance(expected, float) else expected)
    assert len(lines) == len(rows) + 1 and len(done.faults) == 1 and "strange" in lines[-1]["error"]
    with pytest.raises(InputError, match=r"the settings of an answer .* do nothing for it"):
        infer(str(run.path), source, tmp_path / "never.jsonl", max_new_tokens=4, device="cpu")
    assert not list(tmp_path.glob("*never*"))
    with pytest.raises(RunError, match=r"Pipeline\.predict"):
        run.pipeline().generate(["who"])
    if case == "pairs":
        (scores,) = run.pipeline().classify([("the film was great", "it was")], top_k=2)
        assert len(scores) == 2 and list(scores.values()) == sorted(scores.values(), reverse=True)
    if case == "questions":
        (words,) = run.pipeline().answer([(rows[0]["question"], rows[0]["context"])])
        assert words == said[prepared.dev_records[0].example_id]


def test_only_the_adapter_and_a_new_head_move(measured) -> None:
    _, run, prepared = measured
    before, after = adapted_model(prepared).model, adapted_model(prepared).model
    checkpoints.restore_adapter(run.folder.checkpoint(3), after)
    moved = {
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    trained = {name for name, p in before.named_parameters() if p.requires_grad}
    assert moved and moved <= trained
    assert all("lora_" in name or ".modules_to_save." in name for name in trained)


def test_the_saved_adapter_gives_the_same_answers(measured) -> None:
    _, run, prepared = measured
    kind = prepared.task.kind(prepared.encoder.tokenizer)
    base = load_model(prepared.config.model, prepared.config.train.seed, kind)
    reloaded = load_adapter(base, run.folder.adapter)
    best = adapted_model(prepared).model
    checkpoints.restore_adapter(run.folder.checkpoint(run.record["best_step"]), best)
    for one, other in zip(logits(reloaded, prepared), logits(best, prepared), strict=True):
        assert torch.equal(one, other)
    again = prepared.task.predict(reloaded, prepared.encoder, prepared.dev_records)
    said = {row["example_id"]: row["output"] for row in run.predictions}
    for record, prediction in zip(prepared.dev_records, again, strict=True):
        before = said[record.example_id]
        assert prediction.output == (pytest.approx(before, rel=1e-5) if isinstance(before, float) else before)


def test_stored_gradients_are_those_of_one_backward_per_row(measured) -> None:
    """Windows of one row, as question answering has them, added up."""
    case, run, prepared = measured
    (indexed,) = index(run.path, checkpoints=["last"], device="cpu")
    store = GradientStore.read_sealed(indexed.folder)
    assert sorted(store.ids) == sorted(record.example_id for record in prepared.train_records)
    model = adapted_model(prepared).model.eval()
    checkpoints.restore_adapter(run.folder.checkpoint(3), model)
    for example_id in (store.ids[0], store.ids[-1]):
        windows = [row for row in prepared.train.features if row.example_id == example_id]
        own = [row_gradient(model, case, prepared, window, 1) for window in windows]
        expected = torch.cat([sum(gradient[name] for gradient in own).flatten() for name in sorted(own[0])])
        found = store.rows([example_id])[0]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_values_are_those_of_one_backward_per_row(measured) -> None:
    """The third step again: guide gradient and rows by the model's own loss, from the weights after the second."""
    case, run, prepared = measured
    model = adapted_model(prepared).model
    checkpoints.restore_adapter(run.folder.checkpoint(2), model)
    model.eval()
    guide_targets = sum(row.targets for row in prepared.guide.features)
    guide = [row_gradient(model, case, prepared, row, guide_targets) for row in prepared.guide.features]
    direction = {name: sum(gradient[name] for gradient in guide) for name in guide[0]}
    table = read_table(run.folder, "ledger").to_pylist()
    values: dict[str, float] = {}
    for entry in table:
        if entry["step"] == 3:
            values[entry["example_id"]] = values.get(entry["example_id"], 0.0) + entry["value"]
    rows = rows_of_step(prepared, 3)
    divisor = sum(row.targets for row in rows)
    gradients = [row_gradient(model, case, prepared, row, divisor) for row in rows]
    step = {name: sum(gradient[name] for gradient in gradients) for name in direction}
    norm = torch.stack([gradient.norm() for gradient in step.values()]).norm()
    scale = 0.02 * min(1.0, 1.0 / (float(norm) + 1e-6))
    expected = dict.fromkeys(values, 0.0)
    for row, gradient in zip(rows, gradients, strict=True):  # windows of one row add up
        expected[row.example_id] += scale * sum(float((direction[name] * gradient[name]).sum()) for name in gradient)
    largest = max(abs(value) for value in values.values())
    for example_id, value in values.items():
        assert value == pytest.approx(expected[example_id], rel=1e-5, abs=1e-5 * largest)


def test_norms_are_of_every_trained_module(measured) -> None:
    _, run, prepared = measured
    adapted = adapted_model(prepared)
    norms, effective = read_table(run.folder, "norms"), read_table(run.folder, "effective")
    assert set(norms["module"].to_pylist()) == {fact.module for fact in adapted.facts.values()}
    own = (
        {"attention", "mlp", "head"}
        if prepared.task.kind(prepared.encoder.tokenizer).new_head
        else {"attention", "mlp"}
    )
    assert set(norms["group"].to_pylist()) == own
    assert set(effective["module"].to_pylist()) == set(norms["module"].to_pylist())


@pytest.mark.parametrize(("case", "family"), MATRIX, ids=lambda value: value)
def test_four_rows_are_learned_by_heart(case: str, family: str, task_config) -> None:
    prepared = prepare(task_config(case, family, 6, data__dev__fraction=0.34, method__r=16))
    model, batch = adapted_model(prepared).model, prepared.collator(prepared.train.features)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=CASES[case].rate)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = prepared.task.example_loss(model, batch).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert len(prepared.train_records) == 4
    assert losses[-1] < 0.1 * losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    said = prepared.task.predict(model, prepared.encoder, prepared.train_records)
    if case != "regression":
        items = map(prepared.task.item, said, prepared.train_records)
        assert all(item.output in item.references for item in items)


def test_a_stopped_run_continues_to_the_same_bytes(task_config, tmp_path: Path) -> None:
    config = task_config("pairs", "bert", 16, **{**MEASURED, "train__max_steps": 6, "method__lora_dropout": 0.2})
    whole = train(config, tmp_path / "whole")

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises((Stopped, KeyboardInterrupt)):
        train(config, tmp_path / "stopped", listen=interrupt)
    again = resume(tmp_path / "stopped")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (again.folder.adapter / name).read_bytes() == (whole.folder.adapter / name).read_bytes()
    for name in ("ledger", "norms"):
        assert read_table(again.folder, name).equals(read_table(whole.folder, name))
    assert json.loads(again.folder.evaluation.read_text()) == json.loads(whole.folder.evaluation.read_text())
