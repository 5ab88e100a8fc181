"""Losses and gradients of preferences: against sums written out sequence by sequence, and against TRL."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

# PEFT 0.21 asks Transformers 5.23 by a name that Transformers is about to drop
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PAIRED = ["dpo", "ipo", "robust_dpo", "simpo", "orpo", "cpo"]
OTHER = {
    "dpo": {"beta": 0.7},
    "ipo": {"beta": 0.3},
    "robust_dpo": {"beta": 0.4, "label_smoothing": 0.3},
    "simpo": {"beta": 2.5, "simpo_gamma": 1.1, "cpo_alpha": 0.2},
    "orpo": {"beta": 0.6},
    "cpo": {"beta": 0.2, "cpo_alpha": 0.5},
    "kto": {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7},
}


def spoken(model: Any, ids: Any, trained: Any) -> tuple[Tensor, Tensor, int]:
    """(log-probability of the answer, of all tokens but the first, tokens of the answer); one sequence, no padding."""
    logits = model(input_ids=torch.tensor(ids[None], dtype=torch.long)).logits[0]
    each = [logits[t - 1].log_softmax(-1)[int(ids[t])] for t in range(1, len(ids))]
    return sum(one for one, own in zip(each, trained[1:], strict=True) if own), sum(each), int(trained.sum())  # type: ignore[return-value]


def written_out(model: Any, row: Any, loss: str, s: dict[str, float]) -> Tensor:
    """The loss of one pair, as its paper (and TRL) has it."""
    (c, all_c, n_c), (r, _, n_r) = (spoken(model, *sequence) for sequence in row.sequences())
    with torch.no_grad(), model.disable_adapter():
        base_c, base_r = (spoken(model, *sequence)[0] for sequence in row.sequences())
    beta = s["beta"]

    def minus_log_sigmoid(x: Tensor) -> Tensor:
        return torch.log(1 + torch.exp(-x))

    delta = beta * ((c - base_c) - (r - base_r))
    if loss == "dpo":
        return minus_log_sigmoid(delta)
    if loss == "ipo":
        return ((c - base_c) / n_c - (r - base_r) / n_r - 1 / (2 * beta)) ** 2
    if loss == "robust_dpo":
        e = s["label_smoothing"]
        return ((1 - e) * minus_log_sigmoid(delta) - e * minus_log_sigmoid(-delta)) / (1 - 2 * e)
    if loss == "simpo":
        return minus_log_sigmoid(beta * (c / n_c - r / n_r) - s["simpo_gamma"]) - s["cpo_alpha"] * c / n_c
    if loss == "cpo":
        return minus_log_sigmoid(beta * (c - r)) - s["cpo_alpha"] * c / n_c
    odds = [torch.log(torch.exp(x) / (1 - torch.exp(x))) for x in (c / n_c, r / n_r)]
    return -all_c / (sum(row.lengths[:1]) - 1) + beta * minus_log_sigmoid(odds[0] - odds[1])


def kto_written_out(model: Any, rows: list[Any], s: dict[str, float]) -> Tensor:
    said = [[spoken(model, *sequence)[0] for sequence in row.sequences()] for row in rows]
    with torch.no_grad(), model.disable_adapter():
        base = [[spoken(model, *sequence)[0] for sequence in row.sequences()] for row in rows]
    far = sum(float(own[-1].detach()) - float(ref[-1]) for own, ref in zip(said, base, strict=True)) / len(rows)
    far = max(0.0, far)
    losses = []
    for row, own, ref in zip(rows, said, base, strict=True):
        each = []
        for side, one, other in zip(row.sides[:-1], own, ref, strict=False):
            x = s["beta"] * (one - other - far)
            weight = s["desirable_weight"] if side == 0 else s["undesirable_weight"]
            each.append(weight * (1 - 1 / (1 + torch.exp(-x if side == 0 else x))))
        losses.append(sum(each) / len(each))
    return torch.stack(losses)


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


def assert_same(model: Any, found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.linspace(1, 2, len(found), dtype=found.dtype)
    pairs = zip(gradients(model, found @ weights), gradients(model, expected @ weights), strict=True)
    for own, other in pairs:
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("loss", PAIRED)
@pytest.mark.parametrize("chosen", ["default", "other"])
def test_losses_and_gradients_are_those_written_out(loss, chosen, adapted, task, pairs, collate) -> None:
    own = task(loss, **(OTHER[loss] if chosen == "other" else {}))
    settings = {name: getattr(own.settings, name) for name in OTHER[loss]}
    expected = torch.stack([written_out(adapted, row, loss, settings) for row in pairs])
    assert_same(adapted, own.example_loss(adapted, collate(pairs)), expected)


@pytest.mark.parametrize("sides", [[(0, 2), (1, 2), (1, 2), (0, 2)], [(0, 1, 2), (0, 2), (1, 2), (0, 1, 2)]])
def test_kto_of_single_answers_and_of_pairs(sides, adapted, task, rows, collate) -> None:
    own, features = task("kto", **OTHER["kto"]), rows(*sides)
    assert_same(adapted, own.example_loss(adapted, collate(features)), kto_written_out(adapted, features, OTHER["kto"]))


def test_the_reference_of_a_batch_is_used_and_is_the_base(adapted, task, pairs, collate) -> None:
    own, batch = task("dpo"), collate(pairs)
    frozen = next(p for p in adapted.parameters() if p.requires_grad)
    frozen.requires_grad_(False)
    adapted.train()
    reference = own.reference(adapted, batch)
    assert not frozen.requires_grad, "what a phase froze stays frozen"
    assert adapted.training
    expected = own.example_loss(adapted, batch)
    torch.testing.assert_close(own.example_loss(adapted, batch | {"reference": reference}), expected, rtol=0, atol=0)
    moved = own.example_loss(adapted, batch | {"reference": reference + torch.arange(8.0)})
    assert (moved - expected).abs().min() > 1e-3


# --- TRL, where it is installed (extra `bench`) ---


class Spoken:
    """A model as TRL's trainers call it, which says the log-probabilities of `model`."""

    def __init__(self, model: Any):
        self.model, self.training = model, False

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> Any:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1].log_softmax(-1)
        wanted = labels[:, 1:] != -100
        found = logits.gather(2, input_ids[:, 1:, None])[..., 0] * wanted
        return SimpleNamespace(log_probs=found, entropy=found, mean_logits=found, is_top1=wanted, aux_loss=None)


class Everything(dict):
    def __missing__(self, key: str) -> Any:
        self[key] = []
        return self[key]


def trl_trainer(model: Any, **settings: Any) -> Any:
    spoken = Spoken(model)
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
    )
    defaults = {
        "model": spoken,
        "ref_model": None,
        "accelerator": accelerator,
        "aux_loss_enabled": False,
        "ld_alpha": None,
        "precompute_ref_logps": True,
        "f_divergence_type": "reverse_kl",
        "loss_weights": [1.0],
        "use_weighting": False,
        "_metrics": {"train": Everything(), "eval": Everything()},
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "alpha": 0.0,
        "label_smoothing": 0.0,
    }
    return SimpleNamespace(**defaults | settings)


def trl_inputs(batch: dict[str, Tensor], reference: Tensor) -> dict[str, Tensor]:
    """Chosen answers first, then rejected ones."""
    order = torch.argsort(batch["side"], stable=True)
    inputs = {name: batch[name][order] for name in ("input_ids", "attention_mask")}
    inputs["completion_mask"] = (batch["labels"][order] != -100).long()
    inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = reference[order].chunk(2)
    return inputs


@pytest.mark.parametrize("loss", ["dpo", "ipo", "robust_dpo"])
def test_trl_has_the_same_loss_and_gradients(loss, adapted, task, pairs, collate) -> None:
    dpo = pytest.importorskip("trl.trainer.dpo_trainer")
    own, batch = task(loss, **OTHER[loss]), collate(pairs)
    name = {"dpo": "sigmoid", "ipo": "ipo", "robust_dpo": "robust"}[loss]
    trainer = trl_trainer(adapted, loss_types=[name], **OTHER[loss])
    inputs = trl_inputs(batch, own.reference(adapted, batch))
    theirs = dpo.DPOTrainer._compute_loss(trainer, trainer.model, inputs, False)
    ours = own.example_loss(adapted, batch).mean()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-10)
    for one, other in zip(gradients(adapted, ours), gradients(adapted, theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("loss", ["simpo", "cpo", "orpo"])
def test_trl_has_the_same_loss_without_a_base(loss, adapted, task, pairs, collate) -> None:
    """TRL divides the chosen answers' own loss by the tokens of a batch, so that a batch is one pair here."""
    kind = "orpo" if loss == "orpo" else "cpo"
    module = pytest.importorskip(f"trl.experimental.{kind}.{kind}_trainer")
    own = task(loss, **OTHER[loss])
    for row in pairs:
        batch = collate([row])
        order = torch.argsort(batch["side"], stable=True)
        logits = adapted(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[order]
        labels, mask = batch["labels"][order], batch["attention_mask"][order]
        settings = {**OTHER[loss], "loss_type": "simpo" if loss == "simpo" else "sigmoid"}
        trainer = trl_trainer(adapted, **settings)
        trainer_class = module.ORPOTrainer if loss == "orpo" else module.CPOTrainer
        chosen, rejected = trainer_class.get_batch_logps(logits, labels, average_log_prob=loss != "cpo").chunk(2)
        trained = torch.where(mask == 1, batch["input_ids"][order], -100) if loss == "orpo" else labels
        nll = torch.nn.functional.cross_entropy(logits[0, :-1], trained[0, 1:])
        if loss == "orpo":
            theirs = nll - module.ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0].mean()
        else:
            theirs = module.CPOTrainer.cpo_loss(trainer, chosen, rejected)[0].mean() + settings["cpo_alpha"] * nll
        ours = own.example_loss(adapted, batch).mean()
        # ORPO's odds are computed in float32 by TRL
        close = 1e-6 if loss == "orpo" else 1e-10
        assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=close)
        for one, other in zip(gradients(adapted, ours), gradients(adapted, theirs), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=close)


def test_trl_has_the_same_kto_and_gradients(adapted, task, rows, collate) -> None:
    kto = pytest.importorskip("trl.trainer.kto_trainer")
    own, features = task("kto", **OTHER["kto"]), rows((0, 2), (1, 2), (1, 2), (0, 2))
    batch = collate(features)
    reference = own.reference(adapted, batch)
    single, other = batch["side"] < 2, batch["side"] == 2
    inputs: dict[str, Any] = {name: batch[name][single] for name in ("input_ids", "attention_mask")}
    inputs |= {
        "completion_mask": (batch["labels"][single] != -100).long(),
        "label": batch["side"][single] == 0,
        "ref_logps": reference[single],
        "ref_KL_logps": reference[other],
    }
    trainer = trl_trainer(adapted, calculate_KL=True, loss_type="kto", **OTHER["kto"])
    with torch.no_grad():
        far = own.logps(adapted, {name: batch[name][other] for name in ("input_ids", "attention_mask", "labels")})
    trainer._compute_kl_logps = lambda model, inputs: far
    theirs = kto.KTOTrainer._compute_loss(trainer, trainer.model, inputs, False)
    ours = own.example_loss(adapted, batch).mean()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-10)
    for one, other in zip(gradients(adapted, ours), gradients(adapted, theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_the_odds_are_exact_where_an_answer_is_certain_or_impossible() -> None:
    from ghosttune.tasks.losses import _log_one_minus_exp

    values = torch.tensor([-1e-12, -1e-3, -0.7, -50.0], dtype=torch.float64, requires_grad=True)
    expected = [math.log(-math.expm1(v)) for v in values.tolist()]
    found = _log_one_minus_exp(values)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    found.sum().backward()
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()
