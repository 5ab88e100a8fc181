"""This folder is left out without transformers and peft; the rest of tests/ghostgrad needs neither."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

if find_spec("transformers") is None or find_spec("peft") is None:
    collect_ignore_glob = ["*.py"]


def pytest_configure(config: pytest.Config) -> None:
    # peft 0.21 asks transformers 5.23 for a name that it deprecated.
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
