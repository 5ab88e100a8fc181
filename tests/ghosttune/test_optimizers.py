"""Optimizers by name: each is the one it says, against loops written out; and what cannot be with it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from interrupting import interrupt_at
from safetensors.torch import load_file
from transformers import Adafactor

from ghosttune import train
from ghosttune.choosing.attribute import attribute
from ghosttune.config.loading import load_config
from ghosttune.config.sections.train import ADAMW, Optim
from ghosttune.errors import ConfigError, RunError
from ghosttune.proving.freezing import differences
from ghosttune.stages.model import adapted_model
from ghosttune.stages.prepare import prepare
from ghosttune.training import optimizers
from ghosttune.training.memory import Sizes, plan_of, predicted
from ghosttune.training.optimizers import OPTIMIZERS
from ghosttune.training.order import MicroBatches, RowOrder
from ghosttune.workflows.check import check
from ghosttune.workflows.train import Stopped, resume

RATE, DECAY, STEPS = 1e-2, 0.1, 5


class Plain(torch.optim.Optimizer):
    """w − rate · (g + decay · w)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight -= RATE * (weight.grad + DECAY * weight)


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, arXiv 2302.06675, algorithm 2."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                towards = 0.9 * momentum + 0.1 * weight.grad
                weight -= RATE * (towards.sign() + DECAY * weight)
                momentum.mul_(0.99).add_(weight.grad, alpha=0.01)


class Muon(torch.optim.Optimizer):
    """Jordan et al. 2024 with Nesterov's momentum, and steps as long as AdamW's (Liu et al. 2025, arXiv 2502.16982)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.copy_(0.95 * momentum + 0.05 * weight.grad)
                towards = 0.05 * weight.grad + 0.95 * momentum
                length = 0.2 * max(weight.shape) ** 0.5
                weight -= RATE * (DECAY * weight + length * self.orthogonal(towards))

    def orthogonal(self, matrix: torch.Tensor) -> torch.Tensor:
        """U Vᵀ of the matrix, nearly: five steps of Newton and Schulz in bfloat16."""
        wide = matrix.shape[0] <= matrix.shape[1]
        found = (matrix if wide else matrix.T).bfloat16()
        found = found / found.norm().clamp(min=1e-7)
        for _ in range(5):
            square = found @ found.T
            factor = torch.addmm(square, square, square, beta=-4.775, alpha=2.0315)  # rounds once, as torch's does
            found = torch.addmm(found, factor, found, beta=3.4445)
        return (found if wide else found.T).float()


class ScheduleFree(torch.optim.Optimizer):
    """Defazio et al. 2024, arXiv 2405.15682, algorithm 1: gradients at y, steps of z, and their average x."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for y in group["params"]:
                state = self.state[y]
                if not state:
                    state |= {"t": 0, "x": y.clone(), "z": y.clone(), "v": torch.zeros_like(y)}
                state["t"] += 1
                state["v"] = 0.999 * state["v"] + 0.001 * y.grad**2
                step = y.grad / ((state["v"] / (1 - 0.999 ** state["t"])).sqrt() + 1e-8)
                state["z"] = state["z"] - RATE * (step + DECAY * y)
                state["x"] = (1 - 1 / state["t"]) * state["x"] + state["z"] / state["t"]
                y.copy_(0.1 * state["z"] + 0.9 * state["x"])

    @torch.no_grad()
    def eval(self) -> None:
        for weight, state in self.state.items():
            weight.copy_(state["x"])


def in_8_bit(parameters: Any) -> torch.optim.Optimizer:
    from bitsandbytes.optim.adamw import AdamW8bit

    return AdamW8bit(parameters, RATE, weight_decay=DECAY)


REFERENCES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw_torch": lambda own: torch.optim.AdamW(own, RATE, weight_decay=DECAY, foreach=False),
    "adamw_torch_fused": lambda own: torch.optim.AdamW(own, RATE, weight_decay=DECAY, foreach=False),
    "adamw_8bit": in_8_bit,
    "lion_32bit": lambda own: Lion(own, {}),
    "adafactor": lambda own: Adafactor(own, RATE, weight_decay=DECAY, scale_parameter=False, relative_step=False),
    "muon": lambda own: Muon(own, {}),
    "schedule_free_adamw": lambda own: ScheduleFree(own, {}),
    "sgd": lambda own: Plain(own, {}),
}

NEEDS = {"schedule_free_adamw": "schedulefree"}
"""What is not installed with ghosttune."""


@pytest.fixture
def configured(make_config):
    def config(name: str, **changes: Any) -> Any:
        settings = {
            "train__optim": name,
            "train__max_steps": STEPS,
            "train__learning_rate": RATE,
            "train__weight_decay": DECAY,
            "train__lr_scheduler_type": "constant",
            "train__warmup_steps": 0,
            "train__save_steps": 2,
            **({"train__adam_beta2": 0.99} if name.startswith("lion") else {}),
        }
        return make_config(**settings | changes)

    return config


def test_what_is_known_is_what_can_be_chosen():
    assert set(OPTIMIZERS) == set(get_args(Optim)) >= set(ADAMW)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_run_ends_with_the_weights_of_a_loop_written_out(configured, tmp_path, name):
    """States of fewer than 4,096 numbers are never in 8 bits: the adapter has some of 16 by 300. Muon computes in
    bfloat16, which of a gradient with less rank than the adapter makes a step of chance."""
    pytest.importorskip(NEEDS.get(name, "torch"))
    config = configured(name, method__r=4 if name == "muon" else 300)
    train(config, tmp_path / "run")
    prepared = prepare(config)
    model, task = adapted_model(prepared).model, prepared.task
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert name != "adamw_8bit" or max(parameter.numel() for parameter in own) >= 4096
    optimizer, features = REFERENCES[name](own), prepared.train.features
    order = RowOrder.of_run(features, config.train, prepared.draws)
    steps = MicroBatches(order, config.train.per_device_train_batch_size).steps()
    model.train()
    for _, rows in zip(range(STEPS), steps, strict=False):
        batch = prepared.collator([features[row] for row in rows])
        loss = task.example_loss(model, batch).sum() / sum(features[row].targets for row in rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own, config.train.max_grad_norm)
        optimizer.step()
    if isinstance(optimizer, ScheduleFree):
        optimizer.eval()
    saved = load_file(str(tmp_path / "run" / "checkpoints" / f"step-{STEPS}" / "weights.safetensors"))
    found = {key: parameter.detach() for key, parameter in model.named_parameters() if parameter.requires_grad}
    torch.testing.assert_close(found, saved, rtol=1e-4, atol=2e-3 if name == "muon" else 1e-6)


@pytest.mark.parametrize("name", [name for name, kept in OPTIMIZERS.items() if not kept.paged and name not in ADAMW])
def test_an_interrupted_run_ends_in_the_same_bytes(configured, tmp_path, name):
    pytest.importorskip(NEEDS.get(name, "torch"))
    config, whole, parts = configured(name), tmp_path / "whole", tmp_path / "parts"
    train(config, whole)
    with pytest.raises(Stopped):
        train(config, parts, listen=interrupt_at(3))
    resume(parts)
    assert differences(whole, parts) == []


def test_what_cannot_be_with_an_optimizer_is_refused_at_once(configured, monkeypatch):
    with pytest.raises(ConfigError) as refusal:
        load_config(
            {
                "data": {"train": {"path": "builtin:rows"}},
                "train": {"optim": "adafactor", "adam_beta1": 0.8, "adam_epsilon": 1e-6},
                "measure": {"ledger": {"guide_every": 5}},
            }
        )
    said = {problem.setting: problem.message for problem in refusal.value.problems}
    assert said.keys() == {"measure.ledger.guide_every", "train.adam_beta1", "train.adam_epsilon"}
    assert "train.optim is adafactor; set it to null" in said["measure.ledger.guide_every"]
    (error,) = check(configured("paged_adamw_8bit")).errors
    assert "train.optim" in error and "use adamw_8bit" in error
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    (error,) = check(configured("adamw_8bit")).errors
    assert "pip install 'ghosttune[quant]'" in error


def test_what_an_optimizer_cannot_train_is_refused(configured, monkeypatch):
    (error,) = check(configured("muon", method__type="layernorm")).errors
    assert "train.optim" in error and "are none: " in error and "norm" in error
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    (error,) = check(configured("schedule_free_adamw")).errors
    assert "pip install 'ghosttune[schedulefree]'" in error
    with pytest.raises(ConfigError) as refusal:
        configured("schedule_free_adamw", train__lr_scheduler_type="cosine", phases="attention@0-3 > mlp@3-")
    assert {problem.setting for problem in refusal.value.problems} == {"train.lr_scheduler_type", "phases.strategy"}


def test_an_average_of_weights_answers_and_looking_at_it_changes_nothing(configured, tmp_path):
    pytest.importorskip("schedulefree")
    seldom, often = tmp_path / "seldom", tmp_path / "often"
    train(configured("schedule_free_adamw", train__eval_steps=STEPS, train__save_steps=STEPS), seldom)
    train(configured("schedule_free_adamw", train__eval_steps=1, train__save_steps=1), often)
    ends = [load_file(str(run / "checkpoints" / f"step-{STEPS}" / "weights.safetensors")) for run in (seldom, often)]
    torch.testing.assert_close(*ends, rtol=0, atol=0)
    events = [json.loads(line) for line in (often / "metrics.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "eval"]
    verdict = json.loads((often / "run.json").read_text())["verdict"]
    assert verdict["dev_loss"] == pytest.approx(min(losses), rel=1e-6)  # of the weights that were saved


def test_scores_by_moments_that_nothing_kept_are_refused(configured, tmp_path):
    train(configured("sgd"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
    with pytest.raises(RunError, match=r"train\.optim: sgd"):
        attribute(tmp_path / "run", by="adamw", prompt="Say 1", completion="one")


def test_smaller_states_need_less_memory(configured):
    """A gradient of 4 bytes, and AdamW's two moments of 4 bytes or of 1 each."""
    sizes = Sizes(linear=0, other=0, trained=10**6)
    plans = {name: plan_of(configured(name)) for name in ("adamw_torch_fused", "adamw_8bit", "sgd")}
    needed = {name: predicted(sizes, plan)["gradients and optimizer"] for name, plan in plans.items()}
    assert needed["adamw_torch_fused"] == 12e6 and needed["sgd"] == 4e6
    assert needed["adamw_8bit"] == pytest.approx((4 + 2 * (1 + 4 / 256)) * 1e6, rel=0.01)
