"""Which code computes attention: what was asked for, or a refusal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ghosttune.config.sections.model import ModelSettings
from ghosttune.errors import ConfigError, GhosttuneError, Problem

ANYWHERE = ("eager", "sdpa")
"""What computes attention on every device, and its gradient."""


def attention_of(settings: ModelSettings) -> dict[str, Any]:
    """What to tell Transformers; nothing where it is to choose. ConfigError for attention that the device has not."""
    if settings.attention is None:
        return {}
    if settings.attention not in ANYWHERE and not _is_on_a_gpu(settings.device):
        raise _refusal(settings, "needs a GPU, and the model is on the CPU: use sdpa or eager there")
    return {"attn_implementation": settings.attention}


@contextmanager
def refused_attention(settings: ModelSettings) -> Iterator[None]:
    """Turns what Transformers says of attention that it cannot give this model into a ConfigError."""
    try:
        yield
    except GhosttuneError:
        raise
    except (ImportError, ValueError, RuntimeError) as error:
        words = " ".join(str(error).split())
        if settings.attention is None or not any(sign in words.lower() for sign in ("attention", "attn", "kernel")):
            raise
        raise _refusal(settings, f"cannot be had for {settings.name}: {words[:300]}") from error


def require_attention(settings: ModelSettings, model: Any) -> None:
    """ConfigError where Transformers took another attention than it was told to."""
    taken = model.config._attn_implementation
    if settings.attention is not None and taken != settings.attention:
        raise _refusal(settings, f"cannot be had for {settings.name}, for which Transformers takes {taken}; set that")


def _is_on_a_gpu(device: str) -> bool:
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def _refusal(settings: ModelSettings, message: str) -> ConfigError:
    return ConfigError([Problem("model.attention", f"{settings.attention} {message}")])
