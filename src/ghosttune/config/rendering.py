"""A configuration as YAML with one line of meaning per setting, made from the schema."""

from __future__ import annotations

from typing import Any

from ghosttune.config.notation import is_mapping, to_yaml
from ghosttune.config.schema import KINDS, SECTIONS, SWITCHES, RunConfig
from ghosttune.config.setting import Section

COMMENT_COLUMN = 46
WIDTH = 120
BLANK = " \n"
"""What YAML writes around a value; other white space, such as a no-break space, belongs to the value."""


def commented_yaml(config: RunConfig) -> str:
    """The configuration with every setting explained; loads to an equal configuration."""
    lines: list[str] = []
    for name in SECTIONS:
        section = getattr(config, name)
        off = name in SWITCHES and _is_off(name, section)
        meaning = first_sentence(RunConfig.model_fields[name].description or "")
        lines += [f"{name}: null  # {meaning}"] if off else [f"{name}:", *_section(section, 1)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _is_off(name: str, section: Section) -> bool:
    if name in KINDS:
        return getattr(section, KINDS[name].key) == KINDS[name].default
    return all(getattr(section, path.rpartition(".")[2]) is None for path in SWITCHES[name])


def plain_yaml(config: RunConfig) -> str:
    """The configuration as YAML that loads to itself: what a run directory keeps."""
    return to_yaml(config.model_dump())


def _section(section: Section, depth: int) -> list[str]:
    lines: list[str] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        indent = "  " * depth
        if isinstance(value, Section):
            lines += [f"{indent}{name}:", *_section(value, depth + 1)]
            continue
        text = f"{indent}{name}: {inline(value)}"
        meaning = first_sentence(field.description or "")
        if len(beside := f"{text:<{COMMENT_COLUMN - 1}} # {meaning}") <= WIDTH:
            lines.append(beside)
        else:
            lines += [f"{indent}# {meaning}", text]
    return lines


def inline(value: Any) -> str:
    """A value as it stands behind a key in YAML."""
    if is_mapping(value):
        value = {name: entry.model_dump() if isinstance(entry, Section) else entry for name, entry in value.items()}
    text = to_yaml(value, default_flow_style=True, width=10**9).strip(BLANK)
    return text.removesuffix("...").strip(BLANK)


def first_sentence(text: str) -> str:
    """The first sentence, on one line."""
    return " ".join(text.split()).split(". ")[0].rstrip(".")
