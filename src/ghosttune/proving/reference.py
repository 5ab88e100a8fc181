"""The slow reference of every instrument: a plain Trainer that keeps what it did, and one backward per row.

Nothing here is shared with the instruments that are judged by it.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ghosttune.run.directory import RunDir
from ghosttune.run.tables import read_table
from ghosttune.training.attaching import attach
from ghosttune.training.guide import evaluating

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class Step:
    """One optimizer step, as it was."""

    weights: dict[str, Tensor]
    """Trained parameters before the update."""
    moments: dict[str, dict[str, Tensor]]
    """Optimizer state before the update, by parameter."""
    batches: list[dict[str, Tensor]]
    targets: float
    rate: float
    gradient: dict[str, Tensor]
    """Complete, before clipping."""
    clipped: dict[str, Tensor]
    after: dict[str, Tensor]
    """Trained parameters after the update."""
    moments_after: dict[str, dict[str, Tensor]]


class KeepingTrainer(Trainer):
    """Keeps a `Step` for every optimizer step."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.steps: list[Step] = []
        self.batches: list[dict[str, Tensor]] = []
        self.add_callback(_Keep(self))

    def trained(self) -> dict[str, nn.Parameter]:
        model: Any = self.model
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def gradients(self) -> dict[str, Tensor]:
        found: dict[str, Any] = {name: p.grad for name, p in self.trained().items()}
        return {name: gradient.clone() for name, gradient in found.items()}

    @property
    def inner_optimizer(self) -> Any:
        """torch's own, below the wrapper of accelerate."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def moments(self) -> dict[str, dict[str, Tensor]]:
        state = self.inner_optimizer.state
        return {name: copy.deepcopy(dict(state.get(p, {}))) for name, p in self.trained().items()}

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        if model.training:
            self.batches.append({name: tensor.clone() for name, tensor in inputs.items()})
            self.targets = float(options["num_items_in_batch"])
        return super().compute_loss(model, inputs, *arguments, **options)

    def _clip_grad_norm(self, model: Any) -> Any:
        self.gradient = self.gradients()
        return super()._clip_grad_norm(model)


class _Keep(TrainerCallback):
    def __init__(self, trainer: KeepingTrainer):
        self.trainer = trainer

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        trainer = self.trainer
        self.weights = {name: p.detach().clone() for name, p in trainer.trained().items()}
        self.moments = trainer.moments()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.clipped = self.trainer.gradients()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        trainer = self.trainer
        trainer.steps.append(
            Step(
                self.weights,
                self.moments,
                trainer.batches,
                trainer.targets,
                trainer.inner_optimizer.param_groups[0]["lr"],
                trainer.gradient,
                self.clipped,
                {name: p.detach().clone() for name, p in trainer.trained().items()},
                trainer.moments(),
            )
        )
        trainer.batches = []


def small_llama(full: bool = False, dtype: torch.dtype = torch.float64, r: int = 4, lora_alpha: int = 8) -> Any:
    """Two layers, width 32, with LoRA on every linear layer unless `full`."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model: Any = LlamaForCausalLM(shape)
    model.to(dtype)
    if not full:
        adapter = peft.LoraConfig(r=r, lora_alpha=lora_alpha, target_modules=LINEAR)
        model = peft.get_peft_model(model, adapter, autocast_adapter_dtype=False)
    return model


def counting_rows(count: int, seed: int) -> list[dict[str, list[int]]]:
    """Rows that count upwards from somewhere, of unequal length."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(5, 12, (1,), generator=generator))
        start = int(torch.randint(0, 64, (1,), generator=generator))
        rows.append({"input_ids": [(start + place) % 64 for place in range(length)]})
    return rows


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])
    mask = torch.tensor([[int(place < len(row["input_ids"])) for place in range(width)] for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def keeping_trainer(folder: Path, model: Any, rows: int = 48, **options: Any) -> KeepingTrainer:
    """A Trainer of 12 steps of 8 rows with clipping, decay and warm-up; `options` are TrainingArguments."""
    settings: dict[str, Any] = {
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "weight_decay": 0.1,
        "max_grad_norm": 0.2,
        "warmup_steps": 2,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1000,
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    arguments = TrainingArguments(output_dir=str(folder / "output"), **settings)
    trainer = KeepingTrainer(model=model, args=arguments, train_dataset=counting_rows(rows, 1), data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    return trainer


GUIDE = counting_rows(12, 2)


def measured(folder: Path, *, full: bool = False, dtype: Any = torch.float64, **options: Any) -> KeepingTrainer:
    """A trained Trainer whose measurements lie in folder/measured; keywords of `attach` and TrainingArguments mix."""
    own = {name: options.pop(name) for name in ("guide_every", "values", "effective_every") if name in options}
    trainer = keeping_trainer(folder, options.pop("model", None) or small_llama(full, dtype), **options)
    attach(trainer, folder / "measured", GUIDE, **{"guide_every": 1, "effective_every": None, **own})
    trainer.train()
    return trainer


def table(folder: Path, name: str) -> dict[str, list[Any]]:
    """A table of `measured`, by column."""
    return read_table(RunDir(folder / "measured"), name).to_pydict()


def account(folder: Path) -> dict[str, float]:
    """The ledger's account of `measured`."""
    return json.loads((folder / "measured" / "ledger.json").read_text())


def set_weights(model: Any, weights: dict[str, Tensor]) -> None:
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            named[name].copy_(value)


def mean_loss(model: Any, rows: list[dict[str, list[int]]], divisor: float | None = None) -> Tensor:
    """Nats per target, row by row and without padding."""
    total, targets = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        logits = model(input_ids=ids).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        targets += ids.shape[1] - 1
    return total / (divisor or targets)


def gradient_of(model: Any, rows: list[dict[str, list[int]]], divisor: float | None = None) -> dict[str, Tensor]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with evaluating(model):
        gradients = torch.autograd.grad(mean_loss(model, rows, divisor), list(trained.values()))
    return dict(zip(trained, gradients, strict=True))


def rows_of(step: Step) -> list[dict[str, list[int]]]:
    """The rows of a step, without their padding."""
    return [
        {"input_ids": ids[mask.bool()].tolist()}
        for batch in step.batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def guide_loss(model: Any, weights: dict[str, Tensor]) -> float:
    """The loss of the guide rows under these weights."""
    set_weights(model, weights)
    with torch.no_grad(), evaluating(model):
        return float(mean_loss(model, GUIDE))


def decays_of(trainer: KeepingTrainer) -> dict[str, float]:
    """The weight decay of each trained parameter."""
    by_id = {id(p): group["weight_decay"] for group in trainer.inner_optimizer.param_groups for p in group["params"]}
    return {name: by_id[id(p)] for name, p in trainer.trained().items()}
