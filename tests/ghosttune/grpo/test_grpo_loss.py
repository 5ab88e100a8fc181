"""The loss of drawn answers: against sums written out token by token in float64, and against TRL."""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_llama import small_adapted_llama
from torch import Tensor

from ghosttune.data.encoding import Collator, Features
from ghosttune.registry import TASKS
from ghosttune.tasks.policy import POLICY_LOSSES, advantages
from ghosttune.training.rollouts import Completion, Rollouts

# PEFT 0.21 asks Transformers 5.23 by a name that Transformers is about to drop
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

VOCABULARY, MOST = 23, 9
LENGTHS = [(4, (3, 9, 1)), (2, (5, 5, 2))]
REWARDS = [[1.0, 0.0, 0.5], [0.0, 2.0, 2.0]]


@pytest.fixture
def adapted() -> Any:
    return small_adapted_llama(VOCABULARY)


def task_of(**settings: Any) -> Any:
    entry = TASKS["grpo"]
    return entry.build(entry.settings(completions=3, max_new_tokens=MOST, **settings))


def groups_of(loss: str, off: bool) -> list[list[Completion]]:
    """Two prompts of three answers; `off`, with log-probabilities near those of another policy."""
    random, noise = np.random.default_rng(1), torch.Generator().manual_seed(1)
    worth = advantages(torch.tensor(REWARDS, dtype=torch.float64), POLICY_LOSSES[loss].scaled)
    found = []
    for (prompt, answers), own in zip(LENGTHS, worth.tolist(), strict=True):
        asked = random.integers(3, VOCABULARY, prompt)
        said = [np.r_[asked, random.integers(3, VOCABULARY, length)].astype(np.int32) for length in answers]
        around = [-3.1 + 0.4 * torch.randn(length, dtype=torch.float64, generator=noise) for length in answers]
        kept = around if off else [None] * 3
        found.append([Completion(*one) for one in zip(said, answers, own, kept, strict=True)])
    return found


def with_base(model: Any, groups: list[list[Completion]], temperature: float) -> list[list[Completion]]:
    with torch.no_grad(), model.disable_adapter():
        return [
            [Completion(**vars(one) | {"base": torch.stack(spoken(model, one, temperature))}) for one in group]
            for group in groups
        ]


def batch_of(groups: list[list[Completion]]) -> dict[str, Tensor]:
    rollouts = Rollouts.__new__(Rollouts)
    rollouts.settings, rollouts.pad_token_id = SimpleNamespace(completions=3), 0  # type: ignore[assignment]
    rollouts.positions, rollouts.groups = [7, 5], groups
    return rollouts._batch(range(2))


def spoken(model: Any, one: Completion, temperature: float) -> list[Tensor]:
    """The log-probability of each token of an answer; one sequence, no padding."""
    logits = model(input_ids=torch.tensor(one.ids[None], dtype=torch.long)).logits[0] / temperature
    start = len(one.ids) - one.tokens
    return [logits[t - 1].log_softmax(-1)[int(one.ids[t])] for t in range(start, len(one.ids))]


def written_out(model: Any, group: list[Completion], s: Any) -> Tensor:
    """The sum of the losses of the answers to one prompt, as DeepSeekMath, and Liu et al., have it."""
    total = torch.zeros((), dtype=torch.float64)
    for one in group:
        tokens = []
        for place, logp in enumerate(spoken(model, one, s.temperature)):
            before = logp.detach() if one.drawn is None else one.drawn[place]
            ratio = torch.exp(logp - before)
            bounded = min(max(float(ratio.detach()), 1 - s.epsilon), 1 + s.epsilon)
            worth = ratio * one.advantage
            loss = (
                -worth
                if float(worth.detach()) <= bounded * one.advantage
                else -torch.tensor(bounded * one.advantage, dtype=logp.dtype)
            )
            if s.beta:
                assert one.base is not None
                further = one.base[place] - logp
                loss = loss + s.beta * (torch.exp(further) - further - 1)
            tokens.append(loss)
        total = total + sum(tokens) / (one.tokens if s.loss == "grpo" else s.max_new_tokens)
    return total


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


CASES = [
    ({"loss": "grpo"}, False),
    ({"loss": "grpo", "temperature": 0.7, "updates": 2, "epsilon": 0.1}, True),
    ({"loss": "grpo", "beta": 0.3}, False),
    ({"loss": "dr_grpo", "temperature": 1.3, "updates": 2, "beta": 0.1}, True),
]


@pytest.mark.parametrize(("settings", "off"), CASES)
def test_losses_and_gradients_are_those_written_out(settings, off, adapted) -> None:
    own = task_of(**settings)
    groups = with_base(adapted, groups_of(own.settings.loss, off), own.settings.temperature)
    found = own.example_loss(adapted, batch_of(groups))
    expected = torch.stack([written_out(adapted, group, own.settings) for group in groups])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for one, other in zip(gradients(adapted, found @ weights), gradients(adapted, expected @ weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_advantages_are_of_the_group() -> None:
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    for row, own in zip(rewards.tolist(), advantages(rewards, True).tolist(), strict=True):
        mean = sum(row) / 3
        deviation = (sum((reward - mean) ** 2 for reward in row) / 2) ** 0.5
        assert own == pytest.approx([(reward - mean) / (deviation + 1e-4) for reward in row], abs=1e-12)
    assert advantages(torch.ones(1, 4), True).tolist() == [[0.0] * 4]


def test_the_ratio_is_clipped_and_the_test_sees_it(adapted) -> None:
    """Otherwise the cases above would say nothing of it."""
    batch = batch_of(groups_of("grpo", True))
    tight, loose = (task_of(updates=2, epsilon=one).example_loss(adapted, batch) for one in (0.1, 0.9))
    assert (tight - loose).abs().min() > 1e-3


def test_rows_with_an_answer_have_the_loss_of_causal_lm(adapted) -> None:
    """Dev and guide rows: what the ledger's guide gradient is of."""
    ids = np.arange(3, 10, dtype=np.int32)
    batch = Collator(0)([Features(0, "a", ids, ids > 5), Features(1, "b", ids[:4], ids[:4] > 4)])
    own, other = (TASKS[name].build(TASKS[name].settings()) for name in ("grpo", "causal_lm"))
    assert own.example_loss(adapted, batch).tolist() == other.example_loss(adapted, batch).tolist()
    assert own.sequences(batch) == (None, ())


# --- TRL, where it is installed (extra `bench`) ---


def trl_loss(model: Any, groups: list[list[Completion]], s: Any) -> Tensor:
    """The loss of TRL's trainer on these answers, its own log-probabilities and advantages included."""
    module = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is not installed (extra `bench`)")
    every = [one for group in groups for one in group]
    asked, written = (max(length) for length in zip(*((len(o.ids) - o.tokens, o.tokens) for o in every), strict=True))
    inputs = {
        name: torch.zeros(len(every), width, dtype=torch.long)
        for name, width in (
            ("prompt_ids", asked),
            ("prompt_mask", asked),
            ("completion_ids", written),
            ("completion_mask", written),
        )
    }
    for row, one in enumerate(every):
        prompt = torch.from_numpy(one.ids[: -one.tokens].astype(np.int64))
        inputs["prompt_ids"][row, asked - len(prompt) :] = prompt
        inputs["prompt_mask"][row, asked - len(prompt) :] = 1
        inputs["completion_ids"][row, : one.tokens] = torch.from_numpy(one.ids[-one.tokens :].astype(np.int64))
        inputs["completion_mask"][row, : one.tokens] = 1
    rewards = torch.tensor(REWARDS, dtype=torch.float64).flatten()
    mean = rewards.view(-1, 3).mean(1).repeat_interleave(3)
    inputs["advantages"] = rewards - mean
    if s.loss == "grpo":
        deviation = module.nanstd(rewards.view(-1, 3), dim=1).repeat_interleave(3)
        inputs["advantages"] = inputs["advantages"] / (deviation + 1e-4)
    for theirs, ours in (("old_per_token_logps", "drawn"), ("ref_per_token_logps", "base")):
        if getattr(every[0], ours) is not None:
            inputs[theirs] = torch.zeros(len(every), written, dtype=torch.float64)
            for row, one in enumerate(every):
                inputs[theirs][row, : one.tokens] = getattr(one, ours)

    class Spoken:
        """The model as TRL calls it, with its fused output layer written out."""

        training = True

        def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> Any:
            positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
            found = model(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions).logits
            logps = (found / s.temperature).log_softmax(-1)[:, :-1].gather(2, input_ids[:, 1:, None])[..., 0]
            logps = logps * (labels[:, 1:] != -100)
            return SimpleNamespace(log_probs=logps, entropy=torch.zeros_like(logps), aux_loss=None)

    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, autocast=nullcontext, num_processes=1, is_main_process=False,
        pad_across_processes=lambda x, **_: x, reduce=lambda x, **_: x,
    )  # fmt: skip
    arguments = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    trainer = module.GRPOTrainer.__new__(module.GRPOTrainer)
    trainer.__dict__ |= {
        "model": Spoken(), "accelerator": accelerator, "args": arguments, "beta": s.beta, "loss_type": s.loss,
        "epsilon_low": s.epsilon, "epsilon_high": s.epsilon, "importance_sampling_level": "token",
        "max_completion_length": s.max_new_tokens, "top_entropy_quantile": 1.0, "aux_loss_enabled": False,
        "off_policy_mask_threshold": None, "use_vllm": False, "current_gradient_accumulation_steps": 1,
        "_entropy_bonus_enabled": False, "_metrics": {"train": defaultdict(list)}, "use_adaptive_entropy": False,
    }  # fmt: skip
    return trainer._compute_loss(trainer.model, inputs)


@pytest.mark.parametrize(("settings", "off"), CASES)
def test_trl_has_the_same_loss_and_gradients(settings, off, adapted) -> None:
    own = task_of(**settings)
    groups = with_base(adapted, groups_of(own.settings.loss, off), own.settings.temperature)
    theirs = trl_loss(adapted, groups, own.settings)
    ours = own.example_loss(adapted, batch_of(groups)).sum() / 6
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-10)
    for one, other in zip(gradients(adapted, ours), gradients(adapted, theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
