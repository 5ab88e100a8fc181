"""Skips this folder without transformers and peft; the rest of tests/ghostgrad needs neither."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")


def pytest_configure(config: pytest.Config) -> None:
    # peft 0.21 asks transformers 5.23 for a name that it deprecated.
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
