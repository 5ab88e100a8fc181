"""What is fuzzed: each target reads bytes as a stranger might send them, and may only refuse them in our own words.

A target returns nothing. Whatever it raises beside the refusals it expects is a finding; so is taking over `SECONDS`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ghosttune.config.facts import ParameterFacts
from ghosttune.config.loading import load_config
from ghosttune.config.rendering import plain_yaml
from ghosttune.config.sections import SourceSettings
from ghosttune.data.labelled import LABELLED_COLUMNS
from ghosttune.data.records import TURN_FORMATS
from ghosttune.data.sources import open_source
from ghosttune.errors import InputError
from ghosttune.inference.protocol import ChatRequest, CompletionRequest, RequestError, parsed
from ghosttune.schedules.language import PlanError, matching, read_plan
from ghosttune.schedules.phases import scheduled

SECONDS = 5.0
"""Longest time that one input may take."""

ROW_FILES = ("jsonl", "json", "csv", "tsv", "txt", "parquet", "jsonl.gz", "csv.gz", "parquet.gz")
FORMATS = (*TURN_FORMATS, *LABELLED_COLUMNS)
FACTS = {
    f"{layer}.{module}.{factor}": ParameterFacts(
        f"{layer}.{module}.{factor}", f"{layer}.{module}", layer, group, factor, module.removesuffix("_proj")
    )
    for layer in range(4)
    for module, group in (("q_proj", "attention"), ("up_proj", "mlp"))
    for factor in "AB"
}


def config(data: bytes, folder: Path) -> None:
    """A configuration file (YAML or JSON) or `--set` texts, by the first byte; what loads is saved and loads again."""
    kind, body = data[:1], data[1:]
    overrides: list[str] = []
    source: Any = {"data": {"train": {"path": "builtin:rows"}}}
    if kind == b"S":
        overrides = os.fsdecode(body).split("\n")
    else:
        source = folder / ("run.json" if kind == b"J" else "run.yaml")
        source.write_bytes(body)
    with contextlib.suppress(InputError):
        loaded = load_config(source, overrides=overrides)
        saved = folder / "saved.yaml"
        saved.write_text(plain_yaml(loaded), encoding="utf-8")
        assert load_config(saved) == loaded, "a saved configuration reads back as another"


def rows(data: bytes, folder: Path) -> None:
    """A file of rows, its kind by the first byte, read as every format."""
    kind = ROW_FILES[(data[0] if data else 0) % len(ROW_FILES)]
    file = folder / f"rows.{kind}"
    file.write_bytes(data[1:])
    for name in ("auto", *FORMATS):
        with contextlib.suppress(InputError):
            open_source(SourceSettings(path=str(file), format=name), FORMATS)
            break


def phases(data: bytes, folder: Path) -> None:
    """A plan of phases, for a run of 100 updates and a model of four layers."""
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(PlanError):
        for phase in read_plan(text):
            for term in phase.selection.terms:
                matching(term, FACTS, 4, (1, 2))
    with contextlib.suppress(PlanError):
        scheduled(text, 100, "keep")


def requests(data: bytes, folder: Path) -> None:
    """The body of a chat or completion call."""
    with contextlib.suppress(RequestError):
        asked = parsed(data, ChatRequest)
        _ = asked.turns, asked.sampling, asked.stops, asked.wanted_tokens, asked.wants_usage
    with contextlib.suppress(RequestError):
        completion = parsed(data, CompletionRequest)
        _ = completion.sampling, completion.stops, completion.wanted_tokens


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    "config": config,
    "rows": rows,
    "phases": phases,
    "requests": requests,
}
