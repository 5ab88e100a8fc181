"""A configuration from its layers, with every problem of every layer reported at once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ghosttune.config.checking import conflicts, unchosen
from ghosttune.config.layers import Leaves, merge, read_layers, shipped
from ghosttune.config.reading import Leaf, SettingPath
from ghosttune.config.schema import (
    ALTERNATIVES,
    DEFAULT,
    IDLE_DEFAULTS,
    KINDS,
    SECTIONS,
    RunConfig,
    entry_of,
    leaf_fields,
    section_class,
)
from ghosttune.config.sections.data import RowsSettings
from ghosttune.config.sections.evaluate import EVALUATION_FILES
from ghosttune.config.setting import Section
from ghosttune.config.templating import with_text
from ghosttune.config.wording import concerned, explain
from ghosttune.errors import ConfigError, InputError, Problem, listed, nearest
from ghosttune.own_code import at, is_own_code
from ghosttune.run.directory import RunDir

__all__ = ["load_config", "read_config", "shipped", "value_at", "with_values"]

TRUST = "model.trust_remote_code"
DATA_PATHS = (
    *("data.train.path", "data.train.keep", "data.train.patch", "data.dev.path", "data.guide.path"),
    "train.order_scores",
    "data.mixture.reference_losses",
    *("forget.run", "forget.rows", "forget.retain"),
    *EVALUATION_FILES,
)


def load_config(
    source: str | Path | dict[str, Any] | None = None,
    *,
    preset: str | None = None,
    profile: str | None = None,
    overrides: Iterable[str] = (),
    strict: bool = False,
    trust_remote_code: bool = False,
) -> RunConfig:
    """The validated configuration of a run, with the origin of every value.

    `source` is a YAML or JSON file, or a nested mapping; `overrides` are `a.b=value` texts. Under `strict`, critical
    settings that nobody chose are problems too. A run's own config.yaml may ask for code that comes with its model only
    under `trust_remote_code`; any other source asks in the name of whoever names it. Raises ConfigError with all
    problems, InputError for unreadable files.
    """
    config, problems = read_config(
        source,
        preset=preset,
        profile=profile,
        overrides=overrides,
        strict=strict,
        trust_remote_code=trust_remote_code,
    )
    if problems:
        raise ConfigError(problems, str(source) if isinstance(source, str | Path) else "the configuration")
    return config


def read_config(
    source: str | Path | dict[str, Any] | None = None,
    *,
    preset: str | None = None,
    profile: str | None = None,
    overrides: Iterable[str] = (),
    strict: bool = False,
    trust_remote_code: bool = False,
) -> tuple[RunConfig, list[Problem]]:
    """The configuration without its wrong settings, and every problem; InputError for unreadable files."""
    layers = read_layers(source, preset, profile, overrides)
    problems = [problem for layer in layers for problem in layer.problems]
    config, wrong = _validate(merge(layers))
    problems += wrong
    if not trust_remote_code and (asked := _asked_for_by_a_run(source, config)):
        problems += asked
        config = with_values(config, {TRUST: False})  # `check` goes on and must not run it
    config, unread = with_text(_absolute(config))
    problems += unread
    problems += conflicts(config, wrong={problem.setting for problem in problems})
    if strict:
        problems += unchosen(config, wrong={problem.setting for problem in problems})
    return config, problems


def _asked_for_by_a_run(source: str | Path | dict[str, Any] | None, config: RunConfig) -> list[Problem]:
    """The wish of a run's own file to run code: the run may be a stranger's, and whoever opens it has not consented."""
    if not isinstance(source, str | Path) or not RunDir(Path(source).expanduser().parent).exists:
        return []
    origin = config.origins[TRUST]
    if not config.model.trust_remote_code or origin == "--set":
        return []
    message = (
        "is true in a file of a run: code that came with its model would run on this machine. Read that code first; "
        "then give --trust-remote-code (in Python trust_remote_code=True)"
    )
    return [Problem(TRUST, message, origin)]


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


def _validate(leaves: Leaves) -> tuple[RunConfig, list[Problem]]:
    """The configuration without the wrong leaves, and the problem of each wrong leaf."""
    problems = _unknown_sections(leaves)
    classes: dict[str, type[Section]] = {}
    for name in SECTIONS:
        classes[name], wrong = _class_of(name, leaves)
        problems += wrong
        if wrong:  # the settings of an unknown method or task cannot be judged
            leaves = {path: leaf for path, leaf in leaves.items() if path[0] != name}
    sections: dict[str, Section] = {}
    for name, section in classes.items():
        given = {path[1:]: leaf for path, leaf in leaves.items() if path[0] == name}
        sections[name], wrong = _validate_section(name, section, given)
        problems += wrong
    config = RunConfig(**sections, origins=_origins(leaves, sections))  # type: ignore[arg-type]  # each of its class
    return config, problems


def _unknown_sections(leaves: Leaves) -> list[Problem]:
    first = {path[0]: leaf for path, leaf in reversed(leaves.items()) if path[0] not in SECTIONS}
    return [
        Problem(name, f"no such section{nearest(name, SECTIONS)} (sections: {listed(SECTIONS)})", leaf.origin)
        for name, leaf in reversed(first.items())
    ]


def _class_of(name: str, leaves: Leaves) -> tuple[type[Section], list[Problem]]:
    """The settings class of a section; the default one, and the problem, when its `type` is not known."""
    kind = leaves.get((name, KINDS[name].key)) if name in KINDS else None
    if kind is None:
        return section_class(name), []
    try:
        return section_class(name, str(kind.value)), []
    except InputError as error:
        return section_class(name), [Problem(f"{name}.{KINDS[name].key}", str(error), kind.origin)]


def _validate_section(name: str, section: type[Section], given: Leaves) -> tuple[Section, list[Problem]]:
    problems: list[Problem] = []
    given = _without_idle_defaults(name, given) | given
    while True:
        try:
            return section.model_validate(_tree(given)), problems
        except ValidationError as error:
            bad: set[SettingPath] = set()
            below = _below(given)
            for path, details in concerned(section, error.errors()).items():
                above = [path[:length] for length in range(len(path)) if path[:length] in given]
                covered = [*above, *below.get(path, ())]
                origin = given[max(covered, key=len)].origin if covered else ""
                problems.append(Problem(".".join([name, *path]), explain(section, path, details), origin))
                bad.update(covered)
            if not bad:  # a required setting is missing: there is nothing to take away and try again
                return section_class(name)(), problems
            given = {path: leaf for path, leaf in given.items() if path not in bad}


def _below(given: Leaves) -> dict[SettingPath, list[SettingPath]]:
    """What is given at each path or inside of it; thousands of wrong names are not compared with each other."""
    below: dict[SettingPath, list[SettingPath]] = {}
    for path in given:
        for length in range(len(path) + 1):
            below.setdefault(path[:length], []).append(path)
    return below


def _without_idle_defaults(name: str, given: Leaves) -> Leaves:
    """Defaults that a choice makes meaningless, switched off: num_train_epochs does that to max_steps' default."""
    chosen = {".".join([name, *path]): leaf.value for path, leaf in given.items() if leaf.value is not None}
    others = {other: None for group in ALTERNATIVES if chosen.keys() & set(group) for other in group}
    idle = {
        other: value for (setting, choice), (other, value) in IDLE_DEFAULTS.items() if chosen.get(setting) == choice
    }
    return {tuple(other.split(".")[1:]): Leaf(value, "") for other, value in (others | idle).items()}


def _tree(given: Leaves) -> Any:
    """The nested mapping of the leaves; a section that was given a single value is that value."""
    tree: dict[str, Any] = {}
    for path, leaf in given.items():
        if not path:
            return leaf.value
        level = tree
        for parent in path[:-1]:
            level = level.setdefault(parent, {})
        level[path[-1]] = leaf.value
    return tree


def _origins(leaves: Leaves, sections: dict[str, Section]) -> dict[str, str]:
    kinds = {name: getattr(sections[name], of.key) for name, of in KINDS.items()}
    origins: dict[str, str] = {}
    for path, field in leaf_fields(kinds):
        place = tuple(path.split("."))
        origins[path] = _origin(leaves, place)
        if entry_of(field) is not None:
            inside = (known for known in leaves if len(known) > len(place) and known[: len(place)] == place)
            origins |= {".".join(known): leaves[known].origin for known in inside}
    return origins


def _origin(leaves: Leaves, path: SettingPath) -> str:
    return next((leaf.origin for known, leaf in leaves.items() if known[: len(path)] == path), DEFAULT)


def _absolute(config: RunConfig) -> RunConfig:
    """The same configuration reading the same files in any working directory; `run.root` stays beside its reader."""
    changes: dict[str, Any] = {
        path: _absolute_path(value)
        for path in DATA_PATHS
        if (value := value_at(config, path)) and not value.startswith("builtin:")
    }
    for sources in ("data.train.sources", "data.dev.sources"):
        if (parts := value_at(config, sources)) is not None:
            changes[sources] = {name: _beside(part) for name, part in parts.items()}
    if _is_folder(config.model.name):
        changes["model.name"] = _absolute_path(config.model.name)
    if config.evaluate.metrics != "auto":
        changes["evaluate.metrics"] = [
            at(name, _absolute_path) if is_own_code(name) else name for name in config.evaluate.metrics
        ]
    if (rewards := getattr(config.task, "rewards", None)) is not None:
        changes["task.rewards"] = [at(name, _absolute_path) if is_own_code(name) else name for name in rewards]
    changes["run.root"] = os.path.expanduser(config.run.root)
    return with_values(config, changes)


def _beside(source: RowsSettings) -> RowsSettings:
    """The same source, read from the same file in any working directory."""
    if source.path is None or source.path.startswith("builtin:"):
        return source
    return source.model_copy(update={"path": _absolute_path(source.path)})


def _absolute_path(value: str) -> str:
    return os.path.abspath(os.path.expanduser(value))


def _is_folder(name: str) -> bool:
    return os.path.isdir(os.path.expanduser(name))
