"""Short ways to write a configuration file and to read what is wrong with one."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from ghosttune.config.loading import load_config
from ghosttune.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    """Writes a configuration file, by default run.yaml, and returns its path."""

    def write_file(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write_file


@pytest.fixture
def problems(write):
    """What load_config finds wrong with a text (or a mapping): one line per problem, as a user reads them."""

    def found(source="", **how) -> list[str]:
        if isinstance(source, str):
            source = write("data: {train: {path: builtin:rows}}\n" + textwrap.dedent(source))
        with pytest.raises(ConfigError) as caught:
            load_config(source, **how)
        return [str(problem) for problem in caught.value.problems]

    return found


@pytest.fixture
def second_method(monkeypatch):
    """Registers a method with settings of its own, for one test."""
    from typing import Literal

    from ghosttune.config.setting import MethodSettings, setting
    from ghosttune.registry import METHODS

    METHODS.names()  # loads the real ones first

    class ScaleSettings(MethodSettings):
        type: Literal["scale"] = setting("scale")
        strength: float = setting(1.0)

    def register(build=lambda settings, targets, transposed: None):
        monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
        METHODS.register("scale", ScaleSettings)(build)
        return ScaleSettings

    return register
