"""Rendered rows with every token marked as trained or not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from ghosttune.config.schema import RunConfig
from ghosttune.data.encoding import Encoder, RowFeatures
from ghosttune.data.mixing import source_of_row
from ghosttune.data.records import Record
from ghosttune.data.token_texts import token_texts
from ghosttune.stages.ordering import by_place, needs_the_model, scores_of
from ghosttune.stages.prepare import Prepared, prepare


@dataclass(frozen=True)
class PreviewedRow:
    """One training row, or one sequence of it, token by token."""

    example_id: str
    tokens: list[tuple[str, bool]]
    """(the token's text, whether it is trained)."""
    metadata: dict[str, object]
    target: str = ""
    """What is predicted beside the tokens, such as a label."""
    part: str = ""
    """Which part of the row it is, where a row is several sequences."""
    note: str = ""
    """What the row holds and the tokens do not."""
    drawn: str = ""
    """Of a mixture: how much of an epoch comes from the row's source."""
    score: float | None = None
    """What it is ordered by; None where rows are drawn."""


def preview(config: RunConfig, rows: int = 3) -> list[PreviewedRow]:
    """Training rows exactly as training sees them, after template, truncation and masking.

    The first ones of the data, or those that train first where `train.order` says which.
    """
    prepared = prepare(config)
    tokenizer = prepared.encoder.tokenizer
    scores = scores_of(prepared, _base(prepared) if needs_the_model(prepared.config) else None)
    first = _first(prepared, rows) if scores is None else _by_score(prepared, scores, rows)
    wanted = {features.example_id for features in first}
    records = {row.example_id: row for row in prepared.train_records if row.example_id in wanted}
    shown = []
    for features in first:
        record, score = records[features.example_id], scores[features.example_id] if scores else None
        for row in prepared.encoder.marked(features):
            tokens = list(zip(token_texts(tokenizer, row.input_ids), row.trained, strict=True))
            note, drawn = _note(prepared.encoder, record), _drawn(prepared, features)
            shown.append(
                PreviewedRow(record.example_id, tokens, record.metadata, row.target, row.part, note, drawn, score)
            )
    return shown


def _base(prepared: Prepared) -> Any:
    from ghosttune.stages.model import adapted_model

    return adapted_model(prepared).model


def _note(encoder: Any, record: Record) -> str:
    unsaid = encoder.unsaid(record) if isinstance(encoder, Encoder) else 0
    return f"the chat template leaves out the reasoning of {unsaid} of its answers" if unsaid else ""


def _drawn(prepared: Prepared, row: RowFeatures) -> str:
    if not prepared.sources:
        return ""
    name, learnt = source_of_row(row.example_id), prepared.config.data.mixture
    if learnt.by is not None:
        share = prepared.sources[name]["epoch"] / prepared.rows_in_an_epoch
        return (
            f"{share:.1%} of the rows of the first {learnt.every} updates are of {name}, then as learnt by {learnt.by}"
        )
    return f"{prepared.sources[name]['epoch']} of {prepared.rows_in_an_epoch} rows of an epoch are of {name}"


def _first(prepared: Prepared, rows: int) -> list[RowFeatures]:
    """The first rows; of a mixture the first of each source, then the second of each, and so on."""
    if not prepared.sources:
        return list(prepared.train.features[:rows])
    ranks: Counter[str] = Counter()
    order: list[tuple[int, int]] = []
    for position, row in enumerate(prepared.train.features):
        source = source_of_row(row.example_id)
        if ranks[source] < rows:
            order.append((ranks[source], position))
        ranks[source] += 1
    return [prepared.train.features[position] for _, position in sorted(order)[:rows]]


def _by_score(prepared: Prepared, scores: dict[str, float], rows: int) -> list[RowFeatures]:
    order = replace(prepared, scores=by_place(prepared, scores)).order()
    return [prepared.train.features[place] for place in islice(order, rows)]
