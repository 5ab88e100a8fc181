"""A logical form written as SQL and read back is the same form, for every real row and for names made to confuse."""

from __future__ import annotations

import functools
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import shared

from ghosttune.data.files import read_file
from ghosttune.data.sql import AGGREGATES, OPERATORS, SqlFault, column_names, logical_form, sql_text

NAMES = st.one_of(
    st.sampled_from(
        ["", '"', '""', "a b", "MAX", "max(", "FROM", "table", "WHERE", "AND", "1", "Größe", "a'b", "x AND y"]
    ),
    st.text(max_size=8),
)
VALUES = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", "'", "''", "' AND a = '", "5", '"', "O'Neil (2-1)", "\n"]),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
)


@st.composite
def questions(draw: st.DrawFn) -> tuple[dict, list[str]]:
    header = draw(st.lists(NAMES, min_size=1, max_size=5))
    column = st.integers(0, len(header) - 1)
    operator = st.integers(0, len(OPERATORS) - 1)
    conditions = draw(st.lists(st.tuples(column, operator, VALUES).map(list), max_size=4))
    return {"sel": draw(column), "agg": draw(st.integers(0, 5)), "conds": conditions}, header


@settings(max_examples=300, deadline=None, derandomize=True)
@given(questions())
def test_any_form_over_any_names_comes_back(question: tuple[dict, list[str]]) -> None:
    form, header = question
    back = logical_form(sql_text(form, header), header)
    assert back == form
    assert [type(value) for *_, value in back["conds"]] == [type(value) for *_, value in form["conds"]]


@functools.cache
def headers(part: str) -> dict[str, list[str]]:
    tables = read_file(shared("data", "wikisql", f"{part}.tables.jsonl.gz"))
    return {fields["id"]: fields["header"] for _, fields in tables}


@pytest.mark.parametrize(
    ("part", "rows"),
    [("exec_train", 7000), ("exec_dev", 1000), ("exec_test", 1000), ("dev", 8421), ("test", 15878)],
)
def test_every_real_form_comes_back(part: str, rows: int) -> None:
    """The tables of dev and test are not at hand: their columns get names made here."""
    found = read_file(shared("data", "wikisql", f"{part}.jsonl.gz"))
    made = [f"Column (no. {number})" for number in range(50)]
    for _, fields in found:
        header = headers(part)[fields["table_id"]] if part.startswith("exec") else made
        back = logical_form(sql_text(fields["sql"], header), header)
        assert back == fields["sql"]
        assert repr(back["conds"]) == repr(fields["sql"]["conds"]), "3, 3.0 and '3' are told apart"
    assert len(found) == rows


def test_how_it_looks() -> None:
    form = {"sel": 1, "agg": 3, "conds": [[0, 0, "O'Neil"], [2, 1, 1990], [1, 2, 0.5]]}
    header = ["Player", "Home team", "Year"]
    said = """SELECT COUNT("Home team") FROM table WHERE Player = 'O''Neil' AND Year > 1990 AND "Home team" < 0.5"""
    assert sql_text(form, header) == said
    loose = said.replace("SELECT COUNT(", "select  count ( ").replace(" FROM table WHERE", "\nfrom TABLE where")
    assert logical_form(loose, header) == form
    assert sql_text({"sel": 0, "agg": 0, "conds": []}, header) == "SELECT Player FROM table"


def test_columns_of_one_name_are_told_apart() -> None:
    header = ["Points", "Points", "Points 2", "Points"]
    assert column_names(header) == ["Points", "Points 2", "Points 2 2", "Points 3"]
    for column in range(4):
        form = {"sel": column, "agg": 0, "conds": []}
        assert logical_form(sql_text(form, header), header) == form


def test_sqlite_reads_it_as_we_do() -> None:
    """An independent reader: the text, with a quoted table name, is the query that SQLite executes."""
    header = ["Player", "Home team", "select"]
    base = sqlite3.connect(":memory:")
    base.execute('CREATE TABLE "table" (Player, "Home team", "select")')
    base.executemany('INSERT INTO "table" VALUES (?, ?, ?)', [("Ann", "It's", 3), ("Bob", "Red", 5), ("Cy", "Red", 7)])
    for form, expected in [
        ({"sel": 0, "agg": 0, "conds": [[1, 0, "It's"]]}, [("Ann",)]),
        ({"sel": 0, "agg": 3, "conds": [[1, 0, "Red"]]}, [(2,)]),
        ({"sel": 0, "agg": 1, "conds": []}, [("Cy",)]),
    ]:
        said = sql_text(form, header).replace("FROM table", 'FROM "table"')
        assert base.execute(said).fetchall() == expected
    base.close()


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("", "ends where SELECT should stand"),
        ("I think it is 5", "has 'I' where SELECT should stand"),
        ("SELECT a", "ends where FROM should stand"),
        ("SELECT b FROM table", "names a column 'b' that the table has not"),
        ("SELECT MEDIAN(a) FROM table", "knows no aggregate 'MEDIAN'"),
        ("SELECT MAX(a FROM table", "lacks )"),
        ("SELECT a FROM other", "has 'other' where table should stand"),
        ("SELECT a FROM table WHERE", "ends where a column should stand"),
        ("SELECT a FROM table WHERE a = ", "ends where a value should stand"),
        ("SELECT a FROM table WHERE a = b", "has 'b' where a value should stand"),
        ("SELECT a FROM table WHERE a LIKE 'b'", "has 'LIKE' where an operator should stand"),
        ("SELECT a FROM table WHERE a = 'b", 'cannot be read from " \'b" on'),
        ("SELECT a FROM table; DROP TABLE x", "cannot be read from '; DROP TABLE x' on"),
        ("SELECT a FROM table WHERE a = 1 OR a = 2", "has 'OR' where AND should stand"),
    ],
)
def test_what_is_no_query_says_where(said: str, fault: str) -> None:
    with pytest.raises(SqlFault) as caught:
        logical_form(said, ["a"])
    assert str(caught.value) == fault


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"sel": 5, "agg": 0, "conds": []},
        {"sel": -1, "agg": 0, "conds": []},
        {"sel": 0, "agg": len(AGGREGATES), "conds": []},
        {"sel": 0, "agg": 0, "conds": [[0, 0]]},
        {"sel": 0, "agg": 0, "conds": [[0, 0, None]]},
        {"sel": 0, "agg": 0, "conds": [[0, 0, True]]},
        {"sel": "0", "agg": 0, "conds": []},
        {"sel": 0, "agg": 0, "conds": None},
        None,
    ],
)
def test_what_is_no_form_is_refused(form: dict) -> None:
    with pytest.raises(SqlFault, match="no logical form over 1 columns"):
        sql_text(form, ["a"])
