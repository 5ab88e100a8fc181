"""Rotary positions in a config.json under their earlier names too, for who reads it otherwise than Transformers 5."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from ghosttune.models.upstream import without_upstream_warnings

OWN = "rope_parameters"
"""The only name that Transformers 5 writes; mlx-lm and earlier Transformers take a default in its place."""

FULL, SLIDING = "full_attention", "sliding_attention"


def repeat_rotations(configuration: Path) -> None:
    """Writes the earlier names beside the new one, where Transformers reads the same positions from both.

    It does not of models that never had those names, and of code that comes with a model nothing is known.
    """
    from transformers import CONFIG_MAPPING

    settings = json.loads(configuration.read_text(encoding="utf-8"))
    if settings.get("model_type") not in CONFIG_MAPPING:
        return
    both = _with_earlier_names(settings)
    if _read(both) == _read(settings):
        configuration.write_text(json.dumps(both, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _with_earlier_names(section: dict[str, Any]) -> dict[str, Any]:
    """A section of a configuration and those within it (`text_config`), each with the names it had."""
    found = {name: _with_earlier_names(value) if isinstance(value, dict) else value for name, value in section.items()}
    own = section.get(OWN) or {}
    full = dict(own.get(FULL) or own)
    if "rope_theta" in full:
        found["rope_theta"] = full.pop("rope_theta")
        if "partial_rotary_factor" in full:
            found["partial_rotary_factor"] = full.pop("partial_rotary_factor")
        if full.keys() - {"rope_type"} or full.get("rope_type", "default") != "default":
            found["rope_scaling"] = full
    if SLIDING in own:
        found["rope_local_base_freq"] = own[SLIDING]["rope_theta"]
    return found


def _read(settings: dict[str, Any]) -> dict[str, Any] | None:
    """What Transformers makes of positions; None where these names are an error to it."""
    from transformers import CONFIG_MAPPING

    try:
        with without_upstream_warnings():
            config = CONFIG_MAPPING[settings["model_type"]].from_dict(deepcopy(settings))
    except Exception:  # each kind of model reads them by code of its own
        return None
    return _rotations(config.to_dict())


def _rotations(section: dict[str, Any]) -> dict[str, Any]:
    """What a configuration says of positions, by the section that says it."""
    within = {name: _rotations(value) for name, value in section.items() if isinstance(value, dict) and name != OWN}
    return {OWN: section.get(OWN)} | {name: value for name, value in within.items() if value}
