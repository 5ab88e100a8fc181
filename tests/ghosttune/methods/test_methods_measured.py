"""Norms, effective norms and the ledger under every method that has them; refused by name under the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_cases import CASES, Case

from ghostgrad.store import GradientStore
from ghosttune import train
from ghosttune.config.facts import ParameterFacts
from ghosttune.errors import ConfigError, InputError
from ghosttune.run.tables import read_table
from ghosttune.training.instruments import MicroBatch
from ghosttune.training.norms import EffectiveNorms
from ghosttune.workflows.index import index
from ghosttune.workflows.opened import OpenedRun

MEASURED = {
    "measure__norms": {"every": 2, "effective": 3},
    "measure__ledger": {"guide_every": 1},
    "data__guide__rows": 2,
    "train__max_steps": 6,
    "train__eval_steps": 6,
}
WITH_LEDGER = {name: case for name, case in CASES.items() if case.has_ledger}
TABLES = ("prompt_tuning", "p_tuning", "prefix_tuning")


@pytest.fixture
def measured_config(method_config, method_world):
    def make(case: Case, **changes: Any):
        return method_config(case, data__train__path=str(method_world / "more.jsonl"), **(MEASURED | changes))

    return make


@pytest.mark.parametrize("case", WITH_LEDGER.values(), ids=WITH_LEDGER)
def test_the_account_closes_and_norms_are_recorded(case: Case, measured_config, tmp_path):
    """With a small learning rate the modules' entries add up to the measured drop of the guide loss."""
    small = case.learning_rate / (500 if case.method in TABLES else 20)
    config = measured_config(case, train__learning_rate=small)
    run = train(config, tmp_path / "run")
    account = run.record["ledger"]
    path = account["guide_loss_path"]
    assert path > 1e-5 and abs(account["modules_residual"]) <= 0.02 * path
    assert {row["steps_seen"] for row in run.values} == {6}
    norms = read_table(run.folder, "norms").to_pylist()
    assert norms and all(row["norm"] >= 0 for row in norms)
    assert not [row["module"] for row in norms if row["module"].startswith(("base_model.", "model.model."))]
    if case.method in TABLES:
        assert not (run.folder.tables / "effective.parquet").exists()
        assert {row["factor"] for row in norms} == {"prompt"}
    else:
        effective = read_table(run.folder, "effective").to_pylist()
        assert {row["step"] for row in effective} == {1, 4} and all(row["effective_norm"] >= 0 for row in effective)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients_of_rows_can_be_stored_wherever_there_is_a_ledger(case: Case, method_config, tmp_path):
    """At the run's checkpoint, as one backward per row gives them; else refused by name."""
    run = train(method_config(case), tmp_path / "run")
    if not case.has_ledger:
        with pytest.raises(InputError, match=r"gradients of single rows are not known for .*q_proj.* and 13 more"):
            index(run.path, device="cpu")
        return
    (indexed,) = index(run.path, device="cpu")
    store = GradientStore.read_sealed(indexed.folder)
    assert len(store) == 4 and indexed.exact
    opened = OpenedRun(run.path, "cpu")
    model, row = opened.at(indexed.step).eval(), opened.train.features[0]
    named = dict(sorted(opened.parameters.items()))
    loss = opened.task.example_loss(model, opened.prepared.collator([row])).sum()
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    expected = torch.cat([gradient.flatten() for gradient in gradients])
    found = store.rows([row.example_id])[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


WITHOUT_LEDGER = {name: case for name, case in CASES.items() if not case.has_ledger}


@pytest.mark.parametrize("case", WITHOUT_LEDGER.values(), ids=WITHOUT_LEDGER)
def test_a_ledger_that_is_not_known_is_refused_by_name(case: Case, measured_config, tmp_path):
    with pytest.raises(ConfigError, match=rf"with method {case.method}: .*q_proj.* Set measure\.ledger: null"):
        train(measured_config(case), tmp_path / "run")
    changes: dict[str, Any] = {"measure__ledger": None, "data__guide__rows": None}
    by_norm = changes | {"data__online_selection__by": "gradient_norm"}
    with pytest.raises(ConfigError, match=rf"with method {case.method}: .*q_proj.* Set data\.online_selection: null"):
        train(measured_config(case, **by_norm), tmp_path / "run")
    run = train(measured_config(case, **changes), tmp_path / "run")
    assert {row["step"] for row in read_table(run.folder, "norms").to_pylist()} == {1, 3, 5}
    assert {row["step"] for row in read_table(run.folder, "effective").to_pylist()} == {1, 4}


class Recorded:
    """A table that keeps what is appended."""

    def append(self, step: int, columns: dict[str, list[Any]]) -> None:
        self.columns = columns


@pytest.mark.parametrize("name", ["lora", "dora-orthogonal", "ia3", "pissa", "oft", "vera", "adalora", "loha", "lokr"])
def test_effective_norms_are_those_of_the_wrapped_module(name: str, method_config):
    """Against Σ_t ∂L/∂y_t x_tᵀ from hooks on the adapter's module, with every adapter parameter away from its start."""
    from ghosttune.models.loading import add_adapter, load_model

    config = method_config(CASES[name])
    model = add_adapter(load_model(config.model, 0), config.method, 0).train()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    wrapped = model.get_base_model().model.layers[1].mlp.down_proj
    seen: dict[str, torch.Tensor] = {}
    wrapped.register_forward_hook(
        lambda module, inputs, output: (
            seen.update(x=inputs[0].detach()),
            output.register_hook(lambda grad: seen.update(y=grad)),
            None,
        )[-1]
    )
    key = next(k for k, p in model.named_parameters() if p.requires_grad and "layers.1.mlp.down_proj" in k)
    facts = {key: ParameterFacts(key, "model.layers.1.mlp.down_proj", 1, "mlp", "A")}
    table = Recorded()
    norms = EffectiveNorms(model, facts, table, 1)  # type: ignore[arg-type]
    ids = torch.randint(5, 300, (3, 7))
    norms.before_step(1)
    with norms.observing(MicroBatch(["a", "b", "c"])):
        model(input_ids=ids, labels=ids).loss.backward()
    norms.after_backward(type("Gradient", (), {"step": 1, "norms": {}})())
    expected = torch.einsum("bto,bti->oi", seen["y"], seen["x"]).norm()
    assert table.columns["effective_norm"] == [pytest.approx(float(expected), rel=1e-4)]
