"""A configuration from its layers: defaults < profile < preset < file < --set, every problem reported at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ghosttune.config.checking import conflicts, unchosen
from ghosttune.config.reading import Leaf, leaves_of_mapping, parse_scalar, read_settings
from ghosttune.config.schema import (
    ALTERNATIVES,
    DEFAULT_TYPES,
    SECTIONS,
    RunConfig,
    Section,
    leaf_fields,
    section_class,
)
from ghosttune.errors import ConfigError, InputError, Problem, listed, nearest

SHIPPED = Path(__file__).parent.parent
PATH_SETTINGS = ("data.train.path", "data.dev.path", "run.root")


def load_config(
    source: str | Path | dict[str, Any] | None = None,
    *,
    preset: str | None = None,
    profile: str | None = None,
    overrides: Iterable[str] = (),
    strict: bool = False,
) -> RunConfig:
    """The validated configuration of a run, with the origin of every value.

    `source` is a YAML or JSON file, or a nested mapping; `overrides` are `a.b=value` texts. Under `strict`, critical
    settings that nobody chose are problems too. Raises ConfigError with all problems, InputError for unreadable files.
    """
    layers = []
    if profile:
        layers.append(_shipped_layer("profile", profile))
    if preset:
        layers.append(_shipped_layer("preset", preset))
    if isinstance(source, dict):
        layers.append(leaves_of_mapping(source, "Python"))
    elif source is not None:
        layers.append(read_settings(source))
    layers.append(_override_layer(overrides))
    name = str(source) if isinstance(source, str | Path) else "the configuration"
    config, problems = _validate(_merge(layers))
    problems += conflicts(config, ignore={problem.setting for problem in problems})
    if strict:
        problems += unchosen(config)
    if problems:
        raise ConfigError(problems, name)
    return _absolute(config)


def shipped(kind: str) -> dict[str, Path]:
    """Name -> file of the presets or profiles that come with the package."""
    return {path.stem: path for path in sorted((SHIPPED / f"{kind}s").glob("*.yaml"))}


def _shipped_layer(kind: str, name: str) -> dict[str, Leaf]:
    files = shipped(kind)
    if kind == "profile" and "@" not in name:  # the newest version of a profile; the record names it in full
        versions = sorted(known for known in files if known.split("@")[0] == name)
        name = versions[-1] if versions else name
    if name not in files:
        raise InputError(f"no {kind} is called {name!r}{nearest(name, files)} (known: {listed(files, 40)})")
    return {path: Leaf(leaf.value, f"{kind} {name}") for path, leaf in read_settings(files[name]).items()}


def _override_layer(overrides: Iterable[str]) -> dict[str, Leaf]:
    layer: dict[str, Leaf] = {}
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise InputError(f"--set takes section.key=value, got {text!r}")
        parsed = parse_scalar(value)
        is_mapping = isinstance(parsed, dict) and not path.endswith(".columns")
        given = (
            leaves_of_mapping({path.strip(): parsed}, "--set") if is_mapping else {path.strip(): Leaf(parsed, "--set")}
        )
        layer.update(given)
    return layer


def _merge(layers: list[dict[str, Leaf]]) -> dict[str, Leaf]:
    merged: dict[str, Leaf] = {}
    for layer in layers:
        for path in layer:
            _drop_replaced(merged, path, layer)
        merged.update(layer)
    return merged


def _drop_replaced(merged: dict[str, Leaf], path: str, layer: dict[str, Leaf]) -> None:
    """Removes from earlier layers what `path` replaces: the mapping it stands in for, and its alternatives."""
    for known in [known for known in merged if known.startswith(f"{path}.") or path.startswith(f"{known}.")]:
        del merged[known]
    if path == "method.type" and path in merged and merged[path].value != layer[path].value:
        for known in [known for known in merged if known.startswith("method.")]:
            del merged[known]
    for group in ALTERNATIVES:
        if path in group and layer[path].value is not None:
            for other in group:
                if other not in layer:
                    merged.pop(other, None)


def _validate(leaves: dict[str, Leaf]) -> tuple[RunConfig, list[Problem]]:
    """The configuration without the wrong leaves, and the problem of each wrong leaf."""
    problems: list[Problem] = []
    sections: dict[str, Section] = {}
    for path, leaf in leaves.items():
        name = path.partition(".")[0]
        if name not in SECTIONS:
            problems.append(
                Problem(name, f"no such section{nearest(name, SECTIONS)} (sections: {listed(SECTIONS)})", leaf.origin)
            )
    for name in SECTIONS:
        given = {path: leaf for path, leaf in leaves.items() if path == name or path.startswith(f"{name}.")}
        sections[name], wrong = _validate_section(name, given)
        problems += wrong
    origins = _origins(leaves)
    return RunConfig(**sections, origins=origins), problems


def _validate_section(name: str, given: dict[str, Leaf]) -> tuple[Section, list[Problem]]:
    problems: list[Problem] = []
    kind = given.get(f"{name}.type")
    if name in DEFAULT_TYPES:
        try:
            section = section_class(name, kind.value if kind else None)
        except (InputError, TypeError) as error:
            problems.append(Problem(f"{name}.type", str(error), kind.origin if kind else ""))
            section, given = section_class(name), {}
    else:
        section = section_class(name)
    given = {**_alternative_defaults(name, given), **given}
    while True:
        try:
            return section.model_validate(_tree(name, given)), problems
        except ValidationError as error:
            for detail in error.errors():
                setting, origin = _place(name, detail, given)
                problem = Problem(setting, _explain(detail, section, setting), origin)
                if problem not in problems:
                    problems.append(problem)
                given = {path: leaf for path, leaf in given.items() if not _covers(setting, path)}


def _alternative_defaults(name: str, given: dict[str, Leaf]) -> dict[str, Leaf]:
    """A default gives way when another alternative was chosen: num_train_epochs switches max_steps' default off."""
    chosen = {path for path, leaf in given.items() if leaf.value is not None}
    return {
        other: Leaf(None, "")
        for group in ALTERNATIVES
        if group[0].startswith(f"{name}.") and chosen & set(group)
        for other in group
        if other not in given
    }


def _covers(setting: str, path: str) -> bool:
    return path == setting or path.startswith(f"{setting}.") or setting.startswith(f"{path}.")


def _tree(name: str, given: dict[str, Leaf]) -> Any:
    if name in given:  # the section itself was given a value that is no mapping
        return given[name].value if given[name].value is not None else {}
    tree: dict[str, Any] = {}
    for path, leaf in given.items():
        *parents, last = path.split(".")[1:]
        level = tree
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = leaf.value
    return {key: value for key, value in tree.items() if value is not None or not _is_section(name, key)}


def _is_section(name: str, key: str) -> bool:
    """Whether `name.key` is a group of settings, for which null means all of its defaults."""
    field = RunConfig.model_fields[name].annotation.model_fields.get(key)  # type: ignore[union-attr]
    return field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _place(name: str, detail: ErrorDetails, given: dict[str, Leaf]) -> tuple[str, str]:
    setting = ".".join([name, *[str(part) for part in detail["loc"]]])
    for path, leaf in given.items():
        if _covers(setting, path):
            return (path if setting.startswith(path) else setting), leaf.origin
    return setting, ""


def _explain(detail: ErrorDetails, section: type[Section], setting: str) -> str:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        known = _siblings(section, setting)
        return f"no such setting{nearest(setting.rpartition('.')[2], known)} (settings: {listed(known, 30)})"
    if kind == "literal_error":
        accepted = str(detail["ctx"]["expected"]).replace("'", "")
        options = accepted.replace(" or ", ", ").split(", ")
        return f"must be one of {accepted} (got {value!r}){nearest(str(value), options)}"
    message = detail["msg"].replace("Input should be", "must be").replace("a valid ", "a ")
    if isinstance(value, str) and kind in ("int_type", "float_type", "bool_type"):
        message += ", not a text: write it without quotes"
    return f"{message} (got {value!r})"


def _siblings(section: type[Section], setting: str) -> list[str]:
    for parent in setting.split(".")[1:-1]:
        field = section.model_fields.get(parent)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, Section):
            break
        section = field.annotation
    return list(section.model_fields)


def _origins(leaves: dict[str, Leaf]) -> dict[str, str]:
    kinds = {name: str(leaves[f"{name}.type"].value) for name in DEFAULT_TYPES if f"{name}.type" in leaves}
    try:
        paths = [path for path, _ in leaf_fields(kinds)]
    except InputError:  # an unknown method or task is reported with the other problems
        paths = [path for path, _ in leaf_fields()]
    return {path: leaves[path].origin if path in leaves else "default" for path in paths}


def _absolute(config: RunConfig) -> RunConfig:
    """The same configuration with paths that no longer depend on the working directory."""
    changes = {
        path: str(Path(value).expanduser().resolve())
        for path in PATH_SETTINGS
        if (value := value_at(config, path)) and not str(value).startswith("builtin:")
    }
    model = Path(config.model.name).expanduser()
    if model.is_dir():
        changes["model.name"] = str(model.resolve())
    return with_values(config, changes)


def value_at(config: RunConfig, path: str) -> Any:
    """The value of the setting with this dotted path."""
    value: Any = config
    for part in path.split("."):
        value = getattr(value, part)
    return value


def with_values(config: RunConfig, values: dict[str, Any], origin: str | None = None) -> RunConfig:
    """The configuration with these settings replaced; `origin`, where given, is recorded for each."""
    for path, value in values.items():
        config = _replaced(config, path.split("."), value)
    if origin:
        config = config.model_copy(update={"origins": {**config.origins, **dict.fromkeys(values, origin)}})
    return config


def _replaced(section: Any, parts: list[str], value: Any) -> Any:
    inner = value if len(parts) == 1 else _replaced(getattr(section, parts[0]), parts[1:], value)
    return section.model_copy(update={parts[0]: inner})
