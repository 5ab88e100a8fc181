"""Files, mappings and `--set` texts as layers: path -> value with the place where it was given."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ghosttune.config.notation import LARGEST, Loader, fault, fault_line, is_mapping, parse_value, shown
from ghosttune.errors import InputError, Problem, listed, nearest
from ghosttune.foreign import read_json, read_text

SettingPath = tuple[str, ...]
"""`("train", "max_steps")`; a tuple because a key of a user's own may hold a dot."""


@dataclass(frozen=True)
class Leaf:
    """One given value and where it was given."""

    value: Any
    origin: str


@dataclass
class Layer:
    """What one source gives, and what is wrong with how it is written."""

    leaves: dict[SettingPath, Leaf] = field(default_factory=dict[SettingPath, Leaf])
    problems: list[Problem] = field(default_factory=list[Problem])


def read_file(path: str | Path) -> Layer:
    """The settings of a YAML or JSON file, each with its line; InputError when the file cannot be read or parsed."""
    path = Path(path)
    text = _text(path)
    try:
        if path.suffix.lower() == ".json":
            return _json_layer(text, path.name)
        return _yaml_layer(text, path.name)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except yaml.YAMLError as error:
        line = fault_line(error)
        raise InputError(f"{path}{f':{line}' if line else ''}: not valid YAML: {fault(error)}") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error


def read_mapping(tree: dict[str, Any], origin: str) -> Layer:
    """The settings of a nested mapping, all with one origin."""
    return Layer({path: Leaf(value, origin) for path, value in _flatten(tree, ())})


def read_overrides(texts: Iterable[str]) -> Layer:
    """The settings of `section.key=value` texts; of two for the same setting the later one holds."""
    layer = Layer()
    for text in texts:
        key, equals, value = text.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path):
            layer.problems.append(Problem("--set", f"takes section.key=value (got {shown(text)})"))
            continue
        try:
            parsed = parse_value(value)
        except InputError as error:
            layer.problems.append(Problem(".".join(path), str(error), "--set"))
            continue
        given = dict(_flatten(parsed, path)) if is_mapping(parsed) and parsed else {path: parsed}
        kept = {known: leaf for known, leaf in layer.leaves.items() if not any(overlap(known, new) for new in given)}
        layer.leaves = kept | {path: Leaf(value, "--set") for path, value in given.items()}
    return layer


def overlap(one: SettingPath, other: SettingPath) -> bool:
    """Whether one of the two is the other or stands inside it."""
    return one[: len(other)] == other[: len(one)]


def _text(path: Path) -> str:
    try:
        return read_text(path, LARGEST)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist{_beside(path)}. `ghosttune init > {path.name}` writes one.") from None
    except IsADirectoryError:
        raise InputError(
            f"{path} is a folder; give the configuration file (a run keeps its own as config.yaml)"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _beside(path: Path) -> str:
    kinds = (".yaml", ".yml", ".json")
    names = (
        sorted(entry.name for entry in path.parent.iterdir() if entry.suffix in kinds) if path.parent.is_dir() else []
    )
    return f"{nearest(path.name, names)} ({path.parent} holds {listed(names)})" if names else ""


def _flatten(tree: dict[Any, Any], prefix: SettingPath) -> Iterator[tuple[SettingPath, Any]]:
    for key, value in tree.items():
        path = (*prefix, str(key))
        if is_mapping(value) and value:
            yield from _flatten(value, path)
        else:
            yield path, value


def _json_layer(text: str, name: str) -> Layer:
    tree = read_json(text, unique=False)
    layer = _yaml_layer(text.replace("\t", " "), name)  # JSON is YAML but for tabs; this finds lines and repeated keys
    values = dict(_flatten(tree, ()))
    own = {tuple(map(_paired, path)): leaf for path, leaf in layer.leaves.items()}
    layer.leaves = {path: Leaf(values.get(path, leaf.value), leaf.origin) for path, leaf in own.items()}
    return layer


def _paired(text: str) -> str:
    """The text with each pair of surrogates, in which JSON may write a character, as that character."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:  # of half a pair, which is refused where it stands
        return text


def _yaml_layer(text: str, name: str) -> Layer:
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None or node.tag == "tag:yaml.org,2002:null":
            raise InputError(f"{name} is empty. `ghosttune init > {name}` writes a complete configuration.")
        if not isinstance(node, yaml.MappingNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
            line = node.start_mark.line + 1
            raise InputError(f"{name}:{line}: must hold sections (model, data, train, …), holds {kind}")
        layer = Layer()
        _walk(loader, node, (), name, layer)
        return layer
    finally:
        loader.dispose()  # pyright: ignore[reportUnknownMemberType]


def _walk(loader: Loader, node: yaml.MappingNode, prefix: SettingPath, name: str, layer: Layer) -> None:
    seen: dict[SettingPath, int] = {}
    for key, value in node.value:
        path, line = (*prefix, _name(loader, key)), key.start_mark.line + 1
        if path in seen:
            message = f"is given twice (first in line {seen[path]}); keep one"
            layer.problems.append(Problem(".".join(path), message, f"{name}:{line}"))
            continue
        seen[path] = line
        if isinstance(value, yaml.MappingNode) and value.value:
            _walk(loader, value, path, name, layer)
        else:
            layer.leaves[path] = Leaf(loader.construct_object(value, deep=True), f"{name}:{line}")


def _name(loader: Loader, key: yaml.Node) -> str:
    """The key as written, whatever it would be as a value: `on` and `1` are names here."""
    return key.value if isinstance(key, yaml.ScalarNode) else str(loader.construct_object(key, deep=True))
