"""The table of the rows of a stream that steps have read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ghosttune.run.directory import RunDir
from ghosttune.run.tables import Table, read_table
from ghosttune.training.instruments import Instrument
from ghosttune.training.streaming import StreamedRows

DRAWN_COLUMNS = {"step": "int64", "example_id": "string", "tokens": "int64", "cut": "bool", "columns": "string"}
"""One entry per row of a step: whether context of it was cut, and its own columns as JSON."""

ROWS_TOGETHER = 10_000
"""Rows of the table that are read at once."""


@dataclass(frozen=True)
class DrawnRow:
    """A row that steps have read."""

    example_id: str
    columns: Mapping[str, Any]
    tokens: int
    cut: bool


def drawn_rows(run: RunDir) -> list[DrawnRow]:
    """Every row of a stream that the run has read, once, in the order in which they came first."""
    rows: dict[str, DrawnRow] = {}
    names = list(DRAWN_COLUMNS)[1:]
    for batch in read_table(run, "drawn", names).to_batches(ROWS_TOGETHER):
        for example_id, tokens, cut, columns in zip(*(batch[name].to_pylist() for name in names), strict=True):
            if example_id not in rows:
                rows[example_id] = DrawnRow(example_id, json.loads(columns), tokens, cut)
    return list(rows.values())


class Drawn(Instrument):
    """Notes which rows each step read, and keeps in a checkpoint where the next one begins.

    Args:
        rows: of the run.
        table: of DRAWN_COLUMNS.
    """

    def __init__(self, rows: StreamedRows, table: Table):
        self.rows, self.table, self.tables = rows, table, (table,)
        self.step = 0

    def after_update(self, step: int) -> None:
        self.step, size = step, self.rows.rows_per_step
        places = range((step - 1) * size, step * size)
        rows = [self.rows[place] for place in places]
        beside = [self.rows.record(place) for place in places]
        self.table.append(
            step,
            {
                "step": [step] * size,
                "example_id": [row.example_id for row in rows],
                "tokens": [len(row) for row in rows],
                "cut": [cut for _, cut in beside],
                "columns": [json.dumps(columns, ensure_ascii=False, default=str) for columns, _ in beside],
            },
        )

    def counters(self) -> dict[str, Any]:
        return {"stream": {"step": self.step, **self.rows.state_at(self.step * self.rows.rows_per_step)}}

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        state = dict(counters["stream"])
        self.step = state.pop("step")
        self.rows.seek(state)
