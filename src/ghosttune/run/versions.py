"""Whether the packages of this environment are those that ghosttune asks for."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = {
    "serve": "`ghosttune serve`",
    "studio": "`ghosttune studio`",
    "export": "`ghosttune export --to gguf` and `--to ollama`",
    "suite": "`ghosttune evaluate --suite`",
    "judge": "`ghosttune evaluate --judge`",
    "images": "rows with images",
    "quant": "`model.quantization` and `train.optim` in 8 bits or paged",
    "schedulefree": "`train.optim: schedule_free_adamw`",
    "tensorboard": "`run.trackers: [tensorboard]`",
    "wandb": "`run.trackers: [wandb]`",
    "trackio": "`run.trackers: [trackio]`",
    "mlflow": "`run.trackers: [mlflow]`",
    "swanlab": "`run.trackers: [swanlab]`",
    "comet_ml": "`run.trackers: [comet_ml]`",
}
"""What can be installed besides -> what needs it."""

DEVELOPERS = ("dev", "bench", "docs", "fuzz", "release")
"""Extras that only work on ghosttune itself needs."""


def unmet_requirements(needed: Iterable[str] | None = None) -> list[str]:
    """What is wrong with the installed packages, such as `torch is 2.5.0, and ghosttune needs >=2.6`.

    `needed` are requirements as in pyproject.toml; unset: ghosttune's own. Those of an extra count where they are
    installed, those of developers never.
    """
    wrong = []
    for text in _needed(needed):
        requirement = Requirement(text)
        is_optional = "extra ==" in str(requirement.marker or "")
        if any(_is_of(requirement, extra) for extra in DEVELOPERS):
            continue
        found = installed(requirement.name)
        if found is None and not is_optional:
            wrong.append(f"{requirement.name} is not installed, and ghosttune needs {requirement.specifier or 'it'}")
        elif found is not None and not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found}, and ghosttune needs {requirement.specifier}")
    return wrong


def packages(extra: str | None = None, needed: Iterable[str] | None = None) -> dict[str, str | None]:
    """Every package that ghosttune always needs, or those of an extra -> its version, None where it is missing."""
    asked = [Requirement(text) for text in _needed(needed)]
    chosen = [one for one in asked if (one.marker is None if extra is None else _is_of(one, extra))]
    return {one.name: installed(one.name) for one in chosen}


def _needed(needed: Iterable[str] | None) -> Iterable[str]:
    return (requires("ghosttune") or []) if needed is None else needed


def _is_of(requirement: Requirement, extra: str) -> bool:
    names = {extra, canonicalize_name(extra)}  # pyproject.toml has the one, installed metadata the other
    return any(f'extra == "{name}"' in str(requirement.marker or "") for name in names)


def changed_versions(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Packages whose versions differ, such as `torch 2.12.0 -> 2.13.0`."""
    names = sorted(before.keys() | now.keys())
    return [f"{name} {before.get(name)} -> {now.get(name)}" for name in names if before.get(name) != now.get(name)]


def installed(name: str) -> str | None:
    """The version of a package; None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
