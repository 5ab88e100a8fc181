"""Single columns of a row, read or refused with a reason."""

from __future__ import annotations

import math
from typing import Any

from ghosttune.data.files import Fields, shown
from ghosttune.errors import listed


class RowFault(Exception):
    """Why one row cannot be used; collected, so that all bad rows are reported together."""


def text_of(fields: Fields, column: str, may_be_empty: bool = False) -> str:
    """The text in a column."""
    value = value_of(fields, column)
    if not isinstance(value, str):
        raise RowFault(f"{column} must be text, is {shown(value)}")
    if not may_be_empty and not value.strip():
        raise RowFault(f"{column} is empty")
    return value


def value_of(fields: Fields, column: str) -> Any:
    """What stands in a column, whatever it is."""
    if column not in fields:
        raise RowFault(f"has no column {column!r} (columns: {listed(fields)})")
    return fields[column]


def list_of(fields: Fields, column: str) -> list[Any]:
    """The list in a column, which must not be empty."""
    value = value_of(fields, column)
    if not isinstance(value, list) or not value:
        raise RowFault(f"{column} must be a list, is {shown(value)}")
    return value


def label_name(value: Any) -> str:
    """The name of a label: text as it stands, a whole number or a truth value written out."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int) or not str(value).strip():
        raise RowFault(f"label must be a name or a whole number, is {shown(value)}")
    return str(value).strip()


def number_of(value: Any, column: str = "label") -> float:
    """A cell that is a number, also one written as text."""
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value)
    except ValueError:
        raise RowFault(f"{column} must be a number, is {shown(value)}") from None
    if not math.isfinite(number):
        raise RowFault(f"{column} must be a finite number, is {value}")
    return number


def request(instruction: str, context: str) -> str:
    """The instruction, and below it the text it is about, where there is one."""
    return f"{instruction}\n\n{context}" if context.strip() else instruction
