"""Rows, splits and values of a run in one Parquet file, asked by DuckDB as docs/scaling.md asks them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import duckdb
import pytest
from test_streamed_runs import FULL, ROWS, data  # noqa: F401

import ghosttune
from ghosttune import train
from ghosttune.errors import DataError, InputError
from ghosttune.proving.specimens import short_run
from ghosttune.run.tables import read_table
from ghosttune.stages.runs import Run

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory) -> Run:
    """A run of thirty rows of two kinds, with a ledger."""
    rows = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [{"prompt": f"Où est {n}? " + "a " * (n % 4), "completion": f"là {n}", "kind": n % 2} for n in range(30)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = short_run(tiny_model, rows, measure__ledger__guide_every=2, data__guide__rows=4, evaluate__limit=0)
    return train(config, tmp_path_factory.mktemp("run") / "one")


def test_every_row_stands_there_once_with_what_the_tables_say(run, tmp_path):
    assert run.export_rows(tmp_path / "rows.parquet") == 30
    rows = duckdb.sql(f"SELECT * FROM '{tmp_path}/rows.parquet'").arrow().read_all().to_pylist()
    splits = dict(line.split(",") for line in run.folder.splits.read_text().splitlines()[1:])
    assert {row["example_id"]: row["split"] for row in rows} == splits
    known = {row["example_id"]: row for row in read_table(run.folder, "values").to_pylist()}
    for row in rows:
        messages = json.loads(row.pop("row"))["messages"]
        number = int(row["example_id"].split("-")[1])
        assert messages[1] == {"role": "assistant", "content": f"là {number}"}
        assert messages[0]["content"].startswith(f"Où est {number}?")
        split = row.pop("split")
        expected = known.get(row["example_id"], dict.fromkeys(row) | {"example_id": row["example_id"]})
        assert row == expected and (split == "train") == (row["example_id"] in known)


def test_the_queries_of_the_page_run_as_they_stand(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ghosttune.open_run(run.path).export_rows("rows.parquet")
    (tmp_path / "runs").symlink_to(run.path.parent)
    first, second = (duckdb.sql(query).fetchall() for query in QUERIES)
    values = sorted((row for row in run.values if row["standing"] is not None), key=lambda row: row["standing"])
    assert [line[0] for line in first] == [row["example_id"] for row in values[:10]]
    scored = [row for row in run.values if row["value"] is not None]
    for kind, count, total in second:
        own = [row["value"] for row in scored if row["kind"] == kind]
        assert len(own) == count and sum(own) == pytest.approx(total)


def test_what_stands_there_is_not_replaced_and_other_names_are_refused(run, tmp_path):
    (tmp_path / "rows.parquet").write_text("mine")
    with pytest.raises(InputError, match=r"rows\.parquet exists; give the name of a new file"):
        run.export_rows(tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"call the file rows\.parquet, not rows\.csv"):
        run.export_rows(tmp_path / "rows.csv")


def test_rows_that_changed_are_refused(run, tmp_path):
    path = Path(run.config.data.train.path or "")
    before = path.read_text()
    try:
        path.write_text(before.replace("a a", "b b"))
        with pytest.raises(DataError, match=r"rows\.jsonl changed since"):
            run.export_rows(tmp_path / "rows.parquet")
    finally:
        path.write_text(before)
    assert not (tmp_path / "rows.parquet").exists()


def test_streamed_rows_are_read_again(tiny_model, data, tmp_path):  # noqa: F811
    judges = {"data__dev__path": str(data / "dev.jsonl"), "data__guide__path": str(data / "guide.jsonl")}
    few = {"train__max_steps": 3, "train__eval_steps": 3, "evaluate__limit": 0}
    run = train(short_run(tiny_model, data / "part-*.jsonl", **FULL | judges | few), tmp_path / "run")
    assert run.export_rows(tmp_path / "rows.parquet") == 12 + 6 + 6 < sum(ROWS)
