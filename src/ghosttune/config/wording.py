"""What pydantic found wrong, in the words of someone who writes a configuration."""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ghosttune.config.notation import parse_value, shown
from ghosttune.config.reading import SettingPath
from ghosttune.config.schema import entry_of, group_of
from ghosttune.config.setting import PATTERN_MEANINGS, Section
from ghosttune.errors import InputError, listed, nearest

EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_unicode": "text without halves of surrogate pairs",
    "list_type": "a list",
    "dict_type": "a mapping",
    "too_short": "a list with at least {min_length} entry",
    "greater_than": "more than {gt:.12g}",
    "greater_than_equal": "at least {ge:.12g}",
    "less_than": "less than {lt:.12g}",
    "less_than_equal": "at most {le:.12g}",
}
"""Kind of pydantic error -> what the value must be; `{…}` are filled from the error's context."""

LIKE = {"int_type": int, "float_type": int | float, "bool_type": bool}
"""Kinds of error that a quoted value can cause, and what it is without its quotes."""


def concerned(section: type[Section], details: list[ErrorDetails]) -> dict[SettingPath, list[ErrorDetails]]:
    """The errors of each setting, by its path below the section; a setting of several types has one error per type."""
    found: dict[SettingPath, list[ErrorDetails]] = {}
    for detail in details:
        found.setdefault(_setting(section, detail), []).append(detail)
    return found


def explain(section: type[Section], path: SettingPath, details: list[ErrorDetails]) -> str:
    """What is wrong with one setting: the value, what would be accepted, the nearest name."""
    group, field = _parent(section, path)
    detail = _about_its_shape(details)
    kind, value = detail["type"], detail["input"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        known = list(group.model_fields)
        return f"no such setting{nearest(path[-1], known)} (settings: {listed(known, 30)})"
    if kind == "value_error":  # a validator of ours, in our words
        return str(detail["ctx"]["error"])  # pyright: ignore[reportTypedDictNotRequiredAccess]
    if kind.startswith("model_"):
        inner = group_of(field) if field else None
        return f"must hold settings ({listed((inner or group).model_fields)}), got {shown(value)}"
    return f"must be {_expected(detail, field)} (got {shown(value)}){_hint(detail, field)}"


def _setting(section: type[Section], detail: ErrorDetails) -> SettingPath:
    """The path of the setting an error is about: down to a field that is no group, or to a name that is no field.

    What follows in pydantic's location lies inside the value (entries of a list, types of a union). Of a mapping, its
    keys belong to the path.
    """
    path: list[str] = []
    group: type[Section] | None = section
    entry: type[Section] | None = None
    for part in detail["loc"]:
        field = group.model_fields.get(str(part)) if group and not entry else None
        if part == "[key]":
            break
        path.append(str(part))
        group, entry = entry or (group_of(field) if field else None), entry_of(field) if field else None
        if group is None and not (field and _is_mapping(field)):
            break
    return tuple(path)


def _is_mapping(field: FieldInfo) -> bool:
    return any(get_origin(choice) is dict for choice in (field.annotation, *get_args(field.annotation)))


def _parent(section: type[Section], path: SettingPath) -> tuple[type[Section], FieldInfo | None]:
    """The group a setting stands in, and its field; None for a name that is no field."""
    group, field = section, None
    entry: type[Section] | None = None
    for name in path:
        field = None if entry else group.model_fields.get(name)
        group, entry = entry or (group_of(field) if field else None) or group, entry_of(field) if field else None
    return group, field


def _about_its_shape(details: list[ErrorDetails]) -> ErrorDetails:
    """Of the errors of a setting with several types, the one about the type that the value looks like."""
    lists = [detail for detail in details if any("list[" in str(part) for part in detail["loc"])]
    given_list = any(detail["type"] != "list_type" for detail in lists)
    return lists[0] if given_list else details[0]


def _expected(detail: ErrorDetails, field: FieldInfo | None) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "literal_error":
        names = _names(detail)
        choice = f"one of {listed(names, 20)}" if len(names) > 1 else names[0]
        return f"{choice}, or a list of names" if field and _takes_list(field) else choice
    if kind == "string_pattern_mismatch":
        return PATTERN_MEANINGS.get(context["pattern"], f"text that matches {context['pattern']}")
    template = EXPECTED.get(kind)
    return template.format(**context) if template else detail["msg"].removeprefix("Input should be ")


def _hint(detail: ErrorDetails, field: FieldInfo | None) -> str:
    kind, value = detail["type"], detail["input"]
    if value is None and field is not None and not field.is_required():
        return f"; leave the line out for its default, {shown(field.default)}"
    if kind == "literal_error":
        return nearest(str(value), _names(detail))
    if isinstance(value, str) and kind in LIKE and _reads_as(value, LIKE[kind]):
        return "; write it without quotes"
    if isinstance(value, float) and kind == "int_type" and value.is_integer():
        return f"; write {int(value)}"
    return ""


def _names(detail: ErrorDetails) -> list[str]:
    return str(detail.get("ctx", {})["expected"]).replace("'", "").replace(" or ", ", ").split(", ")


def _takes_list(field: FieldInfo) -> bool:
    return any("list[" in str(choice) for choice in get_args(field.annotation))


def _reads_as(text: str, kind: Any) -> bool:
    try:
        return isinstance(parse_value(text), kind)
    except InputError:
        return False


BOUNDS = {
    "minimum": "at least {:.12g}",
    "exclusiveMinimum": "more than {:.12g}",
    "maximum": "at most {:.12g}",
    "exclusiveMaximum": "less than {:.12g}",
}
KINDS_OF_VALUE = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "object": "a mapping",
    "null": "null",
}


def accepted(field: FieldInfo) -> str:
    """Every value that a setting takes: its kinds, names and bounds."""
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])  # pyright: ignore
    return _accepted(adapter.json_schema())


def _accepted(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return ", or ".join(map(_accepted, schema["anyOf"]))
    if names := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return " | ".join(map(str, names))
    if "items" in schema:
        return f"a list of {_accepted(schema['items'])}"
    if "pattern" in schema:
        return PATTERN_MEANINGS.get(schema["pattern"], f"text that matches {schema['pattern']}")
    if "$ref" in schema.get("additionalProperties", {}):
        return "a mapping of names to settings"
    bounds = [text.format(schema[bound]) for bound, text in BOUNDS.items() if bound in schema]
    return ", ".join([KINDS_OF_VALUE[schema["type"]], *bounds])
