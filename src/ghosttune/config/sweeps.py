"""A sweep file: one configuration, what is varied in it, and the seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from ghosttune.config.loading import load_config
from ghosttune.config.notation import LARGEST, Loader, fault, fault_line, is_list, is_mapping, shown
from ghosttune.config.rendering import inline
from ghosttune.config.schema import RunConfig
from ghosttune.errors import ConfigError, InputError, Problem, listed, nearest
from ghosttune.foreign import read_text

KEYS = ("config", "preset", "profile", "axes", "arms", "seeds")
SEED, HOME = "train.seed", ("run.name", "run.root")
UNSAFE = str.maketrans({character: "-" for character in '/\\:*?"<>| \t,[]{}'})


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    arm: str
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        return f"{self.arm}/seed-{self.seed}"


def read_sweep(path: str | Path) -> list[Trial]:
    """Every run that a sweep file asks for, arm by arm; InputError or ConfigError with all that is wrong with it.

    `config` is a file (as seen from the sweep file) or the settings themselves; `preset` and `profile` as for `train`.
    `axes` maps settings to lists of values, whose every combination is an arm; `arms` maps names to settings. `seeds`
    are those of `train.seed`; left out, there is one, the configuration's own.
    """
    path = Path(path)
    sweep = _mapping(path)
    problems = _problems(sweep, path)
    if problems:
        raise ConfigError(problems, str(path))
    named: dict[str, dict[str, Any]] = sweep.get("arms") or {}
    arms = {**_grid(sweep.get("axes") or {}), **named}
    trials: list[Trial] = []
    for name, settings in arms.items():
        for seed in sweep.get("seeds") or [None]:
            changes = settings if seed is None else {**settings, SEED: seed}
            try:
                config = _configured(sweep, path, changes)
                trials.append(Trial(name, config.train.seed, config))
            except ConfigError as error:
                problems += [Problem(f"arm {name}: {p.setting}", p.message, p.origin) for p in error.problems]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), str(path))
    return trials


def _configured(sweep: dict[str, Any], path: Path, changes: dict[str, Any]) -> RunConfig:
    source = sweep.get("config")
    if isinstance(source, str):
        source = path.parent / source
    overrides = [f"{setting}={inline(value)}" for setting, value in changes.items()]
    return load_config(source, preset=sweep.get("preset"), profile=sweep.get("profile"), overrides=overrides)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        found = yaml.load(read_text(path, LARGEST), Loader=Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        line = fault_line(error)
        raise InputError(f"{path}{f':{line}' if line else ''}: not valid YAML: {fault(error)}") from error
    if not is_mapping(found):
        raise InputError(f"{path} must hold {listed(KEYS)}; it holds {shown(found)}")
    return found


def _problems(sweep: dict[str, Any], path: Path) -> list[Problem]:
    """What is wrong with the file itself."""
    found = [
        Problem(str(key), f"no such key of a sweep{nearest(str(key), KEYS)} (keys: {listed(KEYS)})", path.name)
        for key in sweep
        if key not in KEYS
    ]

    def wrong(key: str, message: str) -> None:
        found.append(Problem(key, f"{message} (got {shown(sweep[key])})", path.name))

    for key in ("config", "preset", "profile"):
        value = sweep.get(key)
        if value is not None and not isinstance(value, str) and not (key == "config" and is_mapping(value)):
            wrong(key, "takes a file, or the settings themselves" if key == "config" else "takes a name")
    axes: dict[str, list[Any]] = {}
    arms: dict[str, dict[str, Any]] = {}
    if _is_grid(given := sweep.get("axes") or {}):
        axes = given
    else:
        wrong("axes", "takes settings with a list of different values each, such as method.r: [4, 8]")
    if _is_named(given := sweep.get("arms") or {}):
        arms = given
    else:
        wrong("arms", "takes names with settings each, such as small: {method.r: 4}")
    if not sweep.get("axes") and not sweep.get("arms"):
        found.append(Problem("axes", "or `arms` must say what is varied", path.name))
    if sweep.get("seeds") is not None and not _is_seeds(sweep["seeds"]):
        wrong("seeds", "takes a list of different whole numbers from 0")
    own = [*axes, *(setting for arm in arms.values() for setting in arm)]
    if SEED in own:
        found.append(Problem(SEED, "is given by `seeds`, so that arms share theirs", path.name))
    found += [Problem(name, "has no meaning here: the sweep has a folder", path.name) for name in HOME if name in own]
    if twice := sorted(_grid(axes).keys() & arms.keys()):
        message = f"{listed(twice)} is a combination of the axes too; choose another name"
        found.append(Problem("arms", message, path.name))
    return found


def _is_grid(axes: Any) -> TypeGuard[dict[str, list[Any]]]:
    return is_mapping(axes) and all(
        isinstance(name, str) and is_list(values) and values and _all_differ(map(inline, values))
        for name, values in axes.items()
    )


def _is_named(arms: Any) -> TypeGuard[dict[str, dict[str, Any]]]:
    return is_mapping(arms) and all(
        isinstance(name, str) and name.strip(". ") and name == name.translate(UNSAFE) and is_mapping(settings)
        for name, settings in arms.items()
    )


def _is_seeds(seeds: Any) -> bool:
    whole = is_list(seeds) and all(type(seed) is int and seed >= 0 for seed in seeds)
    return whole and bool(seeds) and _all_differ(seeds)


def _all_differ(values: Iterable[Any]) -> bool:
    listed_values = list(values)
    return len(set(listed_values)) == len(listed_values)


def _grid(axes: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """Every combination, named by its values and by as much of their settings as tells them apart."""
    found: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*axes.values()) if axes else ():
        settings = dict(zip(axes, values, strict=True))
        name = "_".join(f"{setting.rpartition('.')[2]}-{_short(value)}" for setting, value in settings.items())
        found[name if name not in found else f"{name}_{len(found) + 1}"] = settings
    return found


def _short(value: Any) -> str:
    text = inline(value).translate(UNSAFE).strip("-'")
    return text if len(text) <= 40 else f"{text[:39]}…"
