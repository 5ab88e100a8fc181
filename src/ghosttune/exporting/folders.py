"""Folders of adapters that vLLM and mlx-lm load beside their base."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ghosttune.errors import ModelError, listed
from ghosttune.exporting.lora import INSTEAD, Pair, one_rank_and_scale, pairs_of

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj"}
"""Modules that vLLM and mlx-lm adapt in every model of the types below."""

TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
"""model_type whose class in vLLM takes LoRA, and whose parameters mlx-lm calls as Transformers does."""

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of --max-lora-rank."""


def adaptable(model: Any) -> dict[str, Pair]:
    """The pairs of a LoRA adapter that both programs load; ModelError says what else it has."""
    kind = model.get_base_model().config.model_type
    if kind not in TYPES:
        raise ModelError(f"LoRA on a {kind} is not known to be loaded (known are {listed(TYPES)}); {INSTEAD}")
    pairs = pairs_of(model)
    if strange := sorted({module.rpartition(".")[2] for module in pairs} - LINEAR):
        raise ModelError(f"LoRA on {listed(strange)} is not known to be loaded; {INSTEAD}")
    return pairs


def vllm_rank(pairs: dict[str, Pair]) -> int:
    """What --max-lora-rank must be; ModelError where no value of vLLM's is enough."""
    rank, _ = one_rank_and_scale(pairs)
    enough = [most for most in VLLM_RANKS if most >= rank]
    if not enough:
        raise ModelError(f"rank {rank} is more than vLLM serves ({VLLM_RANKS[-1]}); {INSTEAD}")
    return enough[0]


def write_mlx_adapter(model: Any, folder: Path) -> None:
    """adapters.safetensors and adapter_config.json of mlx-lm, which adds `scale * x @ lora_a @ lora_b`."""
    from safetensors.torch import save_file

    pairs = adaptable(model)
    rank, scale = one_rank_and_scale(pairs)
    tensors = {}
    for module, pair in pairs.items():
        tensors[f"{module}.lora_a"] = pair.down.detach().float().T.contiguous()
        tensors[f"{module}.lora_b"] = pair.up.detach().float().T.contiguous()
    settings = {
        "fine_tune_type": "lora",
        "num_layers": model.get_base_model().config.num_hidden_layers,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": _within_layers(pairs)},
    }
    save_file(tensors, str(folder / "adapters.safetensors"), metadata={"format": "mlx"})
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _within_layers(modules: Iterable[str]) -> list[str]:
    """Modules by their names within a layer: mlx-lm adapts them in every layer, from zero where a file has none."""
    return sorted({module.split(".layers.", 1)[1].split(".", 1)[1] for module in modules})


def name_base(configuration: Path, base: str) -> None:
    """Puts the name that others know the base by into PEFT's configuration, in place of a folder of this machine."""
    settings = json.loads(configuration.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base
    configuration.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
