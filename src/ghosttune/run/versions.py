"""Whether the packages of this environment are those that ghosttune asks for."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

DEVELOPERS = ("dev", "bench")
"""Extras that only work on ghosttune itself needs."""


def unmet_requirements(needed: Iterable[str] | None = None) -> list[str]:
    """What is wrong with the installed packages, such as `torch is 2.5.0, and ghosttune needs >=2.6`.

    `needed` are requirements as in pyproject.toml; unset: ghosttune's own. Those of an extra count where they are
    installed, those of developers never.
    """
    wrong = []
    for text in (requires("ghosttune") or []) if needed is None else needed:
        requirement = Requirement(text)
        marker = str(requirement.marker or "")
        is_optional = "extra ==" in marker
        if any(f'extra == "{extra}"' in marker for extra in DEVELOPERS):
            continue
        found = installed(requirement.name)
        if found is None and not is_optional:
            wrong.append(f"{requirement.name} is not installed, and ghosttune needs {requirement.specifier or 'it'}")
        elif found is not None and not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found}, and ghosttune needs {requirement.specifier}")
    return wrong


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
