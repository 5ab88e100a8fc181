"""What is fuzzed: each target reads bytes as a stranger might send them, and may only refuse them in our own words.

A target returns nothing. Whatever it raises beside the refusals it expects is a finding; so is taking over `SECONDS`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow

from ghosttune.config.facts import ParameterFacts
from ghosttune.config.loading import load_config
from ghosttune.config.rendering import plain_yaml
from ghosttune.config.sections.data import SourceSettings
from ghosttune.data.content import content
from ghosttune.data.files import read_file
from ghosttune.data.labelled import LABELLED_COLUMNS
from ghosttune.data.records import TURN_FORMATS, Records
from ghosttune.data.sources import open_source
from ghosttune.errors import InputError
from ghosttune.inference.protocol import ChatRequest, CompletionRequest, RequestError, parsed
from ghosttune.run.directory import read_csv, write_csv, write_jsonl
from ghosttune.run.tables import VALUE_COLUMNS, name_beside
from ghosttune.schedules.language import PlanError, matching, read_plan
from ghosttune.schedules.phases import scheduled
from ghosttune.training.exports import cells_of

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
    """A file of rows, its kind by the first byte, read as every format; what is read is written, and reads again."""
    kind = ROW_FILES[(data[0] if data else 0) % len(ROW_FILES)]
    file = folder / f"rows.{kind}"
    file.write_bytes(data[1:])
    for name in ("auto", *FORMATS):
        with contextlib.suppress(InputError):
            written(open_source(SourceSettings(path=str(file), format=name), FORMATS).records, folder)
            break


def written(records: Records, folder: Path) -> None:
    """The rows as tables, CSV and JSON lines, as a run and `select` write them."""
    names = list(dict.fromkeys(name for record in records for name in record.metadata))
    columns = {name: cells_of([record.metadata.get(name) for record in records]) for name in names}
    pyarrow.table({name_beside(name, VALUE_COLUMNS): pyarrow.array(cells) for name, cells in columns.items()})
    csv = folder / "written.csv"
    write_csv(csv, ["id", *names], zip((record.example_id for record in records), *columns.values(), strict=True))
    assert [row["id"] for row in read_csv(csv)] == [r.example_id for r in records] or "id" in names, "CSV lost an id"
    write_jsonl(folder / "written.jsonl", ({**record.metadata, **content(record)} for record in records))
    assert len(read_file(folder / "written.jsonl")) == len(records), "JSON lines that are no rows"


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
