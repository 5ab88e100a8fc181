"""WikiSQL 1.1: questions about tables and the query that answers each (Zhong et al. 2017, arXiv 1709.00103).

Rows keep the logical form (`sql`) and their table's `header` and `types`; `tables` gives the tables with their cells,
in which a query can be executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghosttune.data.dataset import KnownDataset, texts
from ghosttune.data.fetching import KnownFile, stored
from ghosttune.data.files import Fields, Placed, read_file
from ghosttune.data.records import RowFault
from ghosttune.data.sources import Source
from ghosttune.data.sql import SqlFault, column_names, quoted, sql_text
from ghosttune.data.stored import Each
from ghosttune.errors import DataError
from ghosttune.registry import DATASETS

REVISION = "a9e07caff1472ed242bf101c0b6fc6cd5a6fbabf"
ARCHIVE = KnownFile(
    "data.tar.bz2",
    f"https://raw.githubusercontent.com/salesforce/WikiSQL/{REVISION}/data.tar.bz2",
    sha256="755c728ab188e364575705c8641f3fafd86fb089cb8b08e8c03f01832aae0881",
)


@dataclass(frozen=True)
class Table:
    """A table of Wikipedia; cells of `real` columns are numbers where they could be read as such."""

    header: list[str]
    types: list[str]
    """`text` or `real`, one per column."""
    rows: list[list[Any]]


def read_questions(path: Path) -> Sequence[Placed]:
    """The questions of a file, each with the header and types of its table, which stands in the file beside it."""
    described = read_tables(tables_file(path))
    rows = read_file(path)
    lacking = sorted({str(fields.get("table_id")) for _, fields in rows} - described.keys())
    if lacking:
        raise DataError(f"{path}: {len(lacking)} tables are not in {tables_file(path).name}, {lacking[0]} among them")
    return Each(rows, lambda row: (row[0], row[1] | _columns(described[row[1]["table_id"]])))


def _columns(table: Table) -> Fields:
    return {"header": table.header, "types": table.types}


def tables_file(path: Path) -> Path:
    """The file with the tables of a file of questions; DataError when it does not lie beside it."""
    name = path.name.removesuffix(".gz").rpartition(".")[0] + ".tables.jsonl"
    found = stored(path.parent, name)
    if found is None:
        raise DataError(f"{path.parent} lacks {name}, the tables of {path.name} (may be .gz)")
    return found


def read_tables(path: Path) -> dict[str, Table]:
    """Table id -> table; DataError names the first row that is none."""
    tables: dict[str, Table] = {}
    for place, fields in read_file(path):
        lacking = [name for name in ("id", "header", "types", "rows") if name not in fields]
        if lacking:
            raise DataError(f"{path}: {place} lacks {', '.join(lacking)}")
        tables[fields["id"]] = Table(fields["header"], fields["types"], fields["rows"])
    return tables


def tables(path: str | None) -> dict[str, Table]:
    """Every table that the rows of this `data.train.path` ask about, by its id."""
    found: dict[str, Table] = {}
    for _, file, _ in WIKISQL.files_at("wikisql", path):
        found |= read_tables(tables_file(file))
    return found


def with_query(fields: Fields) -> Fields:
    """The row with its columns and its query as text."""
    texts(fields, "question", "table_id")
    try:
        query = sql_text(fields["sql"], fields["header"])
    except SqlFault as fault:
        raise RowFault(str(fault)) from fault
    columns = ", ".join(quoted(name) for name in column_names(fields["header"]))
    return fields | {"columns": columns, "query": query}


def _file(split: str, rows: int) -> KnownFile:
    def packed(name: str, rows: int, **others: Any) -> KnownFile:
        return KnownFile(name, ARCHIVE.url, rows, archive=ARCHIVE, member=f"data/{name}", **others)

    beside = packed(f"{split}.tables.jsonl", TABLES[split])
    return packed(f"{split}.jsonl", rows, read=read_questions, beside=(beside,))


TABLES = {"train": 18585, "dev": 2716, "test": 5230}

WIKISQL = KnownDataset(
    title="WikiSQL 1.1",
    source="https://github.com/salesforce/WikiSQL",
    revision=REVISION,
    licence="BSD 3-clause",
    files={"train": _file("train", 56355), "dev": _file("dev", 8421), "test": _file("test", 15878)},
    columns=("question", "table_id", "sql", "header", "types"),
    kept=("phase",),
    group="table_id",
    prompt=(
        "### Instruction: Generate SQL from question and table.\n\n"
        "### Table:\n{columns}\n\n### Question:\n{question}\n\n### SQL:\n"
    ),
    wording={"columns": "the columns as the query names them", "query": "the logical form as SQL"},
    completion="{query}",
    metrics=("sql_logical_form", "sql_execution", "sql_match"),
    anchor="GPT-3 175B with LoRA: logical form accuracy 74.0 (arXiv 2106.09685, table 4)",
    clean=with_query,
    also_read=lambda file: [tables_file(file)],
)


@DATASETS.register("wikisql", WIKISQL)
def wikisql(path: str | None) -> Source:
    """Questions about a table, and the query that answers each."""
    return WIKISQL.open("wikisql", path)
