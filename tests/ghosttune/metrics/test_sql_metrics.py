"""SQL metrics against WikiSQL's own predictions and answers, and against what a model might say."""

from __future__ import annotations

import gzip
import json
import sqlite3

import pytest

from ghosttune.errors import DataError
from ghosttune.metrics import tables
from ghosttune.metrics.scoring import Corpus, Item
from ghosttune.metrics.sql import AGGREGATES, OPERATORS, Query, normalised, parse
from ghosttune.metrics.tables import Table, Tables
from ghosttune.registry import METRICS


def json_lines(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def as_text(sql, header):
    """A WikiSQL query as SQL."""
    aggregate, column = AGGREGATES[sql["agg"]], header[sql["sel"]]
    conditions = [f"{header[at]} {OPERATORS[kind]} '{value}'" for at, kind, value in sql["conds"]]
    selected = f"{aggregate}({column})" if aggregate else column
    return f"SELECT {selected} FROM table" + (f" WHERE {' AND '.join(conditions)}" if conditions else "")


def test_logical_form_accuracy_of_the_official_example_predictions(shared):
    """3807 of 8421, by lib/query.py; the dev tables' headers do not matter, so columns are called by number."""
    folder = shared / "data/wikisql"
    header = [f"column {at}" for at in range(60)]
    gold = [as_text(row["sql"], header) for row in json_lines(folder / "dev.jsonl.gz")]
    predictions = json_lines(folder / "example_pred_dev.jsonl.gz")
    said = [as_text(row["query"], header) if row.get("query") else "" for row in predictions]
    items = [Item(output, (right,)) for output, right in zip(said, gold, strict=True)]
    found = METRICS["sql_logical_form"].build(Corpus(items))
    assert int(found.hits.sum()) == 3807 and found.n == 8421
    assert METRICS["sql_logical_form"].build(Corpus([Item(right, (right,)) for right in gold])).value == 1.0


def test_every_gold_query_gives_the_published_answer_on_its_real_table(shared):
    folder = shared / "data/wikisql"
    known = Tables.read(folder / "exec_dev.tables.jsonl.gz")
    headers = {row["id"]: row["header"] for row in json_lines(folder / "exec_dev.tables.jsonl.gz")}
    rows = json_lines(folder / "exec_dev.jsonl.gz")
    wrong = [
        row["question"]
        for row in rows
        if known.of(row).result(parse(as_text(row["sql"], headers[row["table_id"]]))) != (row["answer"], "")
    ]
    assert len(rows) == 1000 and wrong == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT Name FROM table", Query("name")),
        (
            "select  count( Home  Team ) from t where Year > 1999;",
            Query("home team", "COUNT", (("year", ">", "1999"),)),
        ),
        ("SELECT a FROM table WHERE b = 'x AND y' AND c < 3", Query("a", "", (("b", "=", "x AND y"), ("c", "<", "3")))),
        (
            "SELECT a FROM table WHERE b = 'a one; two' AND c = 'butler's'",
            Query("a", "", (("b", "=", "a one; two"), ("c", "=", "butler's"))),
        ),
        ('SELECT "a b" FROM table_1_2 WHERE `c d` = "e"', Query("a b", "", (("c d", "=", "e"),))),
        ("SELECT MAX(Pos. (2009)) FROM table", Query("pos. (2009)", "MAX")),
        ("SELECT a FROM table\nSELECT b FROM table", Query("a")),
        ("SELECT a FROM table; DROP TABLE t", Query("a")),
        ("SELECT £ FROM table WHERE café = 'Ünal'", Query("£", "", (("café", "=", "Ünal"),))),
    ],
)
def test_parsing(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "   \n", "the answer is 5", "SELECT FROM", "DROP TABLE t", "SELECT a FROM t WHERE b"]
)
def test_what_is_no_query_is_not_parsed(text):
    assert parse(text) is None


def test_matching_is_of_the_first_statement_without_case_blanks_and_quotes():
    assert normalised("  SELECT  a FROM t WHERE b = 'X';\nmore") == "select a from t where b = x"
    items = [
        Item("select A from T where b = x; and then", ("SELECT a FROM t WHERE b = 'X'",)),
        Item("no", ("SELECT a",)),
    ]
    assert METRICS["sql_match"].build(Corpus(items)).rows == [1.0, 0.0]


def test_logical_form_does_not_mind_the_order_of_conditions():
    items = [
        Item("SELECT a FROM t WHERE b = 'X' AND c > 1", ("SELECT a FROM t WHERE c > 1 AND b = 'x'",)),
        Item("SELECT a FROM t WHERE b = 'x'", ("SELECT a FROM t WHERE c = 'x'",)),
        Item("nothing", ("SELECT a FROM t",)),
    ]
    found = METRICS["sql_logical_form"].build(Corpus(items))
    assert found.rows == [1.0, 0.0, 0.0] and found.details["unparsed"] == 1


@pytest.fixture
def towns(tmp_path):
    fields = {
        "id": "1-1",
        "header": ["Town", "People", "Town"],
        "types": ["text", "real", "text"],
        "rows": [["Ulm", "126,000", "a"], ["Gera", 93000, "b"], ["Bonn", "330000 (2020)", "c"]],
    }
    path = tmp_path / "towns.tables.jsonl"
    path.write_text(json.dumps(fields) + "\n")
    return path


def executed(said, gold, path, **metadata):
    items = [Item(said, (gold,), {"table_id": "1-1"} | metadata)]
    return METRICS["sql_execution"].build(Corpus(items, tables=path))


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("SELECT Town FROM table WHERE People > 100000", True),
        ("SELECT town FROM table WHERE People > '100,000'", True),
        ("SELECT MAX(Town) FROM table", False),
        ("SELECT Village FROM table", False),
        ("SELECT Town FROM table WHERE People > 'many'", False),
        ("say what", False),
    ],
)
def test_execution_compares_results(said, right, towns):
    found = executed(said, "SELECT Town FROM table WHERE People > 99999", towns)
    assert found.rows == [float(right)]


def test_why_queries_failed_is_counted(towns):
    found = executed("SELECT Village FROM table", "SELECT Town FROM table", towns)
    assert found.details["failed"] == {"unknown column": 1}


def test_tables_that_do_not_belong_to_the_rows_are_refused(towns, tmp_path):
    with pytest.raises(DataError, match="unknown column"):
        executed("SELECT Town FROM table", "SELECT River FROM table", towns)
    with pytest.raises(DataError, match="2-2 is not in"):
        executed("SELECT Town FROM table", "SELECT Town FROM table", towns, table_id="2-2")
    with pytest.raises(DataError, match=r"evaluate\.tables"):
        executed("SELECT Town FROM table", "SELECT Town FROM table", None)
    with pytest.raises(DataError, match="holds no"):
        executed("SELECT Town FROM table", "SELECT Town FROM table", tmp_path / "nowhere.jsonl")
    (tmp_path / "bad.tables.jsonl").write_text(
        '{"id": "1-1", "header": ["a"], "types": ["text"], "rows": [["x", "y"]]}'
    )
    with pytest.raises(DataError, match="not as many cells"):
        executed("SELECT Town FROM table", "SELECT Town FROM table", tmp_path / "bad.tables.jsonl")


def test_tables_are_read_only_and_limited(towns, monkeypatch):
    table = Tables.read(towns).of({"table_id": "1-1"})
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        table._database.execute("DELETE FROM t")
    monkeypatch.setattr(tables, "ROWS", 2)
    assert table.result(Query("town")) == ([], "too many rows")
    many = {"id": "x", "header": ["a"], "types": ["real"], "rows": [[n] for n in range(50_000)]}
    monkeypatch.setattr(tables, "SECONDS", 0.0)
    assert Table(many).result(Query("a", "SUM")) == ([], "too slow")
