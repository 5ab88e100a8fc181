"""One case per method and kind of LoRA: settings with which it learns four rows within a few steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A method's settings, the learning rate it wants here, and what it cannot do."""

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 0.01
    steps: int = 16
    has_rule: bool = True
    """Whether rules give the gradients of single rows; else its layers are measured exactly."""
    merges: bool = True
    biased: bool = False
    """Whether it needs a model with biases."""


SMALL = {"r": 4}

CASES: dict[str, Case] = {
    "lora": Case("lora", SMALL, 0.02),
    "rslora-gaussian-loraplus": Case(
        "lora", {**SMALL, "use_rslora": True, "init_lora_weights": "gaussian", "loraplus_lr_ratio": 2.0}, 0.005
    ),
    "dora-orthogonal": Case("lora", {**SMALL, "use_dora": True, "init_lora_weights": "orthogonal"}, 0.02),
    "pissa": Case("lora", {**SMALL, "init_lora_weights": "pissa"}, 0.005),
    "olora-rslora": Case("lora", {**SMALL, "init_lora_weights": "olora", "use_rslora": True}, 0.002),
    "eva": Case("lora", {**SMALL, "init_lora_weights": "eva"}, 0.02),
    "corda": Case("lora", {**SMALL, "init_lora_weights": "corda"}, 0.005),
    "lora_ga": Case("lora", {**SMALL, "init_lora_weights": "lora_ga"}, 0.005),
    "adalora": Case("adalora", {"init_r": 4, "target_r": 3, "tfinal": 4}, 0.03, has_rule=False),
    "vera": Case("vera", {"r": 32}, 0.1, has_rule=False),
    "loha": Case("loha", {"r": 4, "alpha": 16}, 0.03, has_rule=False),
    "lokr": Case("lokr", {"r": 4, "alpha": 16}, 0.03, has_rule=False),
    "oft": Case("oft", {"oft_block_size": 8}, 0.01, has_rule=False),
    "miss": Case("miss", {"r": 8}, 0.01, has_rule=False),
    "miss-bat": Case("miss", {"r": 8, "init_weights": "bat"}, 0.01, has_rule=False),
    "hira": Case("hira", {"r": 8}, 0.1, has_rule=False),
    "shira": Case("shira", {"r": 4}, 0.01, has_rule=False),
    "gralora": Case("gralora", {"r": 4, "hybrid_r": 2, "alpha": 8}, 0.02, has_rule=False),
    "randlora": Case("randlora", {"r": 16, "randlora_alpha": 320}, 0.005, has_rule=False),
    "c3a": Case("c3a", {"block_size": 8}, 0.3, has_rule=False),
    "boft": Case("boft", {"boft_block_size": 4, "boft_n_butterfly_factor": 2}, 0.01, has_rule=False),
    "hra": Case("hra", {"r": 8}, 0.02, has_rule=False),
    "frod": Case("frod", {"sparse_rate": 0.05}, 0.02, has_rule=False),
    "ia3": Case("ia3", {"target_modules": "all_linear"}, 0.2),
    "layernorm": Case("layernorm", {}, 0.1),
    "prompt_tuning": Case("prompt_tuning", {}, 0.5, merges=False),
    "p_tuning": Case("p_tuning", {}, 0.03, steps=50, merges=False),
    "prefix_tuning": Case("prefix_tuning", {}, 0.5, steps=40, merges=False),
    "prefix_projection": Case("prefix_tuning", {"encoder_hidden_size": 32}, 0.02, steps=40, merges=False),
    "bitfit": Case("bitfit", {}, 0.05, biased=True),
    "full": Case("full", {}, 0.002),
}
