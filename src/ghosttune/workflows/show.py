"""What the registries and the schema hold, as text and as data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ghosttune.config.loading import shipped
from ghosttune.config.rendering import first_sentence
from ghosttune.config.schema import KINDS as SECTION_KINDS
from ghosttune.config.schema import entry_fields, leaf_fields
from ghosttune.config.setting import Section
from ghosttune.errors import InputError, listed, nearest
from ghosttune.registry import DATASETS, METHODS, METRICS, STRATEGIES, TASKS, Registry

Described = tuple[str, Any]
"""Text for a person, and the same as plain data."""


def show(kind: str, name: str | None, run: Path | None = None) -> Described:
    """The list of a kind, or one entry of it, a setting with what it was in a run; InputError otherwise."""
    if kind not in KINDS:
        raise InputError(f"nothing called {kind!r} can be shown{nearest(kind, KINDS)} (known: {listed(KINDS)})")
    if run is not None:
        if kind != "settings" or name is None:
            raise InputError("a run can stand beside one setting: `ghosttune show settings method.r --run RUN`")
        return _settings(name, run)
    return KINDS[kind](name)


def _shipped(kind: str) -> Callable[[str | None], Described]:
    def describe(name: str | None) -> Described:
        files = shipped(kind)
        if name is None:
            meanings = {known: _header(file.read_text(encoding="utf-8")) for known, file in files.items()}
            return _table(meanings), meanings
        text = files[_known(kind, name, files)].read_text(encoding="utf-8")
        return text.rstrip(), {name: text}

    return describe


def _registered(registry: Registry) -> Callable[[str | None], Described]:
    def describe(name: str | None) -> Described:
        if name is None:
            meanings = {entry.name: entry.meaning for entry in registry}
            return _table(meanings), meanings
        entry = registry[name]
        if isinstance(entry.settings, type) and issubclass(entry.settings, Section):
            fields = {
                field: first_sentence(info.description or "") for field, info in entry.settings.model_fields.items()
            }
            return f"{entry.name}: {entry.meaning}\n\n{_table(fields)}", {"name": entry.name, "settings": fields}
        facts = entry.settings.facts()
        described = {key: _one_line(value) for key, value in facts.items() if key != "files"}
        files = ["files:", *(f"  {line}" for line in facts["files"])] if "files" in facts else []
        return "\n".join([f"{entry.name}: {entry.meaning}", "", _table(described), *files]), facts

    return describe


def _one_line(value: Any) -> str:
    return listed(value) if isinstance(value, list) else str(value).replace("\n", "\\n")


def _metrics(name: str | None) -> Described:
    if name is None:
        meanings = {entry.name: entry.meaning for entry in METRICS}
        return _table(meanings), meanings
    entry = METRICS[name]
    facts = {key: str(value) for key, value in vars(entry.settings).items()}
    return f"{entry.name}: {entry.meaning}\n\n{_table(facts)}", {"name": entry.name, "meaning": entry.meaning, **facts}


def _settings(name: str | None, run: Path | None = None) -> Described:
    fields = dict(leaf_fields()) | dict(entry_fields())
    for section, kinds in SECTION_KINDS.items():
        for entry in kinds.registry:
            fields = dict(leaf_fields({section: entry.name})) | fields
    if name is None:
        meanings = {path: first_sentence(field.description or "") for path, field in fields.items()}
        return _table(meanings), meanings
    if name not in fields:
        within = {
            path: first_sentence(field.description or "")
            for path, field in fields.items()
            if path.startswith(f"{name}.")
        }
        if within:
            return _table(within), within
        raise InputError(f"no setting is called {name!r}{nearest(name, fields)}")
    from ghosttune.workflows.explaining import explained

    facts = explained(name, fields[name], run)
    return f"{name}\n{_table(facts)}", {"name": name, **facts}


def _known(kind: str, name: str, files: dict[str, Any]) -> str:
    if name not in files:
        raise InputError(f"no {kind} is called {name!r}{nearest(name, files)} (known: {listed(files, 40)})")
    return name


def _header(text: str) -> str:
    """The comment that opens a shipped file."""
    return text.splitlines()[0].removeprefix("#").strip()


def _table(entries: dict[str, str]) -> str:
    width = max((len(name) for name in entries), default=0)
    return "\n".join(f"{name:<{width}}  {meaning}".rstrip() for name, meaning in entries.items())


KINDS: dict[str, Callable[[str | None], Described]] = {
    "presets": _shipped("preset"),
    "profiles": _shipped("profile"),
    "datasets": _registered(DATASETS),
    "methods": _registered(METHODS),
    "tasks": _registered(TASKS),
    "strategies": _registered(STRATEGIES),
    "metrics": _metrics,
    "settings": _settings,
}
