"""Several sources as one: the rows of a mixture, each under the name of the source it came from."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ghosttune.config.sections.data import RowsSettings, SourceSettings
from ghosttune.data.records import TURN_FORMATS, Record, Records
from ghosttune.data.selecting import shares_of
from ghosttune.data.sources import Source, open_source
from ghosttune.errors import DataError, TooFewRows
from ghosttune.run.tables import name_beside

SOURCE = "source"
"""Column that names the source of a row."""

BETWEEN = "/"
"""Stands between the name of a source, which cannot hold it, and the id or place of a row in it."""


def source_of_row(example_id: str) -> str:
    """The source of a row of a mixture: what its id begins with."""
    return example_id.partition(BETWEEN)[0]


def open_data(settings: SourceSettings, formats: Sequence[str] = TURN_FORMATS, without: Collection[str] = ()) -> Source:
    """The records of `data.train`: of its source, or of all that it mixes; DataError as `open_source` raises it."""
    if settings.sources is None:
        return open_source(settings, formats, without)
    return mixed(settings.sources, formats, without)


def mixed(settings: Mapping[str, RowsSettings], formats: Sequence[str], without: Collection[str] = ()) -> Source:
    """The records of all sources, one after another; one DataError says what is wrong with each of them."""
    parts: dict[str, Source] = {}
    faults: dict[str, DataError] = {}
    for name, one in settings.items():
        own = f"{name}{BETWEEN}"
        try:
            parts[name] = open_source(
                one, formats, {place.removeprefix(own) for place in without if place.startswith(own)}
            )
        except DataError as error:
            faults[name] = error
    if faults:
        raise _of_all(faults)
    kinds = {name: part.row_format for name, part in parts.items()}
    if len(set(kinds.values())) > 1 and not set(kinds.values()) <= set(TURN_FORMATS):
        found = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
        raise DataError(f"the sources are of formats that one run does not read together: {found}; name one format")
    return Source(
        _joined({name: part.records for name, part in parts.items()}),
        "messages" if "messages" in kinds.values() else next(iter(kinds.values())),
        {file: digest for part in parts.values() for file, digest in part.fingerprints.items()},
        {f"{name}: {reason}": count for name, part in parts.items() for reason, count in part.dropped.items()},
        _Blocks(parts) if any(part.in_blocks for part in parts.values()) else None,
        parts,
    )


def rows_in_an_epoch(settings: SourceSettings, rows: Mapping[str, int]) -> dict[str, int] | None:
    """How many rows of each source an epoch has, of the `rows` that each has; None where it has every row once.

    By weight or temperature an epoch has as many rows as all sources together, and the shares that are no whole numbers
    are rounded by largest remainder.
    """
    sources, temperature = settings.sources or {}, settings.temperature
    if temperature is not None:
        logs = {name: math.log(count) / temperature if count else -math.inf for name, count in rows.items()}
        most = max(logs.values())
        return shares_of({name: math.exp(log - most) for name, log in logs.items()}, sum(rows.values()))
    if any(source.weight is not None for source in sources.values()):
        return shares_of({name: source.weight or 0.0 for name, source in sources.items()}, sum(rows.values()))
    if any(source.repeat > 1 for source in sources.values()):
        return {name: source.repeat * rows[name] for name, source in sources.items()}
    return None


class _Blocks:
    """The records of a mixture that holds a corpus, from the tokenizer and the length of a block."""

    def __init__(self, parts: Mapping[str, Source]):
        self.parts = parts

    def __call__(self, tokenizer: Any, length: int) -> Records:
        return _joined(
            {
                name: part.records if part.in_blocks is None else part.in_blocks(tokenizer, length)
                for name, part in self.parts.items()
            }
        )


def _of_all(faults: Mapping[str, DataError]) -> DataError:
    """The errors of all sources as one; of too few rows where each of them is."""
    kind = TooFewRows if all(isinstance(error, TooFewRows) for error in faults.values()) else DataError
    rows = {f"{name}{BETWEEN}{place}": why for name, error in faults.items() for place, why in error.rows.items()}
    return kind("\n".join(f"source {name}: {error}" for name, error in faults.items()), rows)


def _joined(parts: Mapping[str, Records]) -> Records:
    return Records.of(_named(record, name) for name, records in parts.items() for record in records)


def _named(record: Record, name: str) -> Record:
    """The record under the name of its source; a column `source` of its own is `row_source`."""
    own = {name_beside(column, (SOURCE,)): value for column, value in record.metadata.items()}
    example_id, place = (f"{name}{BETWEEN}{text}" for text in (record.example_id, record.place))
    return replace(record, example_id=example_id, place=place, metadata={SOURCE: name, **own})
