"""How large a model is, before anything of it is loaded."""

from __future__ import annotations

from typing import Any

from ghosttune.config.facts import ModelKind
from ghosttune.config.sections.model import ModelSettings
from ghosttune.models.loading import explained, loader_of, located
from ghosttune.models.modules import module_facts


def parameter_counts(settings: ModelSettings, kind: ModelKind) -> tuple[int, int]:
    """(parameters of the linear layers in the blocks, all others), from the model's config.json alone.

    ModelError when there is no such model for the task.
    """
    import torch
    import transformers

    place, arguments = located(settings)
    with explained(settings, "model"), torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(place, **arguments, **kind.entries)
        model = loader_of(kind, config).from_config(config, trust_remote_code=settings.trust_remote_code)
    layers = [fact.name for fact in module_facts(model) if fact.layer is not None and fact.group != "embedding"]
    linear = sum(model.get_submodule(name).weight.numel() for name in layers)
    return linear, sum(parameter.numel() for parameter in model.parameters()) - linear


def width_of(model: Any) -> int:
    """Numbers of a hidden state, which Perceiver calls by its own name."""
    config = model.config.get_text_config()
    return config.hidden_size if hasattr(config, "hidden_size") else config.d_model
