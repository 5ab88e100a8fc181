"""The setting that methods on linear layers share."""

from __future__ import annotations

from typing import Literal

from ghosttune.config.setting import MethodSettings, Names, setting


class LinearSettings(MethodSettings):
    """What every method on linear layers has."""

    target_modules: Literal["attention_qv", "attention", "mlp", "all_linear"] | Names = setting(
        "all_linear",
        critical=True,
        why="what is not adapted stays as the base has it",
        benefit="adapting all linear layers usually beats attention alone at the same size (docs/parameters.md)",
        cost="parameters and time of a step grow with the layers that are adapted",
    )
    """Which linear layers: a group, or a list of names and patterns (`[q_proj, "*.layers.0.*"]`); each must match."""
