"""Every method learns four rows, moves its own parameters only, and comes back from disk and from merging as it was."""

from __future__ import annotations

import pytest
import torch
from method_cases import CASES, Case

from ghosttune import train
from ghosttune.models.loading import add_adapter, load_adapter, load_model, save_adapter
from ghosttune.registry import METHODS, TASKS
from ghosttune.stages.prepare import prepare
from ghosttune.workflows.check import check

IDS = torch.tensor([[5, 9, 300, 17, 40, 8, 77]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, -IDS.shape[1] :]


def dev_loss(model, prepared) -> float:
    """Nats per target of the dev rows."""
    with torch.no_grad():
        losses = TASKS["causal_lm"].build().example_loss(model, prepared.collator(prepared.dev.features))
    return float(losses.double().sum()) / prepared.dev.targets


def test_every_method_has_a_case():
    assert {case.method for case in CASES.values()} == set(METHODS.names())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_method_learns_saves_reloads_and_merges(case: Case, method_config, tmp_path):
    config = method_config(case)
    run = train(config, tmp_path / "run")
    losses = [event["loss"] for event in run.events if event["event"] == "log"]
    assert losses[-1] < 0.1 * losses[0], losses

    base, prepared = load_model(config.model, config.train.seed).eval(), prepare(config)
    model = run.pipeline().model
    verdict = run.record["verdict"]
    assert dev_loss(model, prepared) == pytest.approx(
        verdict["dev_loss"], rel=1e-5
    )  # joined adapters add in another order
    assert dev_loss(base, prepared) == pytest.approx(verdict["dev_loss_base"], rel=1e-6)
    tuned, untouched = logits(model), logits(base)
    assert not torch.allclose(tuned, untouched, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(logits(model), untouched)

    assert_only_its_own_moved(case, model, base)
    if case.merges:
        torch.testing.assert_close(logits(model.merge_and_unload()), tuned, rtol=1e-3, atol=2e-3)


def assert_only_its_own_moved(case: Case, model, base) -> None:
    """The base inside the tuned model is the untouched one, but for what a direct method trains."""
    before, inside = base.state_dict(), model.get_base_model().state_dict()
    if case.method in ("full", "bitfit"):
        moved = {name for name, tensor in before.items() if not torch.equal(inside[name], tensor)}
        assert moved == ({name for name in before if name.endswith("bias")} if case.method == "bitfit" else set(before))
        return
    found = {name.replace(".base_layer", ""): tensor for name, tensor in inside.items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("kind", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_a_budget_decides_the_ranks_and_leaves_the_scale(kind, method_config, tmp_path):
    """Two arms train as many parameters to 2 %; what is saved is read back by PEFT alone."""
    scales, budget = set(), 40_000
    for arm in ("attention", "mlp"):
        settings = {"r": 8, "lora_alpha": 12.0, "parameter_budget": budget, "target_modules": arm, **kind}
        config = method_config(Case("lora", settings))
        model = add_adapter(load_model(config.model, 0), config.method, 0)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert abs(trained - budget) <= 0.02 * budget
        layers = [module for module in model.modules() if hasattr(module, "lora_A")]
        assert len({layer.r["default"] for layer in layers}) <= 2
        scales |= {round(layer.scaling["default"], 9) for layer in layers}
        plan = check(config).plan["parameter_budget"]
        assert plan == {"asked": budget, "reached": trained, "left": budget - trained}
    assert scales == {round(12 / 8**0.5, 9) if kind.get("use_rslora") else 1.5}
    torch.nn.init.normal_(layers[0].lora_B["default"].weight)
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(load_model(config.model, 0), tmp_path / "adapter")
    torch.testing.assert_close(logits(again), logits(model))
