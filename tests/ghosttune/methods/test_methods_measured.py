"""Norms, effective norms and the ledger under every method; by rule, exactly, left out, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_cases import CASES, Case
from safetensors.torch import load_file

from ghostgrad.store import GradientStore
from ghostgrad.testing import compare
from ghosttune import train
from ghosttune.choosing.index import index
from ghosttune.choosing.opened import OpenedRun
from ghosttune.config.facts import ParameterFacts
from ghosttune.errors import ConfigError, InputError
from ghosttune.run.tables import read_table
from ghosttune.training.instruments import MicroBatch, StepGradient
from ghosttune.training.norms import EffectiveNorms
from ghosttune.workflows.check import check

MEASURED = {
    "measure__norms": {"every": 2, "effective": 3},
    "measure__ledger": {"guide_every": 1},
    "data__guide__rows": 2,
    "train__max_steps": 6,
    "train__eval_steps": 6,
}
TABLES = ("prompt_tuning", "p_tuning", "prefix_tuning")


@pytest.fixture
def measured_config(method_config, method_world):
    def make(case: Case, **changes: Any):
        return method_config(case, data__train__path=str(method_world / "more.jsonl"), **(MEASURED | changes))

    return make


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
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
def test_gradients_of_rows_can_be_stored(case: Case, method_config, tmp_path):
    """At the run's checkpoint, away from its start, as one backward per row gives them."""
    run = train(method_config(case, train__max_steps=6, train__eval_steps=6), tmp_path / "run")
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


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_of_rows_are_those_of_one_backward_per_row(case: Case, method_config):
    """In float64, with every parameter away from its start: every operation of the engine, to 1e-10."""
    from ghosttune.models.loading import add_adapter, load_model

    config = method_config(case)
    model = add_adapter(load_model(config.model, 0), config.method, 0).double().train()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    ids = torch.randint(5, 300, (3, 6))

    def losses(model: torch.nn.Module) -> torch.Tensor:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -6:].double()
        return torch.nn.functional.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none").sum(1)

    compare(model, losses, unsupported="raise" if case.has_rule else "exact")


WITHOUT_RULE = {name: case for name, case in CASES.items() if not case.has_rule}


@pytest.mark.parametrize("case", WITHOUT_RULE.values(), ids=WITHOUT_RULE)
def test_what_has_no_rule_is_counted_and_refused_where_that_is_asked_for(case: Case, measured_config, tmp_path):
    plan = check(measured_config(case)).plan["without_rule"]
    assert plan["rows_values"] == "exact" and plan["modules"] == 14 and plan["memory"].endswith(" MB")
    refused = {"measure__unsupported": "refuse"}
    by_norm = {"data__online_selection__by": "gradient_norm", "measure__ledger": None, "data__guide__rows": None}
    for changes, switch in ((refused, "measure.ledger"), (refused | by_norm, "data.online_selection")):
        report = check(measured_config(case, **changes))
        (problem,) = report.errors
        assert f"with method {case.method}: " in problem and "q_proj" in problem
        assert f"Set measure.unsupported: exact or leave_out, or {switch}: null" in problem
        with pytest.raises(ConfigError, match="gradients of single rows are not known"):
            train(measured_config(case, **changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_what_is_left_out_is_no_rows_and_stands_in_the_account(measured_config, tmp_path):
    """A mixture of layers with and without a rule would be the same: here none has one."""
    rates = {"train__learning_rate": 1e-3}
    case = CASES["lokr"]
    whole, parts = (
        train(measured_config(case, measure__unsupported=kind, **rates), tmp_path / kind)
        for kind in ("exact", "leave_out")
    )
    assert whole.record["without_rule"]["measured"] == "exactly" and "rows_left_out" not in whole.record["ledger"]
    account, noted = parts.record["ledger"], parts.record["without_rule"]
    assert noted["measured"] == "as a whole, not by row" and noted["tensors"] == len(noted["names"]) == 42
    assert account["rows"] == 0 and {row["value"] for row in parts.values} == {None}
    assert account["rows_left_out"] == pytest.approx(whole.record["ledger"]["rows"], rel=0.02)
    for name in ("modules", "weight_decay"):
        assert account[name] == pytest.approx(whole.record["ledger"][name], rel=1e-3, abs=1e-7), name
    with pytest.raises(InputError, match=r"all 42 trained tensors are without a rule .* measure\.unsupported: exact"):
        index(parts.path, device="cpu")


@pytest.mark.parametrize(("name", "setting"), [("vera", "vera_dropout"), ("lokr", "module_dropout")])
def test_layers_that_run_again_draw_the_same_and_leave_the_generator_as_it_was(
    name: str, setting: str, measured_config, tmp_path
):
    """With dropout, training is bit-identical where layers run again and where they are left out."""
    case = CASES[name]
    rolled = Case(name, {**case.settings, setting: 0.5}, case.learning_rate, has_rule=False)
    runs = [train(measured_config(rolled, measure__unsupported=k), tmp_path / k) for k in ("exact", "leave_out")]
    one, two = (load_file(str(run.folder.last / "adapter_model.safetensors")) for run in runs)
    assert all(torch.equal(one[key], two[key]) for key in one) and one.keys() == two.keys()


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
    norms.after_backward(StepGradient(1, {}, torch.zeros(()), None))
    expected = torch.einsum("bto,bti->oi", seen["y"], seen["x"]).norm()
    assert table.columns["effective_norm"] == [pytest.approx(float(expected), rel=1e-4)]
