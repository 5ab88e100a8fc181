"""YAML as people mean it: `1e-4` is a number, `no` and `1:30` are text, and what is written reads back."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ghosttune.errors import InputError

RESOLVED = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?", list("-+0123456789.")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
)
"""What a plain word is, tried in this order; anything else is text (YAML 1.2, with underscores between digits)."""

_LEADING_ZERO = r"(?![-+]?0[0-9_]+$)"  # 017 is seventeen to some and fifteen to others: it stays text


class Loader(yaml.SafeLoader):
    """Reads the notation; PyYAML by itself follows YAML 1.1, where `1e-4` is text and `1:30` is the number 90."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # the base class declares it so


class Dumper(yaml.SafeDumper):
    """Writes what Loader reads; text that either version of YAML would take for something else is quoted."""


for _name, _pattern, _first in RESOLVED:
    for _notation in (Loader, Dumper):
        _tag = f"tag:yaml.org,2002:{_name}"
        _notation.add_implicit_resolver(_tag, re.compile(f"^{_LEADING_ZERO}(?:{_pattern})$"), _first)


def parse_value(text: str) -> Any:
    """The value a text has in YAML: number, truth value, null, list, mapping or text; InputError when it has none."""
    try:
        value = yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{shown(text)} is not a YAML value ({fault(error)}); quote it if it is text") from error
    written_plainly = isinstance(value, str) and "\n" not in text and text.strip()[:1] not in ("'", '"')
    return text.strip() if written_plainly else value  # taken whole, with ` #1` at its end


def to_yaml(value: Any, **options: Any) -> str:
    """The value as YAML, in the order it has, that reads back to itself; `options` are those of `yaml.dump`."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, **options)


def shown(value: Any) -> str:
    """A value as it could stand in a configuration, shortened when it is long."""
    try:
        text = to_yaml(
            value, default_flow_style=True, width=10**9, default_style='"' if isinstance(value, str) else None
        )
    except yaml.YAMLError:  # an object from Python that YAML has no notation for
        text = repr(value)
    text = text.removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= 80 else f"{text[:77]}…"


def fault(error: Exception) -> str:
    """What YAML or JSON found wrong, in one line."""
    return getattr(error, "problem", None) or str(error).splitlines()[0]


def fault_line(error: Exception) -> int | None:
    """The line of a YAML fault, from 1."""
    mark = getattr(error, "problem_mark", None)
    return mark.line + 1 if mark else None
