"""One tiny model that sees, and configurations of short runs of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from seeing import llava

from ghosttune.config.schema import RunConfig
from ghosttune.proving.specimens import short_run


@pytest.fixture(scope="session")
def seeing_model(tmp_path_factory) -> Path:
    """Folder of the model and its processor."""
    return llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def image_config(seeing_model) -> Callable[..., RunConfig]:
    """(file of rows, settings with `__` for the dot) -> configuration of six updates without instruments."""

    def make(rows: Path, **changes: Any) -> RunConfig:
        usual = {"model__name": str(seeing_model), "data__train__name": "image_text", "evaluate__limit": 0}
        return short_run(seeing_model, rows, **{**usual, **changes})

    return make
