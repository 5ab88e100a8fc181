"""A plugin of pytest: plants the bug that GHOSTTUNE_BUG names, before any test is imported."""

from __future__ import annotations

import os

import pytest
from bugs import BUGS


def pytest_configure(config: pytest.Config) -> None:
    BUGS[os.environ["GHOSTTUNE_BUG"]].plant(pytest.MonkeyPatch())
