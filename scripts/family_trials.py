"""One family of Transformers through everything a user does with it, on a small model made of its configuration."""

from __future__ import annotations

import contextlib
import io
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.auto import modeling_auto

from ghostgrad import UnsupportedLayer
from ghosttune.choosing.index import index
from ghosttune.errors import GhosttuneError, InputError
from ghosttune.inference.pipeline import Pipeline
from ghosttune.proving.own import VOCABULARY, OwnModel, run_of, write_small_model
from ghosttune.proving.rowwise import batch_of, largest_errors, task_of
from ghosttune.workflows.check import check
from ghosttune.workflows.merge import merge
from ghosttune.workflows.train import train

TASKS_OF = {
    "causal_lm": ("AutoModelForCausalLM", modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "seq2seq_lm": ("AutoModelForSeq2SeqLM", modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    "sequence_classification": (
        "AutoModelForSequenceClassification",
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ),
}
"""Task -> the class that loads its models, and the families that Transformers has a model of it for."""

READ_BOTH_WAYS = set(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
"""Families that are tried as classifiers first: as causal models they would see the words they are to predict."""

SHORT = {
    "train__max_steps": 3,
    "measure__ledger__guide_every": 2,
    "measure__norms__effective": 2,
    "evaluate__limit": 2,
    "evaluate__max_new_tokens": 4,
}

STEPS = ("check", "train", "index", "answer", "merge", "float32", "float64")

BARS = {"float32": 1e-5, "float64": 1e-12}
"""Of a row's norms and products against one backward per row, relative to the largest of its parameter."""


def families() -> dict[str, str]:
    """Family -> the task it is tried with, the one it is mostly used for."""
    found = dict.fromkeys(TASKS_OF["seq2seq_lm"][1], "seq2seq_lm")
    both = READ_BOTH_WAYS & set(TASKS_OF["sequence_classification"][1])
    found |= {name: "causal_lm" for name in TASKS_OF["causal_lm"][1] if name not in found and name not in both}
    found |= {n: "sequence_classification" for n in TASKS_OF["sequence_classification"][1] if n not in found}
    return dict(sorted(found.items()))


@dataclass
class Trial:
    """What came of a family."""

    family: str
    task: str
    parameters: int = 0
    steps: dict[str, str] = field(default_factory=dict)
    """Step -> `ok`, the figure of a comparison, or what ended it: `refused`, `late` or `fault`, and the words."""
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Everything works, or is refused by name before anything is written."""
        return all(is_good(step, found) for step, found in self.steps.items())


def is_good(step: str, found: str) -> bool:
    """Whether a step did what it should: worked, met its bar, or was refused at `check`."""
    if step in BARS and found[0].isdigit():
        return float(found) <= BARS[step]
    return found == "ok" or found.startswith(("refused", "none", "-"))


def tried(family: str, task: str, place: Path) -> Trial:
    """The family's small model through every step, each of which is tried though another one failed."""
    trial, start = Trial(family, task), time.perf_counter()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        try:
            own = small(family, task, place / "model")
        except Exception as error:
            trial.steps["model"] = "none: " + _words(error)
        else:
            trial.parameters = own.parameters
            _try_all(own, trial.steps, place)
            trial.steps = {step: found.replace(f"{place}/", "") for step, found in trial.steps.items()}
    trial.seconds = round(time.perf_counter() - start, 1)
    return trial


def small(family: str, task: str, folder: Path) -> OwnModel:
    """The family's small model, as its class's own configuration or what is published describes it."""
    config = transformers.CONFIG_MAPPING[family](**PUBLISHED.get(family, {}))
    count = write_small_model(config, task, getattr(transformers, TASKS_OF[task][0]), folder)
    return OwnModel(folder, task, "lora", count)


def _try_all(own: OwnModel, steps: dict[str, str], place: Path) -> None:
    """Three steps of four rows with everything measured as usual, but oftener; and what comes before and after."""
    run = place / "run"
    config = run_of(own, place / "rows", **SHORT)
    steps["check"] = _outcome(lambda: _checked(config), at_check=True)
    if steps["check"] != "ok":
        return
    steps["train"] = _outcome(lambda: train(config, run))
    if steps["train"] == "ok":
        steps["index"] = _outcome(lambda: index(run, device="cpu"))
        steps["answer"] = _outcome(lambda: _answered(own.task, run))
        if own.task == "causal_lm":
            steps["merge"] = _outcome(lambda: merge(run, place / "merged"))
    for name in BARS:
        steps[name] = _outcome(lambda name=name: _largest_error(own, name))


def _outcome(work: Callable[[], Any], at_check: bool = False) -> str:
    try:
        found = work()
    except InputError as error:
        return f"{'refused' if at_check else 'late'}: {_words(error)}"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        at = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
        return f"fault: {type(error).__name__} at {at}: {_words(error)}"
    return found if isinstance(found, str) else "ok"


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


def _checked(config: Any) -> None:
    report = check(config)
    if report.errors:
        raise InputError("; ".join(report.errors))
    if report.not_checked or not report.plan:
        raise GhosttuneError(f"no plan: {report.not_checked}")


def _answered(task: str, run: Path) -> None:
    """Two answers of one batch, and the same two one by one."""
    pipeline = Pipeline.from_run(run, device="cpu")
    if task == "sequence_classification":
        rows = [{"text": "the red film"}, {"text": "the film was really quite good"}]
        together = [prediction.output for prediction in pipeline.predict(rows)]
        alone = [pipeline.predict([row])[0].output for row in rows]
    elif task == "seq2seq_lm":
        rows = [{"prompt": "Say red"}, {"prompt": "Say red please please"}]
        together = [prediction.output for prediction in pipeline.predict(rows)]
        alone = [pipeline.predict([row])[0].output for row in rows]
    else:
        prompts = ["Say red", "Say red please please"]
        together = [answer.text for answer in pipeline.generate(prompts, max_new_tokens=4)]
        alone = [pipeline.reply(prompt, max_new_tokens=4).text for prompt in prompts]
    if together != alone:
        raise AssertionError(f"in one batch {together}, one by one {alone}")


def _largest_error(own: OwnModel, dtype: str) -> str:
    """Of any per-row number; why there is none where the model's own code cannot take `dtype`."""
    model, task, batch = own.adapted(getattr(torch, dtype)), task_of(own.task), batch_of(own.task, VOCABULARY)
    try:
        task.example_loss(model, batch).sum().backward()
    except RuntimeError as error:
        if dtype == "float32":
            raise
        return f"- the model's own code is not made for {dtype}: {_words(error)}"
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    if dtype == "float64" and not all(bool(gradient.isfinite().all()) for gradient in gradients):
        return f"- autograd's own gradients are not numbers in {dtype}"
    try:
        error = max(largest_errors(model, task, batch).values())
    except UnsupportedLayer:
        if dtype == "float32" or not _rounds(model, task, batch):
            raise
        error = max(largest_errors(model, task, batch, verify=False).values())
    if dtype == "float64" and BARS["float64"] < error <= BARS["float32"] and _rounds(model, task, batch):
        return f"- the model's own code rounds to float32 on the way: {error:.1e}"
    return f"{error:.1e}"


def _rounds(model: Any, task: Any, batch: Any) -> bool:
    """Whether numbers that gradients run through are float32 somewhere in the forward of a float64 model."""
    found = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = operation(*args, **(kwargs or {}))
            read = [x for x in args if isinstance(x, torch.Tensor) and x.dtype == torch.float64]
            found.append(bool(read) and isinstance(made, torch.Tensor) and made.dtype == torch.float32)
            return made

    with Watch(), torch.no_grad():
        task.example_loss(model, batch)
    return any(found)


PUBLISHED: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500000.0}},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
    },
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "esm": {"vocab_size": 33, "mask_token_id": 32},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "bert-generation": {"is_decoder": True},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
}
"""What published configurations say and the class's own defaults do not."""
