"""The proofs about a model's own arithmetic, on a small model made of any configuration: `ghosttune prove --model`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from ghostgrad import Norms
from ghosttune.config.facts import ModelKind
from ghosttune.config.loading import load_config
from ghosttune.config.schema import RunConfig, section_class
from ghosttune.config.sections.model import ModelSettings
from ghosttune.errors import InputError, ModelError
from ghosttune.models.builtin import builtin_model_folder
from ghosttune.models.loading import explained, load_model, loader_of, located
from ghosttune.proving.findings import Bench, Finding, Proof, at_most, beside, every
from ghosttune.proving.rowwise import adapted, batch_of, largest_errors, micro_batch, task_of
from ghosttune.proving.shrinking import shrunken, shrunken_model
from ghosttune.run.directory import RunDir
from ghosttune.training import checkpoints
from ghosttune.training.engines import row_engine
from ghosttune.workflows.check import check
from ghosttune.workflows.train import train

EXACT = 1e-10
"""Bar of float64 comparisons, relative to the largest number of a parameter; 1e-5 where a model has float32 only."""

SHARE = 0.02
"""Of the path of the guide loss: what the trapezoid rule leaves of a step's curvature."""

VOCABULARY = 300
"""Tokens of the rows that single numbers are compared on."""

STEPS = 6


@dataclass(frozen=True)
class OwnModel:
    """A small model of a kind that somebody uses, in a folder, and the method it is tuned with."""

    folder: Path
    task: str
    method: str
    parameters: int

    @property
    def kind(self) -> ModelKind:
        return task_of(self.task).kind(SimpleNamespace(pad_token_id=0, eos_token_id=2))

    def adapted(self, dtype: Any) -> Any:
        """The model with the method's adapter."""
        base = load_model(ModelSettings(name=str(self.folder)), 0, self.kind)
        if dtype == torch.float64:
            base.set_experts_implementation("eager")  # others multiply in no other than their own dtypes
        return adapted(base, section_class("method", self.method)(), self.kind).to(dtype)


def own_proofs(name: str, method: str, folder: Path) -> tuple[Proof, ...]:
    """The proofs to try on the model, made small and saved in `folder`.

    InputError where the model cannot be found or made small, the method does not exist, or `check` refuses the two.
    """
    own = small_model(name, method, folder)
    if errors := check(run_of(own, folder / "check")).errors:
        raise InputError("\n".join(errors))
    what = f"{own.parameters:,} parameters, {own.task}, {method}"
    return (
        Proof(1, f"the modules' entries add up ({what})", partial(account_closes, own)),
        Proof(2, "every per-row number equals one backward per row", partial(rows_equal_one_backward, own)),
        Proof(3, "measuring leaves training bit-identical", partial(measuring_changes_nothing, own)),
        Proof(5, "what is frozen stays bit-identical", partial(frozen_is_frozen, own)),
    )


def small_model(name: str, method: str, folder: Path) -> OwnModel:
    """The model that a folder or hub id describes, made small, with random weights and the built-in tokenizer."""
    settings = ModelSettings(name=name)
    place, arguments = located(settings)
    with explained(settings, "configuration"):
        config = transformers.AutoConfig.from_pretrained(place, **arguments)
    task = task_for(config)
    kind = task_of(task).kind(SimpleNamespace(pad_token_id=0, eos_token_id=2))
    count = write_small_model(config, task, loader_of(kind, config), folder / "model")
    return OwnModel(folder / "model", task, method, count)


def task_for(config: Any) -> str:
    """The task that a model of this kind is mostly used for; ModelError where Transformers has it for none."""
    kind = type(config)
    if kind in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return "seq2seq_lm"
    classifies = kind in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if classifies and kind in transformers.MODEL_FOR_MASKED_LM_MAPPING:
        return "sequence_classification"  # as a causal model it would see the words it is to predict
    if kind in transformers.MODEL_FOR_CAUSAL_LM_MAPPING or kind in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return "causal_lm"
    if classifies:
        return "sequence_classification"
    raise ModelError(f"Transformers has no {config.model_type} model that writes, rewrites or classifies text")


def write_small_model(config: Any, task: str, loader: Any, folder: Path) -> int:
    """Saves the configuration's small model with the built-in tokenizer; how many parameters it has."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(builtin_model_folder("builtin:tiny"))
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if task == "seq2seq_lm":
        special |= {"decoder_start_token_id": tokenizer.bos_token_id}
    model = shrunken_model(shrunken(config, len(tokenizer), special), loader)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def rows_for(task: str) -> list[dict[str, str]]:
    """Forty rows of unequal length that a task reads, in splits, so that all runs train on the same ones."""
    words, splits = ["red", "green", "blue", "golden", "silver"], ["train"] * 6 + ["dev", "guide"]
    rows = []
    for n in range(40):
        word, more = words[n % 5], "really " * (n % 4)
        if task == "sequence_classification":
            row = {"text": f"the {word} film {more}{n}", "label": "good" if n % 2 else "bad"}
        else:
            row = {"prompt": f"Say {word} {more}{n}", "completion": f"{word} " * (1 + n % 3) + f"{n}"}
        rows.append(row | {"split": splits[n % 8]})
    return rows


def run_of(own: OwnModel, place: Path, **changes: Any) -> RunConfig:
    """A run of a few steps with rows of `rows_for`; keyword paths use `__` for the dot."""
    place.mkdir(parents=True, exist_ok=True)
    rows = place / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in rows_for(own.task)))
    settings: dict[str, Any] = {
        "model.name": str(own.folder),
        "model.device": "cpu",
        "method.type": own.method,
        "task.type": own.task,
        "data.train.path": str(rows),
        "data.max_length": 48,
        "train.max_steps": STEPS,
        "train.per_device_train_batch_size": 4,
        "train.learning_rate": 1e-3,
        "train.warmup_steps": 0,
        "evaluate.limit": 0,
    }
    if own.task == "seq2seq_lm":
        settings["task.max_target_length"] = 16
    if own.task == "sequence_classification":
        settings["evaluate.metrics"] = ["accuracy"]
    settings |= {path.replace("__", "."): value for path, value in changes.items()}
    return load_config(overrides=[f"{path}={json.dumps(value)}" for path, value in settings.items()])


def account_closes(own: OwnModel, bench: Bench) -> list[Finding]:
    """The ledger of a run with a guide pass at every step, against the guide loss at both ends."""
    config = run_of(own, bench.folder / "account", measure__ledger__guide_every=1)
    said = train(config, bench.folder / "account" / "run").record["ledger"]
    share = abs(said["modules_residual"]) / said["guide_loss_path"]
    return [
        at_most("|sum over modules - drop| of the loss's path", share, SHARE),
        beside("of the drop, what rows and decay leave", said["residual"]),
    ]


def rows_equal_one_backward(own: OwnModel, bench: Bench) -> list[Finding]:
    """Norms, products with a direction and sums of every trained parameter, in float64 where the model's code can."""
    task, batch = task_of(own.task), batch_of(own.task, VOCABULARY)
    model, bar, dtype = own.adapted(torch.float64), EXACT, "float64"
    try:
        with torch.no_grad():
            task.example_loss(model, batch)
    except RuntimeError:
        model, bar, dtype = own.adapted(torch.float32), 1e-5, "float32, as the model's own code allows no other"
    errors = largest_errors(model, task, batch)
    count = sum(parameter.requires_grad for parameter in model.parameters())
    return [
        at_most(f"norms of {count} tensors by row ({dtype})", errors["norms"], bar),
        at_most("products with a direction", errors["products"], bar),
        at_most("their sums against autograd", errors["sums"], bar),
    ]


def measuring_changes_nothing(own: OwnModel, bench: Bench) -> list[Finding]:
    """Weights, optimizer and generators at the end of a run with everything measured, and of one with nothing."""
    off = {"measure__norms__every": None, "measure__norms__effective": None, "measure__ledger__guide_every": None}
    on = {"measure__norms__effective": 2, "measure__ledger__guide_every": 2}
    ends = []
    for name, changes in (("unmeasured", off), ("measured", on)):
        place = bench.folder / name
        train(run_of(own, place, **changes), place / "run")
        ends.append(RunDir(place / "run").checkpoint(STEPS))
    files = (checkpoints.WEIGHTS, checkpoints.OPTIMIZER, checkpoints.RANDOM)
    same = {file: (ends[0] / file).read_bytes() == (ends[1] / file).read_bytes() for file in files}
    return [every("files of the last checkpoint, byte for byte", same)]


def frozen_is_frozen(own: OwnModel, bench: Bench) -> list[Finding]:
    """What a few measured steps of AdamW do to parameters that train, and to those that do not."""
    task, batch, model = task_of(own.task), batch_of(own.task, VOCABULARY), own.adapted(torch.float32)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    engine = row_engine(model, "exact")
    for _ in range(3):
        with engine.observe(Norms(), selected=micro_batch(task, model, batch).selected(engine)):
            task.example_loss(model, batch).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    same = {name: torch.equal(before[name], p) for name, p in model.named_parameters()}
    frozen = {name: held for name, held in same.items() if name not in trained}
    moved = sum(not same[name] for name in trained)
    found = [every("frozen tensors, bit for bit", frozen)] if frozen else []
    return [*found, at_most("trained tensors that did not move, of all", 1 - moved / len(trained), 0.5)]
