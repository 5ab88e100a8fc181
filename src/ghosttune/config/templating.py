"""The text of `model.chat_template`: a configuration names its file and keeps what stood in it.

So a run, which holds its configuration, is opened with the template that it began with, wherever the file is by then.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from ghosttune.config.schema import RunConfig
from ghosttune.config.sections.model import MARKS
from ghosttune.errors import InputError, Problem
from ghosttune.foreign import read_text

SETTING = "model.chat_template"

MOST = 100_000
"""Bytes of a template's file; the longest that come with models have a quarter."""


def is_text(value: str) -> bool:
    """Whether the value is a template itself, and no file's name."""
    return any(mark in value for mark in MARKS)


def with_text(config: RunConfig) -> tuple[RunConfig, list[Problem]]:
    """The configuration with the file's text in place of its name, which is the origin from now on.

    A file that cannot be used is a problem; `check` then goes on with the model's own template.
    """
    named = config.model.chat_template
    if named is None or is_text(named):
        return config, []
    path = os.path.abspath(os.path.expanduser(named))
    try:
        text, origin, problems = read(path), path, []
    except InputError as error:
        text, origin, problems = None, config.origins[SETTING], [config.problem(SETTING, str(error))]
    model = config.model.model_copy(update={"chat_template": text})
    return config.model_copy(update={"model": model, "origins": {**config.origins, SETTING: origin}}), problems


def read(path: str) -> str:
    """The template in the file, with line feeds alone; InputError where there is none."""
    try:
        text = read_text(path, MOST).replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, ValueError) as error:  # no name of a file, or no UTF-8
        said = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {said}; name a file that holds a Jinja template") from error
    if not is_text(text):
        raise InputError(
            f"{path} is no chat template: it has neither {' nor '.join(MARKS)}, so that every conversation would be "
            "the same text; name a file that holds a Jinja template"
        )
    return text


def digest(text: str) -> str:
    """SHA-256 of the template."""
    return hashlib.sha256(text.encode()).hexdigest()


def changed_file(config: RunConfig, origins: Mapping[str, str]) -> str | None:
    """The file that the template was read from, if it is there and says something else now; `origins` of a run."""
    path = origins.get(SETTING, "")
    if config.model.chat_template is None or not os.path.isabs(path) or not Path(path).is_file():
        return None
    try:
        return None if read(path) == config.model.chat_template else path
    except InputError:
        return path
