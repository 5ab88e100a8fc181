"""Norms and ledger against slow references that repeat each step of a plain Trainer, one backward per row."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from ghosttune.errors import InputError
from ghosttune.metrics.ranking import auroc, separation
from ghosttune.proving.reference import (
    GUIDE,
    gradient_of,
    keeping_trainer,
    mean_loss,
    measured,
    rows_of,
    set_weights,
    small_llama,
    table,
)
from ghosttune.training.attaching import attach

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*")


def test_norms_are_those_of_the_complete_gradient_before_and_after_clipping(tmp_path):
    trainer = measured(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    norms = table(tmp_path, "norms")
    rows = list(zip(*(norms[c] for c in ("step", "module", "factor", "norm", "norm_after_clip")), strict=True))
    assert len(rows) == len(trainer.steps) * len(trainer.steps[0].gradient)
    found = {(step, module, factor): (norm, clipped) for step, module, factor, norm, clipped in rows}
    for number, step in enumerate(trainer.steps, 1):
        for name, gradient in step.gradient.items():
            module, _, below = name.removeprefix("base_model.model.").partition(".lora_")
            norm, clipped = found[number, module, below[0]]
            assert norm == pytest.approx(float(gradient.norm()), rel=1e-9, abs=1e-15)
            assert clipped == pytest.approx(float(step.clipped[name].norm()), rel=1e-6, abs=1e-15)
    assert any(norm > clipped * 1.01 for _, _, _, norm, clipped in rows), "clipping never bound"


def test_update_and_weight_norms(tmp_path):
    trainer = measured(tmp_path)
    norms = table(tmp_path, "norms")
    moved = np.array(norms["update_norm"]).reshape(len(trainer.steps), -1)
    weights = np.array(norms["weight_norm"]).reshape(len(trainer.steps), -1)
    for place, step in enumerate(trainer.steps):
        expected = [float((step.after[name] - step.weights[name]).norm()) for name in step.weights]
        np.testing.assert_allclose(moved[place], expected, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(weights[place], [float(w.norm()) for w in step.after.values()], rtol=1e-9)


def test_effective_norms_are_those_of_the_adapted_weights(tmp_path):
    trainer = measured(tmp_path, effective_every=5, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    rows = table(tmp_path, "effective")
    assert sorted(set(rows["step"])) == [1, 6, 11]
    model: Any = trainer.model
    weights = {name: p for name, p in model.named_parameters() if name.endswith("base_layer.weight")}
    for number in (1, 6, 11):
        step = trainer.steps[number - 1]
        set_weights(model, step.weights)
        for weight in weights.values():
            weight.requires_grad_()
        gradients = torch.autograd.grad(mean_loss(model, rows_of(step), step.targets), list(weights.values()))
        for weight in weights.values():
            weight.requires_grad_(False)
        expected = {
            name.removeprefix("base_model.model.").removesuffix(".base_layer.weight"): (gradient, weight)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        }
        found = [place for place, at in enumerate(rows["step"]) if at == number]
        assert {rows["module"][place] for place in found} == set(expected)
        for place in found:
            gradient, weight = expected[rows["module"][place]]
            # 1e-6: Llama's norms and rotations work in float32 whatever the model's dtype
            assert rows["effective_norm"][place] == pytest.approx(float(gradient.norm()), rel=1e-6)
            relative = float(gradient.norm() / weight.norm())
            assert rows["relative_norm"][place] == pytest.approx(relative, rel=1e-6)


@pytest.mark.parametrize("other", [{"r": 16}, {"lora_alpha": 64}], ids=str)
def test_effective_norms_do_not_move_with_r_and_alpha_at_the_first_step(tmp_path, other):
    found = []
    for place, options in enumerate(({}, other)):
        folder = tmp_path / str(place)
        measured(folder, model=small_llama(dtype=torch.float32, **options), effective_every=100, max_steps=1)
        found.append((table(folder, "effective")["effective_norm"], table(folder, "norms")["norm"]))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    assert not np.allclose(found[0][1], found[1][1], rtol=0.1)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_row_values_are_those_of_one_backward_per_row(tmp_path, full, kind):
    """Also with accumulation, binding clip and a guide gradient that is three steps old."""
    trainer = measured(
        tmp_path, full=full, values=kind, guide_every=3, gradient_accumulation_steps=2, per_device_train_batch_size=4
    )
    rows = table(tmp_path, "ledger")
    model: Any = trainer.model
    guide: dict[str, torch.Tensor] = {}
    for number, step in enumerate(trainer.steps, 1):
        set_weights(model, step.weights)
        if (number - 1) % 3 == 0:
            guide = gradient_of(model, GUIDE)
        clip = min(1.0, 0.2 / (float(torch.stack([g.norm() for g in step.gradient.values()]).norm()) + 1e-6))
        expected = []
        for row in rows_of(step):
            own = gradient_of(model, [row], step.targets)
            value = 0.0
            for name, gradient in own.items():
                state = step.moments[name]
                if kind == "sgd":
                    scale: Any = step.rate
                elif not state:
                    continue
                else:
                    second = state["exp_avg_sq"]
                    root = (second / (1 - 0.999 ** float(state["step"]))).sqrt() + 1e-8
                    scale = torch.where(second > 0, step.rate / root, 0.0)
                value += clip * float((guide[name] * scale * gradient).sum())
            expected.append(value)
        found: dict[str, float] = {}
        for place, at in enumerate(rows["step"]):
            if at == number:
                name = rows["example_id"][place]
                found[name] = found.get(name, 0.0) + (rows["value"][place] or 0.0)
        assert len(found) == 8
        np.testing.assert_allclose(list(found.values()), expected, rtol=1e-6, atol=1e-12)
    first = [value for value, at in zip(rows["value"], rows["step"], strict=True) if at == 1]
    assert all((value is None) == (kind == "adamw") for value in first)


def test_every_consumed_row_is_there_once_per_time_it_was_consumed(tmp_path):
    measured(tmp_path, rows=20, max_steps=7)
    rows = table(tmp_path, "ledger")
    entries = set(zip(*(rows[name] for name in ("step", "example_id", "group", "layer")), strict=True))
    assert len(entries) == len(rows["step"])
    assert {(g, layer) for _, _, g, layer in entries} == {(g, n) for g in ("attention", "mlp") for n in (0, 1)}
    consumed = {(step, name) for step, name, _, _ in entries}
    assert len(consumed) == 8 + 8 + 4 + 8 + 8 + 4 + 8  # the last step of an epoch holds what is left
    values = table(tmp_path, "values")
    assert sum(values["steps_seen"]) == len(consumed)
    totals: dict[str, float] = {}
    for name, value in zip(rows["example_id"], rows["value"], strict=True):
        totals[name] = totals.get(name, 0.0) + (value or 0.0)
    assert dict(zip(values["example_id"], values["value"], strict=True)) == pytest.approx(totals)


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-3), (torch.float64, 1e-6)])
def test_micro_batches_do_not_change_the_tables(tmp_path, dtype, rtol):
    found = []
    for size, accumulation in ((8, 1), (4, 2), (2, 4)):
        folder = tmp_path / str(size)
        options: dict[str, Any] = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": accumulation,
        }
        measured(folder, dtype=dtype, effective_every=3, guide_every=2, **options)
        found.append({name: table(folder, name) for name in ("norms", "effective", "ledger", "module_steps")})
    for other in found[1:]:
        for name, columns in found[0].items():
            for column, values in columns.items():
                if column in ("norm", "norm_after_clip", "update_norm", "weight_norm", "effective_norm"):
                    np.testing.assert_allclose(other[name][column], values, rtol=rtol, atol=1e-7)
                elif column in ("value", "credit", "guide_loss_drop", "relative_norm"):
                    left, right = (np.array(v, float) for v in (other[name][column], values))
                    np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol * np.nanmax(np.abs(right)))
                else:
                    assert other[name][column] == values, (name, column)


def test_the_three_exports_of_norms_say_what_the_table_says(tmp_path):
    measured(tmp_path)
    folder, norms = tmp_path / "measured", table(tmp_path, "norms")
    lines = (folder / "gradient_analysis.group_norms.csv").read_text().splitlines()
    assert lines[0] == "step,embed_norm,attention_norm,mlp_norm,lm_head_norm,total_norm"
    layers = (folder / "gradient_analysis.layer_norms.csv").read_text().splitlines()
    assert layers[0] == "step,layer_0_attention,layer_0_mlp,layer_1_attention,layer_1_mlp"
    assert len(lines) == len(layers) == 13
    for line, by_layer in zip(lines[1:], layers[1:], strict=True):
        step, embed, attention, mlp, head, total = line.split(",")
        assert embed == head == ""  # not trained: empty, never 0
        own = [(g, n) for s, g, n in zip(norms["step"], norms["group"], norms["norm"], strict=True) if s == int(step)]
        for group, cell in (("attention", attention), ("mlp", mlp)):
            assert float(cell) == pytest.approx(sum(n**2 for g, n in own if g == group) ** 0.5)
        assert float(total) == pytest.approx(sum(n**2 for _, n in own) ** 0.5)
        assert float(total) == pytest.approx(sum(float(cell) ** 2 for cell in by_layer.split(",")[1:]) ** 0.5)
    summary = json.loads((folder / "gradient_analysis.summary.json").read_text())
    assert set(summary) == {"attention", "mlp", "total"}
    assert set(summary["mlp"]) == {"mean", "std", "max", "min", "peak_step"}


def test_a_trainer_that_cannot_be_measured_is_refused(tmp_path):
    trainer = keeping_trainer(tmp_path, small_llama())
    trainer.args.fp16 = True
    trainer.model_accepts_loss_kwargs = False
    with pytest.raises(InputError, match=r"fp16.*num_items_in_batch"):
        attach(trainer, tmp_path / "measured", GUIDE)


def test_auroc_counts_pairs_and_ties():
    random = np.random.default_rng(0)
    scores, flagged = random.integers(0, 9, 80).astype(float), random.random(80) < 0.3
    pairs = [(low < high) + 0.5 * (low == high) for low in scores[flagged] for high in scores[~flagged]]
    found = auroc(scores, flagged)
    assert found.value == pytest.approx(np.mean(pairs))
    assert found.low < found.value < found.high
    assert separation(auroc(np.where(flagged, -1.0, 1.0), flagged), 20) == "at the bottom"
    assert separation(auroc(np.where(flagged, 1.0, -1.0), flagged), 20) == "at the top"
    assert separation(auroc(np.where(flagged, -1.0, 1.0), flagged), 5) == "not distinguishable", "too few to tell"


def test_standing_does_not_depend_on_when_a_row_came(tmp_path):
    """Over the root mean square of the values of its step, averaged over its visits."""
    measured(tmp_path)
    rows, values = table(tmp_path, "ledger"), table(tmp_path, "values")
    visits: dict[tuple[int, str], float] = {}
    for step, name, value in zip(rows["step"], rows["example_id"], rows["value"], strict=True):
        if value is not None:
            visits[step, name] = visits.get((step, name), 0.0) + value
    typical = {
        step: np.sqrt(np.mean([value**2 for (at, _), value in visits.items() if at == step])) for step, _ in visits
    }
    for name, standing in zip(values["example_id"], values["standing"], strict=True):
        own = [value / typical[step] if typical[step] else 0 for (step, row), value in visits.items() if row == name]
        assert (standing is None) == (not own)
        assert not own or standing == pytest.approx(np.mean(own), rel=1e-9, abs=1e-12)
