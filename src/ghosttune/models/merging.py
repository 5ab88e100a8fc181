"""An adapter added into the weights of its base: a plain model folder, and how its run asked and answered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttune.errors import GhosttuneError, ModelError
from ghosttune.models.prompting import prompt_length
from ghosttune.models.rotations import repeat_rotations
from ghosttune.models.weights import errors_of_the_disk

if TYPE_CHECKING:
    import torch

ANSWERING = "ghosttune.json"

TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}
"""How far a logit may move by merging, as a share of the largest logit: rounding of the sum to the base's precision."""

PROBES, PROBE_LENGTH = 4, 32


@dataclass(frozen=True)
class Answering:
    """What a plain model folder does not say: how prompts are rendered, and the limits of the run it comes from."""

    template: str
    max_length: int
    max_new_tokens: int
    dtype: str
    base: str
    revision: str | None


def answering_of(folder: Path) -> Answering | None:
    """What `write_merged` noted; None for any other model."""
    path = folder / ANSWERING
    if not path.is_file():
        return None
    try:
        return Answering(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path} is damaged: {error}; merge the run again") from error


def probe_logits(model: Any) -> torch.Tensor:
    """The logits [probes, T, V] of fixed random tokens."""
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (PROBES, PROBE_LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids.to(model.device), use_cache=False).logits.float().cpu()


def merged(model: Any) -> Any:
    """The base model with the adapter in its weights; ModelError for adapters that are not a change of weights."""
    from peft.utils import ModulesToSaveWrapper

    if not hasattr(model, "peft_config"):  # its own parameters were trained
        return model.merge_and_unload()
    if prompt_length(model):
        kind = model.active_peft_config.peft_type.value.lower()
        raise ModelError(f"a {kind} adapter learns a prompt, not a change of weights: it cannot be merged; use the run")
    base = model.get_base_model()
    for name, module in list(base.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):  # PEFT takes every head for one layer with a weight
            base.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # what safe_merge finds: weights that are not numbers
        raise ModelError(f"the adapter cannot be merged: {error}") from error


def write_plain(model: Any, tokenizer: Any, folder: Path, processor: Sequence[Path] = ()) -> None:
    """The model, its tokenizer and the files of its processor, for `transformers` alone to load."""
    with errors_of_the_disk():
        model.save_pretrained(folder)
    repeat_rotations(folder / "config.json")
    tokenizer.save_pretrained(folder)
    for file in processor:
        shutil.copyfile(file, folder / file.name)


def write_merged(
    model: Any, tokenizer: Any, answering: Answering, folder: Path, processor: Sequence[Path] = ()
) -> None:
    """`write_plain`, and how the model is asked."""
    write_plain(model, tokenizer, folder, processor)
    (folder / ANSWERING).write_text(json.dumps(asdict(answering), indent=2) + "\n", encoding="utf-8")


def require_equal(before: torch.Tensor, after: torch.Tensor, dtype: str) -> float:
    """The largest difference as a share of the largest logit; GhosttuneError above the tolerance of the precision."""
    difference = float((after - before).abs().max() / before.abs().max())
    if not difference <= TOLERANCES[dtype]:
        raise GhosttuneError(
            f"the merged model's logits differ from the adapter's by {difference:.1e} of the largest, more than the "
            f"{TOLERANCES[dtype]:.0e} that {dtype} explains; nothing was written. Use the run as it is"
        )
    return difference
