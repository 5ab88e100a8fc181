"""Frozen means bit-identical: which tensors move in which update, with every optimizer, and how a run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from ghosttune import train
from ghosttune.errors import ConfigError, InputError
from ghosttune.proving.freezing import PLANS, RUN, Loop, cut_back, differences, strategy
from ghosttune.proving.reference import counting_rows, keeping_trainer, small_llama
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import read_table
from ghosttune.schedules.phases import scheduled
from ghosttune.training.attaching import attach
from ghosttune.training.phasing import let_the_backward_stop, spans
from ghosttune.workflows.train import resume

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*")


def test_lisa_trains_the_layers_it_drew():
    loop = Loop(strategy("lisa", 12, layers=1, period=2))
    seen = set()
    for step in range(1, 13):
        moved = loop.update(step)
        layers = {loop.phasing.facts[name].layer for name in moved}
        assert len(layers) == 1
        seen |= layers
    assert seen == {0, 1}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_backward_stops_below_the_lowest_active_layer(checkpointing):
    loop = Loop(scheduled("late@0-", 4, "keep"))
    if checkpointing:
        loop.model.activation_checkpointing_enable({"use_reentrant": False})
        loop.model.train()
        let_the_backward_stop(loop.model)
    loop.phasing.enter(1)
    reached: dict[int, bool] = {}
    for number, layer in enumerate(loop.model.get_base_model().model.layers):
        layer.register_forward_hook(lambda m, i, output, number=number: reached.update({number: output.requires_grad}))
    ids = torch.tensor([[1, 2, 3]])
    loop.model(input_ids=ids, labels=ids).loss.backward()
    assert reached == {0: False, 1: True}
    assert all((p.grad is not None) == ("layers.1." in name) for name, p in loop.phasing.parameters.items())


def test_an_optimizer_that_lacks_a_later_phase_is_refused():
    loop = Loop(strategy("early->late", 4))
    loop.phasing.enter(1)
    active = [p for p in loop.model.parameters() if p.requires_grad]

    class Arguments:
        get_warmup_steps = staticmethod(lambda steps: 0)

    class State:
        global_step, max_steps = 0, 4

    with pytest.raises(InputError, match="built without 14 tensors that later phases train"):
        loop.phasing.on_train_begin(Arguments(), State(), None, torch.optim.AdamW(active), None)


# --- what becomes of the optimizer's state of tensors that enter again ---


@pytest.mark.parametrize("entry", ["keep", "reset", "rewarm 2"])
def test_the_update_after_a_freeze_equals_the_reference(entry):
    """AdamW by hand, one tensor: with the moments from before the freeze, or as if it were its first update."""
    loop = Loop(strategy("both->mlp->both", 9, optimizer_state=entry))
    name = next(name for name in loop.phasing.parameters if "q_proj.lora_B" in name)
    for step in range(1, 7):
        loop.update(step)
    kept = loop.moments()[name]
    before = loop.weights()[name]
    loop.update(7)
    gradient = loop.phasing.parameters[name].grad
    assert gradient is not None and float(kept["step"]) == 3
    first, second, step = (kept["exp_avg"], kept["exp_avg_sq"], 4) if entry == "keep" else (0.0, 0.0, 1)
    first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
    change = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)) ** 0.5 + 1e-8)
    torch.testing.assert_close(loop.weights()[name], before * (1 - 1e-3) - 1e-2 * change, rtol=1e-6, atol=1e-9)
    mlp = next(name for name in loop.phasing.parameters if "up_proj.lora_B" in name)
    assert float(loop.moments()[mlp]["step"]) == 7, "what trained all along keeps its state"


def test_nothing_of_the_state_changes_while_a_tensor_is_frozen():
    loop = Loop(strategy("both->mlp->both", 9))
    for step in range(1, 4):
        loop.update(step)
    before = {name: state for name, state in loop.moments().items() if "q_proj" in name}
    for step in range(4, 7):
        loop.update(step)
    after = loop.moments()
    assert before and all(
        torch.equal(after[n][key], value) for n, state in before.items() for key, value in state.items()
    )


# --- in a Trainer ---


class Weights(TrainerCallback):
    """The trained tensors after each update, and the learning rate with which it was made."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []
        self.rates: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.named = {name: p for name, p in model.named_parameters() if "lora" in name}
        self.after.append({name: p.detach().clone() for name, p in self.named.items()})

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self.after.append({name: p.detach().clone() for name, p in self.named.items()})
        self.rates.append(optimizer.param_groups[0]["lr"])

    def moved(self, step: int) -> set[str]:
        one, two = self.after[step - 1], self.after[step]
        return {name for name in one if not torch.equal(one[name], two[name])}


PLAN = "both@0-4 > late mlp@4-8 lr 0.5 > attention@8- rewarm 2"


def attached(folder: Path, plan: str | None, **options: Any) -> tuple[Any, Weights]:
    weights = Weights()
    trainer = keeping_trainer(folder, small_llama(), max_grad_norm=1.0, **options)
    trainer.add_callback(weights)  # before the phases, which make ready for the next update
    attach(trainer, folder / "measured", counting_rows(12, 2), guide_every=3, effective_every=None, phases=plan)
    trainer.train()
    return trainer, weights


@pytest.fixture(scope="module")
def phased(tmp_path_factory) -> Iterator[tuple[Path, Weights, Any]]:
    folder = tmp_path_factory.mktemp("phased")
    trainer, weights = attached(folder, PLAN)
    yield folder / "measured", weights, trainer


def test_a_trainer_of_your_own_follows_the_plan(phased):
    _, weights, _ = phased
    q, late = "q_proj.", "layers.1."
    assert all(any(q in name for name in weights.moved(step)) for step in (2, 3, 4))
    for step in range(5, 9):
        assert weights.moved(step) and all(late in n and "mlp" in n for n in weights.moved(step)), step
    for step in range(9, 13):
        assert weights.moved(step) and all("self_attn" in name for name in weights.moved(step)), step


def test_each_phase_has_the_learning_rate_it_asked_for(phased, tmp_path):
    _, plain = attached(tmp_path, None)
    _, weights, _ = phased
    factors = [1.0] * 4 + [0.5] * 4 + [0.5, 1.0, 1.0, 1.0]  # attention enters again: over two updates
    assert weights.rates == pytest.approx([rate * f for rate, f in zip(plain.rates, factors, strict=True)])


def test_the_ledger_follows_the_phases(phased):
    folder, _, _ = phased
    windows = read_table(RunDir(folder), "module_steps").to_pydict()
    assert sorted(set(windows["step"])) == [3, 4, 7, 8, 11, 12], "every 3 updates, and where a phase ends"
    for step, module, drop in zip(windows["step"], windows["module"], windows["guide_loss_drop"], strict=True):
        moves = step <= 4 or ("self_attn" in module if step > 8 else "mlp" in module and "layers.1" in module)
        assert (drop != 0) == moves, (step, module)
    account = json.loads((folder / "ledger.json").read_text())
    assert abs(account["modules_residual"]) <= 0.05 * account["guide_loss_path"]
    rows = read_table(RunDir(folder), "ledger").to_pydict()
    places = {
        (step, group, layer) for step, group, layer in zip(rows["step"], rows["group"], rows["layer"], strict=True)
    }
    assert {(group, layer) for step, group, layer in places if step == 6} == {("mlp", 1)}
    assert {(group, layer) for step, group, layer in places if step == 10} == {("attention", 0), ("attention", 1)}


def test_norms_of_what_is_frozen_are_null_and_its_columns_stay_in_place(phased):
    folder, _, _ = phased
    norms = read_table(RunDir(folder), "norms").to_pydict()
    for step, group, layer, norm, state in zip(
        *(norms[name] for name in ("step", "group", "layer", "norm", "state")), strict=True
    ):
        active = step <= 4 or (group == "attention" if step > 8 else group == "mlp" and layer == 1)
        assert (norm is None, state) == (not active, "active" if active else "frozen"), (step, group, layer)
    header, *lines = (folder / "gradient_analysis.layer_norms.csv").read_text().splitlines()
    assert header == "step,layer_0_attention,layer_0_mlp,layer_1_attention,layer_1_mlp"
    filled = {int(line.split(",")[0]): [bool(cell) for cell in line.split(",")[1:]] for line in lines}
    assert filled[2] == [True] * 4 and filled[6] == [False, False, False, True]
    assert filled[10] == [True, False, True, False]


@pytest.mark.parametrize("plan", ["both@0-300", "mpl@0-"])
def test_attached_phases_are_refused_like_any(tmp_path, plan):
    trainer = keeping_trainer(tmp_path, small_llama())
    with pytest.raises(ValueError, match=r"outside the run's 12 updates|means none of the trained tensors"):
        attach(trainer, tmp_path / "measured", phases=plan)


def test_in_a_trainer_too_the_backward_stops_and_reentrant_checkpointing_is_refused(tmp_path):
    reached: dict[int, bool] = {}

    def note(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        if output.grad_fn is not None or not torch.is_grad_enabled() or layer.training:
            reached[layer.self_attn.layer_idx] = output.requires_grad  # type: ignore[union-attr]

    trainer = keeping_trainer(tmp_path, small_llama(), max_steps=2, activation_checkpointing=True)
    attach(trainer, tmp_path / "measured", effective_every=None, phases="late@0-")
    for layer in trainer.model.get_base_model().model.layers:
        layer.register_forward_hook(note)
    trainer.train()
    assert reached == {0: False, 1: True}
    options = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = keeping_trainer(tmp_path, small_llama(), **options)
    attach(trainer, tmp_path / "again", effective_every=None, phases="late@0-")
    with pytest.raises(InputError, match="non-reentrant"):
        trainer.train()


def test_a_scheduler_that_is_no_curve_is_refused(tmp_path):
    trainer = keeping_trainer(tmp_path, small_llama())
    trainer.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(trainer.create_optimizer())
    attach(trainer, tmp_path / "measured", phases="both@0-6 > mlp@6-")
    with pytest.raises(InputError, match="not on a ConstantLR"):
        trainer.train()


# --- in a run ---


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        pytest.param("plan", (3, 4, 5, 7, 9), marks=pytest.mark.slow),
        pytest.param("guided", (3, 4, 5, 8), marks=pytest.mark.slow),
        pytest.param("lisa", (3, 4, 5), marks=pytest.mark.slow),
    ],
)
def test_resumed_at_a_boundary_and_beside_it_is_bit_identical(make_config, tmp_path, kind, steps):
    """Each boundary and ±1 step: the run is cut back to that checkpoint and continued."""
    whole = train(make_config(**RUN, phases=PLANS[kind]), tmp_path / "whole").folder
    for step in steps:
        cut = tmp_path / f"cut-{step}"
        cut_back(whole, cut, step)
        resume(cut)
        assert differences(whole.path, cut) == []


def test_a_run_says_what_each_phase_did(make_config, tmp_path):
    run = train(make_config(**RUN, phases=PLANS["plan"]), tmp_path / "run")
    header, *lines = run.folder.export("phases").read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    assert [row["trains"] for row in rows] == ["both", "mlp", "both"]
    assert [(row["start"], row["end"]) for row in rows] == [("0", "4"), ("4", "8"), ("8", "12")]
    events = [event for event in run.folder.events() if event["event"] == "phase"]
    assert [(event["step"], event["trains"]) for event in events] == [(0, "both"), (4, "mlp"), (8, "both")]
    assert run.record["phases"]["last"] == 3 and run.record["phases"]["best"] in (1, 2, 3)
    size = run.record["model"]["trainable_parameters"]
    assert int(rows[0]["trainable_parameters"]) == sum(size.values())
    assert int(rows[1]["parameter_steps"]) == 4 * size["mlp"]
    drops = [float(row["guide_loss_drop"]) for row in rows]
    assert sum(drops) == pytest.approx(run.record["ledger"]["modules"])
    consumed = read_table(run.folder, "ledger", ["step", "example_id"]).to_pydict()
    tokens = {row["example_id"]: row["tokens"] for row in run.values}
    seen = {(step, name) for step, name in zip(consumed["step"], consumed["example_id"], strict=True)}
    for row in rows:
        inside = [tokens[name] for step, name in seen if int(row["start"]) < step <= int(row["end"])]
        assert int(row["tokens"]) == sum(inside)


def test_adapters_hold_what_the_phases_left(make_config, tmp_path):
    """Attention is frozen in the last phase: it stays, in the last adapter, as the checkpoint before left it."""
    run = train(make_config(**RUN, phases="both@0-4 > mlp@4-"), tmp_path / "run").folder
    at_four = load_file(run.checkpoint(4) / "adapter_model.safetensors")
    last = load_file(run.last / "adapter_model.safetensors")
    same = {name for name in last if torch.equal(last[name], at_four[name])}
    assert same == {name for name in last if "self_attn" in name}


def test_equal_mass_in_a_run(make_config, tmp_path):
    phases = {"strategy": "both->mlp->attn", "learning_rate_mass": "equal", "optimizer_state": "keep"}
    run = train(make_config(**RUN, phases=phases), tmp_path / "run").folder
    header, *lines = run.export("phases").read_text().splitlines()
    masses = [float(line.split(",")[header.split(",").index("lr_mass")]) for line in lines]
    assert masses == pytest.approx([masses[0]] * 3)


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ("attention@0-6 > mlp@6-", "mlp means none of the trained tensors"),
        ("both@0-3 > top 3@3-", "the model has 2 layers"),
        ("lora_A@0-3 > both@3-", "lora_A alone"),
    ],
)
def test_a_run_whose_adapter_lacks_the_groups_is_refused_with_the_plan(make_config, tmp_path, phases, said):
    targets = "attention" if "means none" in said else "all_linear"
    with pytest.raises(ConfigError, match=said) as error:
        train(make_config(**{**RUN, "method__target_modules": targets}, phases=phases), tmp_path / "run")
    assert phases in str(error.value) and "^" in str(error.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_layers_are_said_in_ranges():
    assert spans([3, 0, 1, None, 2, 7]) == "0-3 7" and spans([]) == ""
