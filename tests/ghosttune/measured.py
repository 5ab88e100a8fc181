"""Settings of a run of three steps with every instrument."""

from __future__ import annotations

from typing import Any

MEASURED: dict[str, Any] = {
    "train__max_steps": 3,
    "train__warmup_steps": 0,
    "train__lr_scheduler_type": "constant",
    "train__learning_rate": 0.02,
    "train__eval_steps": 1,
    "train__save_total_limit": 5,
    "data__dev__fraction": 0.25,
    "data__guide__fraction": 0.2,
    "measure__norms__every": 1,
    "measure__norms__effective": 1,
    "measure__ledger__guide_every": 1,
    "measure__ledger__values": "sgd",
}
