"""What the training rows of a run are ordered by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ghosttune.config.schema import RunConfig
from ghosttune.data.encoding import RowFeatures
from ghosttune.data.files import read_file
from ghosttune.errors import DataError, RunError, listed, listed_faults
from ghosttune.models.reference import as_reference
from ghosttune.models.upstream import faults_of
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import Table, read_table
from ghosttune.stages.prepare import Prepared
from ghosttune.tasks.protocol import row_nats
from ghosttune.training.processes import gathered

TABLE = "order"
REFERENCE = "data.mixture.reference_losses"
COLUMNS = {"example_id": "string", "score": "float64"}

Scores = dict[str, float]
"""Id of a row -> what it is ordered by."""


def needs_the_model(config: RunConfig) -> bool:
    """Whether rows are ordered by what the untouched base says of them."""
    return config.train.order == "loss" and config.train.order_scores is None


def scores_of(prepared: Prepared, model: Any = None, run: RunDir | None = None) -> Scores | None:
    """The score of each training row, as the run has kept it or else from where it comes; None for a random order.

    `model` is that which trains, asked only where `needs_the_model`: one forward pass of every row. DataError or
    RunError where a row has no score.
    """
    train, rows = prepared.config.train, prepared.train.features
    if train.order == "random":
        return None
    if run is not None and run.table(TABLE).exists():
        table = read_table(run, TABLE, list(COLUMNS)).to_pydict()
        return dict(zip(table["example_id"], table["score"], strict=True))
    if train.order == "length":
        return _summed(rows, [len(row) for row in rows])
    if train.order_scores is not None:
        source = train.order_scores
        found = _of_a_run(source, train.order) if Path(source).is_dir() else _of_a_file("train.order_scores", source)
        return _known(f"train.order_scores {source}", found, rows)
    with faults_of(prepared.config.model.name), as_reference(model):
        nats = gathered(row_nats(prepared.task, model, prepared.encoder, rows))[0]
    losses, targets = _summed(rows, nats), _summed(rows, [row.targets for row in rows])
    return {name: loss / targets[name] for name, loss in losses.items()}


def by_place(prepared: Prepared, scores: Scores | None) -> list[float] | None:
    """A number for each training row, so that the smallest comes first."""
    if scores is None:
        return None
    sign = -1 if prepared.config.train.order_descending else 1
    return [sign * scores[row.example_id] for row in prepared.train.features]


def keep(run: RunDir, scores: Scores | None) -> None:
    """tables/order, once."""
    if scores is not None and not run.table(TABLE).exists():
        table = Table(run, TABLE, COLUMNS)
        table.append(0, {"example_id": list(scores), "score": list(scores.values())})
        table.flush()


def described(config: RunConfig, scores: Scores | None) -> dict[str, Any]:
    """What run.json says of the order; nothing for a random one."""
    if scores is None:
        return {}
    train, numbers = config.train, np.array(list(scores.values()))
    source = train.order_scores or ("tokens" if train.order == "length" else "the untouched base")
    return {
        "order": {
            "by": train.order,
            "first": "largest" if train.order_descending else "smallest",
            "scores": source,
            "rows": len(numbers),
            "smallest": float(numbers.min()),
            "largest": float(numbers.max()),
        }
    }


def reference_nats(source: str, rows: Sequence[RowFeatures]) -> list[float]:
    """The nats of each training row under the reference of `doremi`; DataError where one has no loss."""
    known = _known(f"{REFERENCE} {source}", _of_a_file(REFERENCE, source), rows)
    return [known[row.example_id] * row.targets for row in rows]


def _known(asked: str, found: Mapping[str, float | None], rows: Sequence[RowFeatures]) -> Scores:
    """What was found of these rows."""
    ids = dict.fromkeys(row.example_id for row in rows)
    without = [name for name in ids if found.get(name) is None]
    if without:
        raise DataError(
            f"{asked} has no score for {len(without)} of the {len(ids)} training rows: "
            f"{listed(without, 5)}; give one for each, or train only rows that have one (data.train.keep)"
        )
    return {name: float(found[name] or 0.0) for name in ids}


def _of_a_run(source: str, by: str) -> dict[str, float | None]:
    if by == "loss":
        raise RunError(
            f"train.order_scores {source} is a run, which keeps values of its rows and no losses; write them with "
            f"`ghosttune select {source} --by loss --above 0 --out losses.jsonl` and give that file"
        )
    table = read_table(RunDir(source).open(), "values", ["example_id", "standing"]).to_pydict()
    return dict(zip(table["example_id"], table["standing"], strict=True))


def _of_a_file(setting: str, source: str) -> dict[str, float | None]:
    if not Path(source).is_file():
        raise DataError(f"{setting} {source} is neither a file nor, where values are asked for, a run")
    rows = read_file(Path(source))
    wrong = [
        place
        for place, row in rows
        if not isinstance(row.get("example_id"), str) or not isinstance(row.get("score"), int | float)
    ]
    if wrong:
        raise DataError(listed_faults(f"{source}: rows without an example_id and a number as their score", wrong))
    return {row["example_id"]: row["score"] for _, row in rows}


def _summed(rows: Sequence[RowFeatures], numbers: Sequence[float]) -> Scores:
    """By row: windows of one row are added up."""
    sums: Scores = dict.fromkeys((row.example_id for row in rows), 0.0)
    for row, number in zip(rows, numbers, strict=True):
        sums[row.example_id] += number
    return sums
