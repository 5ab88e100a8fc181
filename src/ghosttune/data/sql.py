"""WikiSQL's logical forms as SQL text and back.

A form is {"sel": column, "agg": aggregate, "conds": [[column, operator, value], …]}, all but the value by number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<", "OP")

Form = dict[str, Any]

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN = re.compile(
    r"""\s*(?: "(?P<name>(?:[^"]|"")*)" | '(?P<text>(?:[^']|'')*)' | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?) | (?P<mark>[()=<>]) )""",
    re.VERBOSE,
)


class SqlFault(ValueError):
    """Why a text is not a query of a logical form."""


def column_names(header: Sequence[str]) -> list[str]:
    """A name for each column of a table; repeated headers are told apart by a number."""
    names: list[str] = []
    for title in header:
        name, count = title, 1
        while name in names:
            count += 1
            name = f"{title} {count}"
        names.append(name)
    return names


def quoted(name: str) -> str:
    """The column name as SQL writes it: in double quotes unless it is one plain word."""
    return name if _PLAIN.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def sql_text(form: Form, header: Sequence[str]) -> str:
    """`SELECT MAX("Home team") FROM table WHERE Year > 1990 AND …`; SqlFault when a number in the form fits nothing."""
    try:
        names = [quoted(name) for name in column_names(header)]
        column, aggregate = names[_place(form["sel"])], AGGREGATES[_place(form["agg"])]
        conditions = [
            f"{names[_place(place)]} {OPERATORS[_place(operator)]} {_literal(value)}"
            for place, operator, value in form["conds"]
        ]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise SqlFault(f"sql is no logical form over {len(header)} columns: {form}") from error
    selected = f"{aggregate}({column})" if aggregate else column
    return f"SELECT {selected} FROM table" + (f" WHERE {' AND '.join(conditions)}" if conditions else "")


def _place(number: Any) -> int:
    if not isinstance(number, int) or number < 0:
        raise ValueError(number)
    return number


def _literal(value: str | int | float) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    return repr(value)


def logical_form(text: str, header: Sequence[str]) -> Form:
    """The form that `sql_text` wrote as this text; SqlFault says where the text is none."""
    reader = _Reader(text, column_names(header))
    reader.word("SELECT")
    aggregate = reader.aggregate()
    selected = reader.column()
    if aggregate:
        reader.mark(")")
    reader.word("FROM")
    reader.word("table")
    conditions: list[list[Any]] = []
    while not reader.done:
        reader.word("AND" if conditions else "WHERE")
        conditions.append([reader.column(), reader.operator(), reader.value()])
    return {"sel": selected, "agg": aggregate, "conds": conditions}


class _Reader:
    """Takes a query apart from left to right."""

    def __init__(self, text: str, names: list[str]):
        self.names = names
        self.tokens: list[tuple[str, str]] = []
        end = 0
        text = text.strip()
        while end < len(text):
            found = _TOKEN.match(text, end)
            if found is None:
                raise SqlFault(f"cannot be read from {text[end : end + 20]!r} on")
            self.tokens.append((found.lastgroup or "", found[found.lastgroup or 0]))
            end = found.end()
        self.tokens.reverse()

    @property
    def done(self) -> bool:
        return not self.tokens

    def _take(self, wanted: str) -> tuple[str, str]:
        if not self.tokens:
            raise SqlFault(f"ends where {wanted} should stand")
        return self.tokens.pop()

    def word(self, expected: str) -> None:
        kind, token = self._take(expected)
        if kind != "word" or token.upper() != expected.upper():
            raise SqlFault(f"has {token!r} where {expected} should stand")

    def mark(self, expected: str) -> None:
        if self._take(expected) != ("mark", expected):
            raise SqlFault(f"lacks {expected}")

    def aggregate(self) -> int:
        """The aggregate that opens a bracket here, 0 when there is none."""
        if self.tokens[-2:-1] != [("mark", "(")]:
            return 0
        kind, token = self._take("an aggregate")
        if kind != "word" or token.upper() not in AGGREGATES:
            raise SqlFault(f"knows no aggregate {token!r}")
        self.mark("(")
        return AGGREGATES.index(token.upper())

    def column(self) -> int:
        kind, token = self._take("a column")
        name = token.replace('""', '"') if kind == "name" else token
        if kind not in ("name", "word") or name not in self.names:
            raise SqlFault(f"names a column {name!r} that the table has not")
        return self.names.index(name)

    def operator(self) -> int:
        _, token = self._take("an operator")
        if token not in OPERATORS:
            raise SqlFault(f"has {token!r} where an operator should stand")
        return OPERATORS.index(token)

    def value(self) -> str | int | float:
        kind, token = self._take("a value")
        if kind == "text":
            return token.replace("''", "'")
        if kind != "number":
            raise SqlFault(f"has {token!r} where a value should stand")
        return int(token) if re.fullmatch(r"-?\d+", token) else float(token)
