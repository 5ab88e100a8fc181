"""A run from its configuration to its directory: what is trained, recorded, kept and judged."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ghosttune import load_config, open_run, train
from ghosttune.errors import ConfigError, GhosttuneError, RunError
from ghosttune.inference.pipeline import Pipeline
from ghosttune.models.loading import load_model
from ghosttune.training import checkpoints


def adapter_of(folder):
    return load_file(str(folder / "adapter_model.safetensors"))


def assert_same_tensors(left, right):
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, f"tensors differ: {different}"


def losses(run, event="eval"):
    return [entry["loss"] for entry in run.events if entry["event"] == event]


def test_run_directory_holds_what_the_contract_names(make_config, tmp_path):
    run = train(make_config(), tmp_path / "run")
    record = run.record
    assert record["status"] == "finished" and record["step"] == 6
    for name in (
        "seed",
        "environment",
        "data",
        "stage_seconds",
        "tokens_per_second",
        "peak_memory_mb",
        "padding_share",
    ):
        assert record[name], name
    assert record["environment"]["packages"]["torch"] == torch.__version__
    assert record["data"]["rows"] == {"train": 27, "dev": 3, "guide": 0}
    assert record["verdict"]["verdict"] in ("better", "worse", "not distinguishable")
    with open(run.folder.splits) as file:
        splits = list(csv.DictReader(file))
    assert len(splits) == 30 and {row["split"] for row in splits} == {"train", "dev"}
    assert [event["step"] for event in run.events if event["event"] == "eval"] == [0, 1, 2, 3, 4, 5, 6]
    assert all(event["split"] == "dev" for event in run.events if event["event"] == "eval")
    assert len(run.predictions) == 2 and run.evaluation["dev"]["adapter"]["exact_match"]["n"] == 2
    assert (
        not list(tmp_path.rglob("*.partial")) and not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.pt"))
    )


def test_saved_configuration_trains_to_the_same_run(make_config, tmp_path):
    first = train(make_config(method__lora_dropout=0.1), tmp_path / "first")
    again = train(load_config(first.folder.config), tmp_path / "again")
    assert losses(first) == losses(again) and losses(first, "log") == losses(again, "log")
    assert_same_tensors(adapter_of(first.folder.adapter), adapter_of(again.folder.adapter))
    assert yaml.safe_load(first.folder.config.read_text()) == yaml.safe_load(again.folder.config.read_text())


@pytest.mark.parametrize("batch, accumulation", [(4, 2), (2, 4), (1, 8)])
def test_accumulation_changes_nothing(make_config, tmp_path, batch, accumulation):
    whole = train(make_config(train__per_device_train_batch_size=8), tmp_path / "whole")
    parts = train(
        make_config(train__per_device_train_batch_size=batch, train__gradient_accumulation_steps=accumulation),
        tmp_path / "parts",
    )
    np.testing.assert_allclose(losses(parts, "log"), losses(whole, "log"), rtol=1e-5)
    np.testing.assert_allclose(losses(parts), losses(whole), rtol=1e-5)


def test_only_the_adapter_moves(make_config, tmp_path):
    config = make_config()
    run = train(config, tmp_path / "run")
    base = load_model(config.model, seed=0).state_dict()
    tuned = Pipeline.from_run(run.path).model.get_base_model().state_dict()
    kept = {name.replace(".base_layer", ""): tensor for name, tensor in tuned.items() if "lora_" not in name}
    assert_same_tensors(base, kept)
    assert all(".lora_" in name for name in adapter_of(run.folder.adapter))
    saved = load_file(str(run.folder.checkpoint(6) / checkpoints.OPTIMIZER))
    assert saved and all(".lora_" in name for name in saved)


def test_adapter_loads_with_peft_alone_and_gives_the_same_logits(make_config, tiny_model, tmp_path):
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = train(make_config(), tmp_path / "run")
    ours = run.pipeline().model
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with pytest.warns(FutureWarning):  # PEFT's own, about Transformers
        theirs = peft.PeftModel.from_pretrained(base, run.folder.adapter).eval()
    ids = AutoTokenizer.from_pretrained(run.folder.adapter)("Say red please", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(ours(**ids).logits, theirs(**ids).logits)
        with theirs.disable_adapter():
            assert torch.equal(theirs(**ids).logits, AutoModelForCausalLM.from_pretrained(tiny_model)(**ids).logits)
    assert not torch.equal(adapter_of(run.folder.adapter)[next(iter(adapter_of(run.folder.adapter)))], torch.zeros(1))


TOO_FAST = {
    "train__learning_rate": 0.5,
    "train__max_grad_norm": 0,
    "train__lr_scheduler_type": "constant",
    "train__warmup_steps": 0,
}
"""Steps that stay too long to the end, so that the last evaluations are not the best."""


def test_best_and_last_are_what_the_events_say(make_config, tmp_path):
    run = train(make_config(**TOO_FAST, train__max_steps=12), tmp_path / "run")
    evals = {event["step"]: event["loss"] for event in run.events if event["event"] == "eval" and event["step"] > 0}
    best = min(evals, key=evals.get)
    assert run.record["best_step"] == best and best != 12, "the learning rate should have been too high to end well"
    assert_same_tensors(adapter_of(run.folder.adapter), adapter_of(run.folder.checkpoint(best)))
    assert_same_tensors(adapter_of(run.folder.last), adapter_of(run.folder.checkpoint(12)))
    assert run.record["verdict"]["dev_loss"] == pytest.approx(evals[best], rel=1e-6)
    assert set(run.folder.checkpoint_steps()) == {best, 11, 12}


def test_early_stopping_fires_when_dev_loss_stops_falling(make_config, tmp_path):
    config = make_config(**TOO_FAST, train__max_steps=20, train__eval_steps=1, train__early_stopping_patience=3)
    run = train(config, tmp_path / "run")
    evals = [loss for loss in losses(run)][1:]
    expected = next(step for step in range(4, 21) if min(evals[step - 3 : step]) >= min(evals[: step - 3]))
    assert run.record["step"] == len(evals) == expected < 20


def test_settings_reach_the_optimizer(make_config, tmp_path):
    config = make_config(
        train__weight_decay=0.1, train__adam_beta1=0.8, train__adam_beta2=0.95, train__adam_epsilon=1e-6,
        train__lr_scheduler_type="linear", train__warmup_steps=2, train__max_steps=6,
    )  # fmt: skip
    run = train(config, tmp_path / "run")
    state = json.loads((run.folder.checkpoint(6) / checkpoints.STATE).read_text())
    group = state["groups"][0]
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.1, [0.8, 0.95], 1e-6)
    rates = [event["learning_rate"] for event in run.events if event["event"] == "log"]
    np.testing.assert_allclose(rates, [0, 0.005, 0.01, 0.0075, 0.005, 0.0025], atol=1e-12)


def test_gradients_are_clipped(make_config, tmp_path):
    free = train(make_config(train__max_grad_norm=0, train__max_steps=3), tmp_path / "free")
    clipped = train(make_config(train__max_grad_norm=1e-3, train__max_steps=3), tmp_path / "clipped")
    norms = [event["grad_norm"] for event in clipped.events if event["event"] == "log"]
    assert norms[0] > 1e-3, "the recorded norm is the one before clipping"
    assert losses(free, "log") != losses(clipped, "log")


@pytest.mark.parametrize("rows", [3, 4, 9])
def test_a_handful_of_rows_trains(make_config, rows_file, tmp_path, rows):
    rows_file.write_text("".join(rows_file.read_text().splitlines(keepends=True)[:rows]))
    run = train(make_config(), tmp_path / "run")
    assert run.record["status"] == "finished"
    assert sum(run.record["data"]["rows"].values()) == rows


def test_activation_checkpointing_computes_the_same(make_config, tmp_path):
    plain = train(make_config(), tmp_path / "plain")
    saving = train(make_config(train__activation_checkpointing=True), tmp_path / "saving")
    np.testing.assert_allclose(losses(saving, "log"), losses(plain, "log"), rtol=1e-6)


def test_bfloat16_base_keeps_a_float32_adapter(make_config, tmp_path):
    run = train(make_config(model__dtype="bfloat16"), tmp_path / "run")
    model = run.pipeline().model
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert all(tensor.dtype == torch.float32 for tensor in adapter_of(run.folder.adapter).values())
    assert losses(run)[-1] < losses(run)[0]


def test_random_initialisation_takes_the_shape_only(make_config, tmp_path):
    config = make_config(model__init="random")
    assert not torch.equal(
        load_model(config.model, 1).lm_head.weight, load_model(make_config().model, 1).lm_head.weight
    )
    assert torch.equal(load_model(config.model, 1).lm_head.weight, load_model(config.model, 1).lm_head.weight)
    run = train(config, tmp_path / "run")
    pipeline = run.pipeline()
    untouched = [row["base_output"] for row in run.predictions]
    asked = [row["prompt"] for row in run.predictions]
    assert [answer.text for answer in pipeline.generate(asked, adapter=False)] == untouched


def test_a_stop_token_the_base_never_learned(make_config, tiny_model, tmp_path):
    """Tokens that pretraining never showed share one row; then no adapter can single the stop token out."""
    import shutil

    untaught = tmp_path / "untaught-model"
    shutil.copytree(tiny_model, untaught)
    tensors = load_file(str(untaught / "model.safetensors"))
    tensors["lm_head.weight"][2] = tensors["lm_head.weight"][3] + 1e-5
    save_file(tensors, str(untaught / "model.safetensors"), metadata={"format": "pt"})
    config = make_config(model__name=str(untaught))
    with pytest.raises(ConfigError, match=r"trainable_token_indices: must hold 2: .* <eos>, whose row .* 1 other"):
        train(config, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_trained_token_rows_are_part_of_the_adapter(make_config, tmp_path):
    run = train(make_config(method__trainable_token_indices=[2]), tmp_path / "run")
    (row,) = [tensor for name, tensor in adapter_of(run.folder.adapter).items() if "token" in name]
    base = load_model(make_config().model, 0).get_input_embeddings().weight[2]
    assert row.shape == (1, 16) and not torch.allclose(row[0], base)
    assert run.record["model"]["trainable_parameters"]["embedding"] == 16
    assert run.pipeline().chat("Say red") is not None


def test_a_loss_that_is_not_a_number_ends_the_run(make_config, tiny_model, tmp_path):
    import shutil

    broken = tmp_path / "broken-model"
    shutil.copytree(tiny_model, broken)
    tensors = load_file(str(broken / "model.safetensors"))
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, str(broken / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(GhosttuneError, match="untouched base gives a dev loss that is not a number"):
        train(make_config(model__name=str(broken)), tmp_path / "run")
    record = open_run(tmp_path / "run").record
    assert record["status"] == "failed" and "not a number" in record["error"]


def test_a_used_folder_is_refused_before_any_work(make_config, tmp_path):
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty and holds no run"):
        train(make_config(), used)
    assert [path.name for path in used.iterdir()] == ["notes.txt"]
    train(make_config(train__max_steps=3), tmp_path / "run")
    with pytest.raises(RunError, match="already holds a run"):
        train(make_config(), tmp_path / "run")


def test_loss_does_not_depend_on_the_evaluation_batch(make_config, tmp_path):
    one = train(make_config(train__per_device_eval_batch_size=1, train__max_steps=3), tmp_path / "one")
    many = train(make_config(train__per_device_eval_batch_size=64, train__max_steps=3), tmp_path / "many")
    np.testing.assert_allclose(losses(one), losses(many), rtol=1e-6)
