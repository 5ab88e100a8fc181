"""Layers of settings, the later one winning: profile < preset < file < --set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ghosttune.config.reading import Layer, Leaf, SettingPath, overlap, read_file, read_mapping, read_overrides
from ghosttune.config.schema import ALTERNATIVES, DEPENDENT, INSTEAD, KINDS, SHORTHANDS, SWITCHES, RunConfig, group_of
from ghosttune.errors import InputError, listed, nearest

SHIPPED = Path(__file__).parent.parent
EXCLUSIVE = [[tuple(path.split(".")) for path in group] for group in ALTERNATIVES]
EITHER = [(tuple(one.split(".")), tuple(other.split("."))) for one, other in INSTEAD]
SWITCHED = {tuple(switch.split(".")): {tuple(path.split(".")) for path in paths} for switch, paths in DEPENDENT.items()}

Leaves = dict[SettingPath, Leaf]


def read_layers(
    source: str | Path | dict[str, Any] | None, preset: str | None, profile: str | None, overrides: Iterable[str]
) -> list[Layer]:
    """The layers that were given, the weakest first; InputError for a file, preset or profile that cannot be had."""
    layers: list[Layer] = []
    if profile:
        layers.append(_shipped_layer("profile", profile))
    if preset:
        layers.append(_shipped_layer("preset", preset))
    if isinstance(source, dict):
        layers.append(read_mapping(source, "Python"))
    elif source is not None:
        layers.append(read_file(source))
    return [*layers, read_overrides(overrides)]


def shipped(kind: str) -> dict[str, Path]:
    """Name -> file of the presets or profiles that come with the package."""
    return {path.stem: path for path in sorted((SHIPPED / f"{kind}s").glob("*.yaml"))}


def merge(layers: Iterable[Layer]) -> Leaves:
    """One value per setting: each layer replaces what it names, and what its choices make meaningless."""
    merged: Leaves = {}
    for layer in layers:
        given = [one for path, leaf in _with_choosers(layer.leaves).items() for one in _switched(path, leaf)]
        chosen = {path: leaf for path, leaf in given if not _says_nothing(path, leaf)}
        replaced = _replaced(merged, chosen)
        merged = {path: leaf for path, leaf in merged.items() if path not in replaced} | chosen
    return merged


def _with_choosers(leaves: Leaves) -> Leaves:
    """A plan without the strategy that holds plans says which one is meant."""
    for chooser, kind, place in SHORTHANDS.values():
        choosing, plan = tuple(chooser.split(".")), tuple(place.split("."))
        if plan in leaves and choosing not in leaves:
            leaves = {choosing: Leaf(kind, leaves[plan].origin), **leaves}
    return leaves


def _switched(path: SettingPath, leaf: Leaf) -> list[tuple[SettingPath, Leaf]]:
    """`measure.ledger: null` as the settings that it switches off, `phases: both@0-` as the plan that it is; anything
    else as it is."""
    name = ".".join(path)
    if leaf.value is None and name in SWITCHES:
        chooser = name in KINDS
        value = KINDS[name].default if chooser else None
        return [(tuple(switch.split(".")), Leaf(value, leaf.origin)) for switch in SWITCHES[name]]
    if name in SHORTHANDS and leaf.value != {}:
        chooser, kind, place = SHORTHANDS[name]
        return [(tuple(chooser.split(".")), Leaf(kind, leaf.origin)), (tuple(place.split(".")), leaf)]
    return [(path, leaf)]


def _says_nothing(path: SettingPath, leaf: Leaf) -> bool:
    """Whether this is a section's name with nothing below it, or only comments."""
    return leaf.value in (None, {}) and is_group(path)


def is_group(path: SettingPath) -> bool:
    """Whether a path names a group of settings."""
    field = RunConfig.model_fields.get(path[0])
    for name in path[1:]:
        group = group_of(field) if field else None
        field = group.model_fields.get(name) if group else None
    return field is not None and group_of(field) is not None


def _replaced(merged: Leaves, chosen: Leaves) -> set[SettingPath]:
    """The settings of earlier layers that do not hold beside what this layer chose."""
    replaced = {known for known in merged for path in chosen if overlap(known, path)}
    for section, kinds in KINDS.items():
        kind = (section, kinds.key)
        before = merged[kind].value if kind in merged else kinds.default
        if kind in chosen and chosen[kind].value != before:
            replaced |= {known for known in merged if known[0] == section}
    for group in EXCLUSIVE:
        if any(path in chosen and chosen[path].value is not None for path in group):
            replaced |= {known for known in merged if known in group}
    given = {path for path, leaf in chosen.items() if leaf.value is not None}
    for pair in EITHER:
        for one, other in (pair, pair[::-1]):
            if any(overlap(one, path) for path in given):
                replaced |= {known for known in merged if overlap(other, known)}
    for switch, dependent in SWITCHED.items():
        if switch in chosen and chosen[switch].value is None:
            replaced |= dependent & merged.keys()
    return replaced


def _shipped_layer(kind: str, name: str) -> Layer:
    files = shipped(kind)
    if kind == "profile" and "@" not in name:  # the newest version of a profile; the record names it in full
        versions = [known for known in files if known.split("@")[0] == name]
        name = max(versions, key=_version, default=name)
    if name not in files:
        raise InputError(f"no {kind} is called {name!r}{nearest(name, files)} (known: {listed(files, 40)})")
    layer = read_file(files[name])
    layer.leaves = {path: Leaf(leaf.value, f"{kind} {name}") for path, leaf in layer.leaves.items()}
    return layer


def _version(name: str) -> int:
    return int(name.partition("@")[2])
