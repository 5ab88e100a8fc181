"""Models and tokenizers from the hub, a folder or the package: safetensors only, and exactly what was asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttune.config.schema import MethodSettings, ModelSettings
from ghosttune.errors import ModelError, listed
from ghosttune.models.builtin import BUILTIN_MODELS, builtin_model_folder
from ghosttune.models.modules import matched_modules, module_facts
from ghosttune.registry import METHODS

if TYPE_CHECKING:
    import peft
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's own tokenizer; ModelError when there is none to be had."""
    from transformers import AutoTokenizer

    name = _place(settings.name)
    try:
        return AutoTokenizer.from_pretrained(name, **_hub_arguments(settings))
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(_explained(settings, "tokenizer", error)) from error


def load_model(settings: ModelSettings, seed: int) -> PreTrainedModel:
    """The base model on the CPU in its declared dtype, every parameter frozen.

    `init: random` takes the shape only and draws the weights from `seed`. Pickled weights are refused.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    name = _place(settings.name)
    dtype = getattr(torch, settings.dtype)
    try:
        if settings.init == "random":
            torch.manual_seed(seed)
            config = AutoConfig.from_pretrained(name, **_hub_arguments(settings))
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=settings.trust_remote_code)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                name, dtype=dtype, use_safetensors=True, **_hub_arguments(settings)
            )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(_explained(settings, "model", error)) from error
    return model.requires_grad_(False)


def longest_input(model: PreTrainedModel) -> int | None:
    """Positions the model was built for; None where its configuration sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def add_adapter(model: PreTrainedModel, settings: MethodSettings, seed: int) -> peft.PeftModel:
    """The model with an adapter on the modules that `target_modules` means; only the adapter is trainable.

    Raises ConfigError when a target matches nothing.
    """
    import peft
    import torch
    from transformers.pytorch_utils import Conv1D

    targets = matched_modules(module_facts(model), settings.target_modules)  # type: ignore[attr-defined]
    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in targets)
    torch.manual_seed(seed)
    with _without_upstream_warnings():
        adapted = peft.get_peft_model(model, METHODS[settings.type].build(settings, targets, transposed))
    adapted.peft_config["default"].base_model_name_or_path = model.name_or_path
    return adapted


def load_adapter(model: PreTrainedModel, folder: Path) -> peft.PeftModel:
    """The model with the adapter of a folder written by PEFT; ModelError when it does not fit the model."""
    import peft

    try:
        with _without_upstream_warnings():
            return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"the adapter in {folder} cannot be loaded: {_first_line(error)}") from error


def device_of(settings: ModelSettings) -> torch.device:
    """The resolved device, as torch names it."""
    import torch

    return torch.device(settings.device)


def inference_device(name: str) -> torch.device:
    """The device a model answers on: `auto` is the GPU where there is one; ModelError when the asked one is missing."""
    import torch

    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {name} cannot be used: {_first_line(error)}; give auto, cpu, cuda or cuda:N"
        ) from error


def revision_of(model: PreTrainedModel) -> str | None:
    """Commit of a hub model; None for a folder."""
    return getattr(model.config, "_commit_hash", None)


@contextmanager
def _without_upstream_warnings() -> Iterator[None]:
    """PEFT 0.21 asks Transformers 5.23 for an attribute under its old name; nothing a user could mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def _place(name: str) -> str:
    if name.startswith("builtin:"):
        if name not in BUILTIN_MODELS:
            raise ModelError(f"no built-in model is called {name} (known: {listed(BUILTIN_MODELS)})")
        return str(builtin_model_folder(name))
    if name.startswith(("/", "./", "../", "~")) and not Path(name).expanduser().is_dir():
        raise ModelError(f"model.name {name} is not a folder")
    return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name


def _hub_arguments(settings: ModelSettings) -> dict[str, Any]:
    return {"revision": settings.revision or "main", "trust_remote_code": settings.trust_remote_code}


def _explained(settings: ModelSettings, what: str, error: Exception) -> str:
    message = _first_line(error)
    if "trust_remote_code" in str(error):
        message += "; set model.trust_remote_code: true only after reading that code"
    elif "safetensors" in str(error):
        message += "; only safetensors weights are loaded (pickled ones can run code): convert them first"
    elif not Path(settings.name).is_dir():
        message += "; give a folder, a cached hub id, or builtin:tiny (hub ids need the network once)"
    return f"the {what} of {settings.name} cannot be loaded: {message}"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
