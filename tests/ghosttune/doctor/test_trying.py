"""What a pass of two rows shows: memory against what a training step allocates, and gradients that do not arrive."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_cases import tokenizer, usable
from small_llama import small_llama
from torch.profiler import ProfilerActivity, profile

from ghosttune.config.facts import CAUSAL_LM
from ghosttune.models.loading import load_model
from ghosttune.stages.model import adapted_model
from ghosttune.stages.prepare import prepare
from ghosttune.stages.timing import Pace, seconds_of, span
from ghosttune.stages.trying import MODEL, Tried, before_loading, on_real_rows
from ghosttune.training import memory, probing
from ghosttune.training.memory import Sizes, plan_of, predicted, weight_bytes
from ghosttune.training.order import rows_of_steps
from ghosttune.training.probing import PART, Probe, kept, last_trained
from ghosttune.workflows.train import train

GB = 10**9


def small_model(folder: Path, **shape: int) -> str:
    torch.manual_seed(0)
    small_llama(len(tokenizer()), max_position_embeddings=512, **shape).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def peak_bytes(step, trace: Path) -> int:
    """The most that was allocated above what there was, by torch's own account of every allocation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    profiled.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((128, 344, 4), {}),
        ((64, 172, 8), {"train__per_device_train_batch_size": 16}),
        ((256, 688, 2), {"model__dtype": "bfloat16"}),
        ((128, 344, 6), {"train__activation_checkpointing": True}),
        ((128, 344, 4), {"method__type": "full"}),
    ],
    ids=lambda value: "-".join(map(str, value)) or "lora",
)
def test_predicted_memory_is_what_a_step_takes(shape, settings, read, tmp_path):
    width, inner, layers = shape
    name = small_model(tmp_path / "m", hidden_size=width, intermediate_size=inner, num_hidden_layers=layers)
    rows = [{"prompt": f"{'x ' * 60}{n}", "completion": "y " * 40} for n in range(20)]
    batch = {"train__per_device_train_batch_size": 8} | settings
    size = batch["train__per_device_train_batch_size"]
    config, _ = read(rows, model__name=name, data__max_length=256, train__per_device_eval_batch_size=size, **batch)
    prepared = prepare(config)
    adapted = adapted_model(prepared)
    tried = on_real_rows(before_loading(prepared.config, CAUSAL_LM), prepared, adapted)

    model = adapted.model.train()
    if config.train.activation_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    longest = sorted(prepared.train.features, key=len)[-size:]

    def step() -> None:
        prepared.task.example_loss(model, prepared.collator(longest)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    held = sum(p.nbytes for p in model.parameters())
    held += sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    taken = held + peak_bytes(step, tmp_path / "trace.json")
    assert tried.needed == pytest.approx(taken, rel=0.15)


@pytest.mark.parametrize(
    "settings",
    [
        *({"method__type": name} for name in ("lora", "full", "adalora", "ia3", "prompt_tuning", "prefix_tuning")),
        {"method__use_dora": True},
        {"model__dtype": "bfloat16"},
        {"train__packing": True},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_kept_is_known_without_products(settings, checkpointing, read, monkeypatch):
    """The reference computes them."""
    if checkpointing and "prefix_tuning" in settings.values():
        pytest.skip("prefix tuning and checkpointing exclude each other")
    prepared = prepare(read(usable(12), **settings)[0])
    model = adapted_model(prepared).model
    batch = prepared.collator(prepared.train.features[:3])
    found = kept(prepared.task, model, batch, checkpointing)
    monkeypatch.setattr(probing, "_WithoutProducts", nullcontext)
    assert found == kept(prepared.task, model, batch, checkpointing) and found.whole > found.largest > 0


def test_a_part_of_a_row_ends_with_what_is_trained_last(read):
    rows = [{"prompt": f"{'x ' * 150}{n}", "completion": f"y {n}"} for n in range(12)]
    prepared = prepare(read(rows, data__max_length=512)[0])
    row: Any = prepared.train.features[0]
    part = last_trained(row, PART)
    end = int(row.trained.nonzero()[0][-1]) + 1
    assert len(row) > len(part) == PART and part.targets == row.targets
    assert (part.input_ids == row.input_ids[end - PART : end]).all() and (
        part.trained == row.trained[end - PART : end]
    ).all()
    inside = last_trained(row, 2)
    assert inside.trained.tolist() == [False, True], "nothing predicts the first"
    assert last_trained(row, len(row)) is row


def test_weights_are_counted_before_they_are_loaded(read):
    config, _ = read()
    tried = before_loading(config, CAUSAL_LM)
    whole = tried.sizes.linear + tried.sizes.other
    assert whole == sum(parameter.numel() for parameter in load_model(config.model, 0).parameters())
    assert weight_bytes(tried.sizes, plan_of(config)) == 4 * whole
    half = replace(plan_of(config), dtype="bfloat16")
    assert weight_bytes(tried.sizes, half) == 2 * whole
    nf4 = replace(half, quantization="nf4")
    assert weight_bytes(tried.sizes, nf4) == pytest.approx(0.516 * tried.sizes.linear + 4 * tried.sizes.other)


SEVEN_BILLION = Sizes(6_500_000_000, 500_000_000)


@pytest.mark.parametrize(
    ("free", "remedy"),
    [
        (30, None),
        (27, "Set model.dtype: bfloat16"),
        (13, "Set model.quantization: nf4"),
        (2, "No setting here makes it fit: take a smaller model, or free memory"),
    ],
)
def test_too_little_memory_is_told_with_the_change_that_would_fit(read, free, remedy):
    config, _ = read()
    tried = Tried(config, SEVEN_BILLION, free * GB)
    found = MODEL.findings(tried)
    if remedy is None:
        assert found == []
        return
    assert found[0].check == "more memory than there is"
    assert f"the run needs about 28.0 GB, and {free}.0 GB are free" in found[0].message
    assert remedy in found[0].do


ONE_ROW = "train.per_device_train_batch_size: 1, train.gradient_accumulation_steps: 9"


@pytest.mark.parametrize(
    ("free", "change"),
    [
        (6.3, "train.per_device_eval_batch_size: 3"),
        (2.6, f"{ONE_ROW}, train.per_device_eval_batch_size: 1"),
        (0.7, f"{ONE_ROW}, train.per_device_eval_batch_size: 1, train.activation_checkpointing: true"),
        (0.4, f"{ONE_ROW}, train.per_device_eval_batch_size: 1, train.activation_checkpointing: true, model.dtype"),
    ],
)
def test_the_most_harmless_change_that_fits_is_named(read, free, change):
    config, _ = read(
        train__gradient_accumulation_steps=3,
        train__per_device_train_batch_size=3,
        train__per_device_eval_batch_size=6,
        train__activation_checkpointing=False,
    )
    sizes = Sizes(10**8, 10**7, 10**6, guide_rows=64, layers=10, kept=1e9, kept_checkpointed=1e8, largest=0)
    assert sum(predicted(sizes, plan_of(config)).values()) == pytest.approx(6.46e9, rel=0.01)
    assert (memory.fitting(sizes, config, free * GB) or "").startswith(change)


@pytest.mark.parametrize(
    ("settings", "guide_passes", "evaluations"),
    [
        ({"train__max_steps": 7, "train__eval_steps": 3}, 0, 3),
        ({"train__max_steps": 4, "train__eval_steps": 4, "train__packing": True}, 0, 2),
        ({"train__max_steps": 5, "train__eval_steps": 5, "measure__ledger__guide_every": 2}, 4, 2),
    ],
)
def test_time_is_told_for_what_a_run_reads(settings, guide_passes, evaluations, read):
    """Positions counted anew by the rows that come, at one second forward and two more backward."""
    guided = "measure__ledger__guide_every" in settings
    plain = {"data__guide__rows": 5} if guided else {"measure__ledger__guide_every": None}
    sizes = {"train__per_device_train_batch_size": 6, "train__per_device_eval_batch_size": 100}
    prepared = prepare(read(usable(40), **plain | sizes | settings)[0])
    rows = prepared.train.features
    lengths = [
        [len(rows[place]) for place in step] for step in rows_of_steps(prepared.order(), 6, 1, -(-len(rows) // 6))
    ]
    read_by_one = [sum(own) if prepared.config.train.packing else len(own) * max(own) for own in lengths]
    updates = 6 * settings["train__max_steps"] * sum(read_by_one) / len(rows)

    def together(rows) -> int:
        return len(rows) * max(map(len, rows)) if len(rows) else 0

    times = seconds_of(prepared, Pace(1.0, 2.0))
    assert times["updates"] == pytest.approx(3 * updates)
    assert times["dev losses"] == evaluations * together(prepared.dev.features)
    assert times.get("guide passes", 0) == 3 * guide_passes * together(prepared.guide.features)


@pytest.mark.parametrize(("seconds", "said"), [(3.4, "3 s"), (130, "2 min"), (7300, "2 h 2 min")])
def test_times_are_said_in_units_of_their_size(seconds, said):
    assert span(seconds) == said


def test_a_container_may_use_less_than_the_machine_has(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    whole = memory.free_memory("cpu")
    for name, text in (("memory.max", "1000\n"), ("memory.current", "400\n")):
        (tmp_path / name).write_text(text)
    assert memory.free_memory("cpu") == 600 < whole
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory("cpu") > 600


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method__use_dora": True},
        *({"method__init_lora_weights": name} for name in ("pissa", "eva", "corda", "lora_ga")),
        {"method__trainable_token_indices": [7]},
        {"train__activation_checkpointing": True},
        *({"method__type": name} for name in ("adalora", "vera", "loha", "lokr", "oft", "ia3", "layernorm")),
        *({"method__type": name} for name in ("prompt_tuning", "p_tuning", "prefix_tuning", "full")),
    ],
    ids=lambda settings: " ".join(map(str, settings.values())) or "lora",
)
def test_gradients_arrive_with_every_method(settings, read):
    config, problems = read(usable(12), **settings)
    prepared = prepare(config)
    adapted = adapted_model(prepared)
    random = torch.get_rng_state()
    tried = on_real_rows(before_loading(prepared.config, CAUSAL_LM), prepared, adapted)
    assert problems == [] and MODEL.findings(tried) == []
    assert torch.equal(torch.get_rng_state(), random), "training draws the same numbers as without the check"
    assert all(parameter.grad is None for parameter in adapted.model.parameters())


def test_a_gradient_that_does_not_arrive_is_found_by_the_name_of_its_module(read):
    prepared = prepare(read(usable(12))[0])
    adapted = adapted_model(prepared)
    tried = before_loading(prepared.config, CAUSAL_LM)
    cut = adapted.model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    cut.register_forward_hook(lambda module, inputs, output: output.detach())
    seen = on_real_rows(tried, prepared, adapted)
    (found,) = MODEL.findings(seen)
    assert found.check == "gradients that do not arrive" and found.rows == seen.rows and len(seen.rows) == 2
    assert "does not reach 3 of the trained modules: model.layers.1.mlp.gate_proj" in found.message
    adapted.model.register_forward_pre_hook(lambda module, inputs: adapted.model.requires_grad_(False) and None)
    (found,) = MODEL.findings(on_real_rows(tried, prepared, adapted))
    assert f"does not reach {len({fact.module for fact in adapted.facts.values()})} of the" in found.message


def test_a_loss_that_is_no_number_is_found(read):
    config, _ = read()
    tried = Tried(config, Sizes(1, 1), GB, rows=("a", "b"), probe=Probe([1.0, float("nan")], []))
    (found,) = MODEL.findings(tried)
    assert found.check == "loss not a number" and "a loss of nan on rows b" in found.message
    assert MODEL.findings(replace(tried, probe=Probe([1.0, 2.0], []))) == []


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"method__type": "full"}], ids=["lora", "full"])
def test_predicted_memory_counts_what_the_ledger_keeps(settings, read, tmp_path):
    """A whole run, by torch's own account: two fifths of it are the ledger's."""
    name = small_model(tmp_path / "m", hidden_size=128, intermediate_size=344, num_hidden_layers=4)
    rows = [{"prompt": f"{'x ' * 60}{n}", "completion": "y " * 40} for n in range(30)]
    sizes = {"train__per_device_train_batch_size": 8, "train__per_device_eval_batch_size": 8, "train__max_steps": 5}
    ledger = {"measure__ledger": {"guide_every": 2}, "data__guide__rows": 6, "evaluate__limit": 0}
    plan = {"train__eval_steps": 5, "train__save_steps": 5, "train__warmup_steps": 1}
    config, problems = read(rows, model__name=name, data__max_length=256, **sizes, **ledger, **plan, **settings)
    prepared = prepare(config)
    tried = on_real_rows(before_loading(prepared.config, CAUSAL_LM), prepared, adapted_model(prepared))
    taken = peak_bytes(lambda: train(config, tmp_path / "run"), tmp_path / "trace.json")
    assert problems == [] and predicted(tried.sizes, plan_of(config))["ledger"] > 0.3 * taken
    assert tried.needed == pytest.approx(taken, rel=0.15)
