"""YAML and JSON files as (dotted path -> value, line), with `1e-4` a number and every duplicate key reported."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ghosttune.errors import ConfigError, InputError, Problem


@dataclass(frozen=True)
class Leaf:
    """One given value and where it was given."""

    value: Any
    origin: str


class _Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where 1e-4 is a text; here it is a number, as in YAML 1.2 and JSON."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$|^[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*)$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def parse_scalar(text: str) -> Any:
    """The value a text has in YAML: number, truth value, null, list, mapping or text."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{text!r} is not a YAML value: {_first_line(error)}") from error


def read_settings(path: str | Path) -> dict[str, Leaf]:
    """The leaves of a configuration file; InputError when it is missing or not a mapping, with the line of the fault."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = sorted(entry.name for entry in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f"; {path.parent} holds {', '.join(beside)}" if beside else ""
        raise InputError(f"{path} does not exist{hint}. `ghosttune init > {path.name}` writes one.") from None
    except IsADirectoryError:
        raise InputError(
            f"{path} is a folder; give the configuration file (a run keeps its own as config.yaml)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return _leaves_of_json(text, path) if path.suffix == ".json" else _leaves_of_yaml(text, path)


def leaves_of_mapping(tree: dict[str, Any], origin: str) -> dict[str, Leaf]:
    """The leaves of a nested mapping, all with one origin."""
    return {path: Leaf(value, origin) for path, value in _flatten(tree)}


def _flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and not path.endswith(".columns"):
            found += _flatten(value, f"{path}.")
        elif value != {} or path.endswith(".columns"):
            found.append((path, value))
    return found


def _leaves_of_json(text: str, path: Path) -> dict[str, Leaf]:
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: must hold a mapping of sections, holds a {type(tree).__name__}")
    return leaves_of_mapping(tree, path.name)


def _leaves_of_yaml(text: str, path: Path) -> dict[str, Leaf]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise InputError(
                f"{path}:{node.start_mark.line + 1}: must hold a mapping of sections (model, data, train, …)"
            )
        repeated: list[Problem] = []
        leaves = dict(_walk(loader, node, "", path.name, repeated))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {_first_line(error)}") from error
    finally:
        loader.dispose()
    if repeated:
        raise ConfigError(repeated, str(path))
    return leaves


def _walk(loader: _Loader, node: yaml.MappingNode, prefix: str, name: str, repeated: list[Problem]):
    seen: set[str] = set()
    for key_node, value_node in node.value:
        path = f"{prefix}{loader.construct_object(key_node, deep=True)}"
        origin = f"{name}:{key_node.start_mark.line + 1}"
        if path in seen:
            repeated.append(Problem(path, "is given twice; keep one", origin))
        seen.add(path)
        if isinstance(value_node, yaml.MappingNode) and value_node.value and not path.endswith(".columns"):
            yield from _walk(loader, value_node, f"{path}.", name, repeated)
        elif not isinstance(value_node, yaml.MappingNode) or path.endswith(".columns"):
            yield path, Leaf(loader.construct_object(value_node, deep=True), origin)


def _first_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}: {what}" if mark else what
