"""Text to SQL as WikiSQL scores it: normalised match, logical form, and the result on the real table."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ghosttune.metrics.scoring import Corpus, Item, Metric, Score, of_hits
from ghosttune.metrics.tables import Tables
from ghosttune.registry import METRICS

AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<")

_STATEMENT = re.compile(
    rf"SELECT\s+(?:(?P<aggregate>{'|'.join(AGGREGATES[1:])})\s*\(\s*(?P<inner>.*?)\s*\)|(?P<column>.+?))"
    r"\s+FROM\s+(?P<table>\"[^\"]+\"|`[^`]+`|\S+)(?:\s+WHERE\s+(?P<conditions>.+))?",
    re.IGNORECASE | re.DOTALL,
)
_CONDITION = re.compile(
    r"\s*(?P<column>\"(?:[^\"]|\"\")+\"|`[^`]+`|.+?)\s*(?P<operator>[=><])\s*"
    r"(?P<value>'.*?'(?=\s+AND\s|\s*$)|\".*?\"(?=\s+AND\s|\s*$)|.+?)(?:\s+AND\s+|\s*$)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Query:
    """A question to one table, in WikiSQL's shape; names in lower case."""

    column: str
    aggregate: str = ""
    conditions: tuple[tuple[str, str, str], ...] = ()
    """(column, operator, value)."""

    @property
    def logical_form(self) -> tuple[str, str, frozenset[tuple[str, str, str]]]:
        """What WikiSQL compares: conditions in any order, values in lower case."""
        return (
            self.column,
            self.aggregate,
            frozenset((column, operator, value.lower()) for column, operator, value in self.conditions),
        )


def parse(text: str) -> Query | None:
    """The first statement of a text; None when it is not of WikiSQL's shape."""
    found = _STATEMENT.fullmatch(first_statement(text))
    if found is None:
        return None
    conditions = _conditions(found["conditions"] or "")
    if conditions is None:
        return None
    column = found["column"] if found["inner"] is None else found["inner"]
    return Query(_name(column), (found["aggregate"] or "").upper(), conditions)


def first_statement(text: str) -> str:
    """Up to the end of the line, or the first semicolon outside quotes."""
    lines = text.strip().splitlines()
    line = lines[0] if lines else ""
    ends = (at for at, letter in enumerate(line) if letter == ";" and line[:at].count("'") % 2 == 0)
    return line[: next(ends, len(line))].strip()


def _conditions(text: str) -> tuple[tuple[str, str, str], ...] | None:
    found: list[tuple[str, str, str]] = []
    place = 0
    while place < len(text):
        match = _CONDITION.match(text, place)
        if match is None or match.end() == place:
            return None
        found.append((_name(match["column"]), match["operator"], _unquoted(match["value"])))
        place = match.end()
    return tuple(found)


def _name(text: str) -> str:
    return " ".join(_unquoted(text).lower().split())


def _unquoted(text: str) -> str:
    text = text.strip()
    quote = text[:1]
    is_quoted = len(text) > 1 and quote == text[-1] and quote in "'\"`"
    return text[1:-1].replace(quote * 2, quote) if is_quoted else text


def normalised(text: str) -> str:
    """Lower case, single blanks, no quotes."""
    return " ".join(re.sub(r"[\"'`]", "", first_statement(text)).lower().split())


def _against_any(right: Callable[[str, str], bool], item: Item) -> bool:
    return any(right(item.output, reference) for reference in item.references)


@METRICS.register("sql_match", Metric("share of questions", "own, fixtures"))
def sql_match(corpus: Corpus) -> Score:
    """The first statement equals a reference in lower case, single blanks and without quotes."""
    return of_hits(
        [_against_any(lambda said, right: normalised(said) == normalised(right), item) for item in corpus.items]
    )


@METRICS.register("sql_logical_form", Metric("share of questions", "WikiSQL lib/query.py"))
def sql_logical_form(corpus: Corpus) -> Score:
    """Column, aggregate and the set of conditions equal; an answer that cannot be parsed is wrong, and counted."""
    hits = [_against_any(_same_form, item) for item in corpus.items]
    unparsed = sum(parse(item.output) is None for item in corpus.items)
    return of_hits(hits, unparsed=unparsed)


def _same_form(said: str, right: str) -> bool:
    query, gold = parse(said), parse(right)
    return query is not None and gold is not None and query.logical_form == gold.logical_form


@METRICS.register("sql_execution", Metric("share of questions", "WikiSQL lib/dbengine.py"))
def sql_execution(corpus: Corpus) -> Score:
    """The result on the row's own table (`table_id`, evaluate.tables) equals that of a reference."""
    tables = Tables.read(corpus.tables)
    hits: list[bool] = []
    failed: dict[str, int] = {}
    for item in corpus.items:
        table = tables.of(item.metadata)
        said, fault = table.result(parse(item.output))
        expected = [table.result(parse(reference)) for reference in item.references]
        table.require_answerable(expected, item.references)
        hits.append(not fault and any(said == result for result, wrong in expected if not wrong))
        if fault:
            failed[fault] = failed.get(fault, 0) + 1
    return of_hits(hits, failed=failed)
