"""YAML as people mean it: `1e-4` is a number, `no` and `1:30` are text, and what is written reads back."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import re
from typing import Any, TypeGuard

import yaml

from ghosttune.errors import InputError
from ghosttune.foreign import LONGEST_NUMBER

RESOLVED = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?", list("-+0123456789.")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
)
"""What a plain word is, tried in this order; anything else is text (YAML 1.2, with underscores between digits)."""

_LEADING_ZERO = r"(?![-+]?0[0-9_]+$)"  # 017 is seventeen to some and fifteen to others: it stays text


LARGEST = 1 << 18
"""Characters of a document, or bytes of its file; PyYAML reads half a million in a second."""

MOST = 10_000
"""Values of a document, each as often as aliases repeat it: ten lines of nine aliases each make 400 million of them."""

DEEPEST = 50
"""Values inside each other."""

TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
"""What a value can be; YAML's dates, sets and binary data, and objects of Python, mean nothing here."""


class Loader(yaml.SafeLoader):
    """Reads the notation, within bounds of size, count and depth; YAMLError beyond them.

    PyYAML by itself follows YAML 1.1, where `1e-4` is text and `1:30` is the number 90.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012  # the base class declares it so

    def __init__(self, text: str):
        if len(text) > LARGEST:
            raise yaml.YAMLError(f"{len(text):,} characters are too many; accepted are {LARGEST:,}")
        try:
            super().__init__(text)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position)
            mark = yaml.Mark("", error.position, line, 0, None, 0)
            raise _fault(f"the control character #x{ord(text[error.position]):04x} stands here", mark) from None
        self._count = self._depth = self._deepest = 0
        self._sizes: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next value with all that is in it, counted; what an alias repeats counts again."""
        mark, is_alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)
        before, outside = self._count, self._deepest
        self._count, self._depth = self._count + 1, self._depth + 1
        self._deepest = self._depth
        self._require_bounds(mark)
        node = super().compose_node(parent, index)
        if is_alias:
            if id(node) not in self._sizes:
                raise _fault("an alias stands inside of what it repeats", mark)
            count, height = self._sizes[id(node)]
            self._count, self._deepest = before + count, self._depth + height
            self._require_bounds(mark)
        if node is not None and node.tag not in TAGS:
            raise _fault(
                f"the tag {node.tag.replace('tag:yaml.org,2002:', '!!')} means nothing here; leave it out", mark
            )
        self._sizes[id(node)] = self._count - before, self._deepest - self._depth
        self._depth, self._deepest = self._depth - 1, max(self._deepest, outside)
        return node

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # its name in PyYAML
        """The next `[` or `{`; past the bound already here, because the scanner looks ahead, at all that are open."""
        if self.flow_level >= DEEPEST:
            raise _fault(f"more than {DEEPEST} values inside each other", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def _require_bounds(self, mark: yaml.Mark) -> None:
        if self._count > MOST:
            raise _fault(f"more than {MOST:,} values, each counted as often as aliases repeat it", mark)
        if self._deepest > DEEPEST:
            raise _fault(f"more than {DEEPEST} values inside each other", mark)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; YAMLError with its line where it has none."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError) as error:  # of a number that is none, or too long
            raise _fault(f"a value is no {node.tag.rpartition(':')[2]}{_too_long(node)}", node.start_mark) from error


def _too_long(node: yaml.Node) -> str:
    digits = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
    return f": it has {digits:,} digits, accepted are {LONGEST_NUMBER:,}" if digits > LONGEST_NUMBER else ""


def _fault(message: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=mark)


OTHER_BREAKS = set("\r\x85\u2028\u2029")
"""What YAML takes for ends of lines as well: written line by line they would not come back."""


class Dumper(yaml.SafeDumper):
    """Writes what Loader reads; text that either version of YAML would take for something else is quoted, and text of
    several lines is written line by line."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = None
        if set(data) & OTHER_BREAKS or ("\n" in data and self.default_flow_style):
            style = '"'
        elif "\n" in data:
            style = "|"
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


Dumper.add_representer(str, Dumper.represent_str)


for _name, _pattern, _first in RESOLVED:
    for _notation in (Loader, Dumper):
        _tag = f"tag:yaml.org,2002:{_name}"
        _notation.add_implicit_resolver(_tag, re.compile(f"^{_LEADING_ZERO}(?:{_pattern})$"), _first)


def parse_value(text: str) -> Any:
    """The value a text has in YAML: number, truth value, null, list, mapping or text; InputError when it has none."""
    try:
        value = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
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


def is_mapping(value: Any) -> TypeGuard[dict[Any, Any]]:
    """Whether what was read is a mapping, of whatever."""
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether what was read is a list, of whatever."""
    return isinstance(value, list)
