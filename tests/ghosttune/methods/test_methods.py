"""Every method learns four rows, moves its own parameters only, and comes back from disk and from merging as it was."""

from __future__ import annotations

import pytest
import torch
from method_cases import CASES, Case

from ghosttune import train
from ghosttune.models.loading import load_model
from ghosttune.registry import METHODS, TASKS
from ghosttune.workflows.prepare import prepare

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
