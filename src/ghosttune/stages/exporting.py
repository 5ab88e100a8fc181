"""A run's rows, splits, values and ids in one Parquet file, for whoever asks questions in SQL or on many machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttune.config.schema import RunConfig
from ghosttune.data.records import Record
from ghosttune.data.sources import Source
from ghosttune.data.streaming import Cursor
from ghosttune.errors import InputError
from ghosttune.models.loading import load_tokenizer
from ghosttune.run.directory import RunDir, read_csv, write_file
from ghosttune.run.tables import name_beside, read_table
from ghosttune.stages.prepare import dev_source_of, guide_source_of, require_same_data, source_of

if TYPE_CHECKING:
    import pyarrow as pa

FIRST_COLUMNS = ("example_id", "split", "row")
ROWS_TOGETHER = 10_000
"""Rows of a row group: what is in memory at once besides the values."""


def export_rows(run: RunDir, config: RunConfig, out: Path) -> int:
    """Writes every row of the run to a Parquet file and returns how many there are.

    Columns: `example_id`, `split` (train, dev, guide), `row` (JSON: the messages, or the columns that the task reads),
    and those of tables/values, which are null for rows that did not train; without a ledger there are none of these.
    The sources are read once more, all shards of a stream. Raises InputError when the file exists or is called
    otherwise, DataError when the data changed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if out.suffix != ".parquet":
        raise InputError(f"rows are written as Parquet: call the file {out.stem}.parquet, not {out.name}")
    if out.exists():
        raise InputError(f"{out} exists; give the name of a new file")
    splits = {line["example_id"]: line["split"] for line in read_csv(run.splits)}
    values = read_table(run, "values") if run.table("values").exists() else None
    tokenizer = load_tokenizer(config.model)
    sources = [source_of(config, tokenizer), dev_source_of(config, tokenizer), guide_source_of(config, tokenizer)]
    found = [source for source in sources if source is not None]
    require_same_data(run, {name: digest for source in found for name, digest in source.fingerprints.items()})
    rows = _cells(chain.from_iterable(map(_records, found)), splits, tokenizer)
    places = {} if values is None else {name: n for n, name in enumerate(values["example_id"].to_pylist())}
    written = 0

    def fill(partial: Path) -> None:
        nonlocal written
        schema = pa.schema([(name, pa.string()) for name in FIRST_COLUMNS])
        beside = [] if values is None else [_named(field) for field in values.schema if field.name != "example_id"]
        with pq.ParquetWriter(partial, pa.schema([*schema, *beside])) as writer:
            while some := list(islice(rows, ROWS_TOGETHER)):
                table = pa.table(list(map(pa.array, zip(*some, strict=True))), schema=schema)
                own = [places.get(example_id) for example_id, _, _ in some]
                taken = (
                    []
                    if values is None
                    else values.drop_columns(["example_id"]).take(pa.array(own, pa.int64())).columns
                )
                for field, column in zip(beside, taken, strict=True):
                    table = table.append_column(field, column)
                writer.write_table(table)
                written += len(table)

    write_file(out, fill)
    return written


def _named(field: pa.Field) -> pa.Field:
    return field.with_name(name_beside(field.name, FIRST_COLUMNS))


def _records(source: Source) -> Iterator[Record]:
    """All records; of a stream, those of a pass."""
    if source.stream is None:
        yield from source.records
        return
    cursor = Cursor()
    while cursor.passes == 0:
        records, cursor = source.stream.window(cursor)
        yield from records


def _cells(records: Iterable[Record], splits: Mapping[str, str], tokenizer: Any) -> Iterator[tuple[str, str, str]]:
    """(id, split, row as JSON) of the records that the run has used."""
    for record in records:
        if record.example_id in splits:
            yield record.example_id, splits[record.example_id], _as_json(record, tokenizer)


def _as_json(record: Record, tokenizer: Any) -> str:
    if record.tokens is not None:
        return json.dumps({"text": tokenizer.decode(record.tokens)}, ensure_ascii=False)
    said = {"messages": [turn.message for turn in record.turns]} if record.turns else {}
    return json.dumps(said | record.columns, ensure_ascii=False, default=str)
