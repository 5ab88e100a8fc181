"""Pieces of the page. Whatever comes from a file is escaped here; only markup that was made here is markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any


class Markup(str):
    """HTML that is safe to stand in the page as it is."""


def safe(value: Any) -> Markup:
    """A value as HTML: markup as it is, anything else as escaped text."""
    return value if isinstance(value, Markup) else Markup(escape(shown(value), quote=True))


def shown(value: Any) -> str:
    """A value as a person reads it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return str(value)


def tag(name: str, *contents: Any, **attributes: str) -> Markup:
    """One element; `class_` and `for_` stand for the words Python keeps to itself."""
    said = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{said}>{''.join(map(safe, contents))}</{name}>")


def joined(parts: Iterable[Any], between: str = "") -> Markup:
    return Markup(escape(between).join(safe(part) for part in parts))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    """A table that scrolls sideways where it is too wide; numbers stand right."""
    head = tag("tr", *(tag("th", column) for column in columns))
    body = [tag("tr", *(_cell(value) for value in row)) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll")


def _cell(value: Any) -> Markup:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return tag("td", value, class_="number") if is_number else tag("td", value)


def facts(entries: Mapping[str, Any]) -> Markup:
    """Names with what they are."""
    return tag("dl", *(joined([tag("dt", name), tag("dd", value)]) for name, value in entries.items()), class_="facts")


def said(text: str | Markup) -> Markup:
    """Text of a row, with its line breaks."""
    return tag("div", text, class_="said", dir="auto")
