"""A run in float64, which no setting offers: for comparisons that float32's rounding would hide."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

from ghosttune.config.loading import load_config
from ghosttune.models.loading import load_model
from ghosttune.workflows.train import train


def train_in_float64(config: str, out: str) -> None:
    """The run of a configuration file, its base converted before the adapter is added."""
    with patch("ghosttune.stages.model.load_model", _load_in_float64):
        train(load_config(Path(config)), out)


def _load_in_float64(*arguments: Any) -> Any:
    return load_model(*arguments).double()
