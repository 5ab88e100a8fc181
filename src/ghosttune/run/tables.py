"""Tables that grow while a run goes on: folders of Parquet parts, because one file cannot be appended crash-safely.

A part is named after its last step. Resuming from a checkpoint removes the parts beyond it; what they held is done
again and written again, so that no row is lost and none is there twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttune.errors import RunError
from ghosttune.run.directory import RunDir, write_file

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_IN_MEMORY = 200_000
"""A part is written when so many rows wait: bounds memory between two checkpoints."""

VALUE_COLUMNS = ("example_id", "value", "credit", "standing", "steps_seen", "tokens")
"""Columns of every tables/values that are ours."""

PARTS = ("chosen", "rejected")
"""Parts of rows that are the same at every visit, so that their values add up over the run."""

OUR_COLUMNS = (*VALUE_COLUMNS, *(f"{kind}_{part}" for kind in ("value", "credit") for part in PARTS))
"""With those that tables of pairs have beside them; all others came with the rows."""

ROW_TERMS = {
    "rows": "rows",
    "rows_left_out": "rows, in what is left out",
    "carried_momentum": "momentum of earlier rows",
    "weight_decay": "weight decay",
}
"""Terms of the account by rows in `run.json` -> what they are called; `carried_momentum` is of earlier versions, whose
`rows` held what a row did in its own step only."""

PART = "part-{:09d}.parquet"


def name_beside(name: str, ours: Collection[str]) -> str:
    """What a row's own column is called beside columns of ours: `row_` stands before a name that is taken.

    It also stands before a name that already looks like that (`row_value`), so that no two columns become one, and one
    `row_` less gives the own name back.
    """
    bare = name
    while bare.startswith("row_"):
        bare = bare.removeprefix("row_")
    return f"row_{name}" if bare in ours else name


class Table:
    """Appends to one table of a run.

    Args:
        run: the run directory.
        name: of the table, without suffix.
        columns: name to Arrow type name, such as `int64`, `string`, `float64`; every one may hold nulls.
    """

    def __init__(self, run: RunDir, name: str, columns: Mapping[str, str]):
        import pyarrow as pa

        self.folder = run.table(name)
        self.schema = pa.schema([(column, pa.type_for_alias(kind)) for column, kind in columns.items()])
        self.waiting: list[pa.Table] = []
        self.last_step = 0

    def append(self, step: int, columns: Mapping[str, Sequence[Any] | Any]) -> None:
        """Rows of one step, column by column; written when enough wait, or with `flush`."""
        import pyarrow as pa

        table = pa.table({name: pa.array(columns[name], self.schema.field(name).type) for name in self.schema.names})
        self.waiting.append(table)
        self.last_step = step
        if sum(len(part) for part in self.waiting) >= ROWS_IN_MEMORY:
            self.flush()

    def flush(self) -> None:
        """Writes what waits as one part."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.waiting:
            return
        rows = pa.concat_tables(self.waiting)
        write_file(self.folder / PART.format(self.last_step), lambda path: pq.write_table(rows, path))
        self.waiting = []

    def forget_after(self, step: int) -> None:
        """Removes the parts of steps that a resumed run will do again."""
        for part in _parts(self.folder):
            if _last_step(part) > step:
                part.unlink()


def read_table(run: RunDir, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All parts of a table, in the order of their steps; RunError when the run has none, or one is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = run.table(name)
    parts = _parts(folder)
    if not parts:
        raise RunError(f"{run.path} has no table {name}: it was not measured (`measure` in {run.config.name})")
    try:
        return pa.concat_tables([pq.read_table(part, columns=list(columns) if columns else None) for part in parts])
    except (OSError, pa.ArrowInvalid) as error:
        raise RunError(f"{folder} is damaged: {str(error).splitlines()[0]}; resume or repeat the run") from error


def table_columns(run: RunDir, name: str) -> list[str]:
    """Names of the columns of a table; none where the run does not have it."""
    import pyarrow.parquet as pq

    parts = _parts(run.table(name))
    return pq.read_schema(parts[0]).names if parts else []


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(PART.split("{")[0] + "*")) if folder.is_dir() else []


def _last_step(part: Path) -> int:
    return int(part.stem.rpartition("-")[2])
