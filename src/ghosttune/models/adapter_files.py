"""The files of an adapter, judged before PEFT sees them: it warns of what is missing, and asks the hub or a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ghosttune.errors import ModelError, listed
from ghosttune.models.upstream import import_peft, without_upstream_warnings

CONFIGURATION = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MODEL_WEIGHTS, MODEL_INDEX = "model.safetensors", "model.safetensors.index.json"

PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")

NAMES_OF_MODULES = ("target_modules", "feedforward_modules", "modules_to_save")
"""Entries that a saved adapter holds as lists; PEFT takes a text for a regular expression, which may never end."""

KEYED_BY_MODULES = ("rank_pattern", "alpha_pattern")

UNUSED = (
    *("exclude_modules", "layers_pattern", "layers_to_transform", "layer_replication", "target_parameters"),
    *("megatron_config", "eva_config", "corda_config", "loftq_config", "arrow_config", "monteclora_config"),
    *("adapters", "tokenizer_kwargs", "prompt_tuning_init_state_dict_path"),
)
"""Entries that no method here sets; some are patterns, some name modules to import or files to read."""

SHOWN = 3
"""Tensors of each kind that a message names."""


def adapter_configuration(folder: Path) -> Any:
    """PEFT's configuration of the adapter in a folder; ModelError, with its fault, for one that nobody here wrote."""
    import_peft()
    from peft import PeftConfig

    path = folder / CONFIGURATION
    fault = _fault(_read(path))
    if fault:
        raise ModelError(f"{path} {fault}; restore it as the run wrote it")
    try:
        with without_upstream_warnings():
            return PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # whatever PEFT's classes raise for values of a wrong type
        raise ModelError(f"{path} cannot be used: {type(error).__name__}: {error}") from error


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}; restore it as the run wrote it") from error


def _fault(stored: Any) -> str:
    """What is wrong with an adapter's configuration; empty where nothing is."""
    from peft import PeftType

    if not isinstance(stored, dict):
        return f"holds a {type(stored).__name__} in place of settings"
    if stored.get("peft_type") not in PeftType.__members__.values():
        return f"has peft_type {stored.get('peft_type')!r}, which PEFT does not know"
    for name in NAMES_OF_MODULES:
        if not _is_list_of_names(stored.get(name) or []):
            return f"has {name} {str(stored[name])[:80]!r}, which must be a list of names"
    for name in KEYED_BY_MODULES:
        value = stored.get(name) or {}
        if not (isinstance(value, dict) and _is_list_of_names(list(value))):
            return f"has {name} {str(value)[:80]!r}, whose keys must be names of modules"
    if used := [name for name in UNUSED if stored.get(name)]:
        return f"sets {listed(used)}, which no method here does"
    return ""


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(name, str) and all(character.isalnum() or character in "._-" for character in name) for name in value
    )


def require_safetensors(folder: Path, *names: str) -> Path:
    """The first file of these names that is there; ModelError, saying so where there are pickled weights instead."""
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is not None:
        return found
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{folder} holds pickled weights ({listed(pickled, SHOWN)}), which can run code when they are read and are "
            f"always refused; convert them to {names[0]} where you trust them"
        )
    raise ModelError(f"{folder} holds no weights: there is no {names[0]} in it; restore it, or train again")


def require_own_shards(index: Path) -> None:
    """ModelError unless every file that an index of weights names lies beside it."""
    stored = _read(index)
    files = stored.get("weight_map") if isinstance(stored, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ModelError(f"{index} is damaged: it holds no weight_map of names")
    if strange := sorted({name for name in files.values() if Path(name).name != name}):
        raise ModelError(f"{index} names files outside its folder: {listed(strange, SHOWN)}")


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor -> shape, from the head of the file; SafetensorError where it is damaged."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # not a dict


def require_fit(what: str, stored: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """ModelError naming the tensors that are missing, left over or of another shape, unless these are the same."""
    missing = [name for name in expected if name not in stored]
    unknown = [name for name in stored if name not in expected]
    other = [
        f"{name} is {list(stored[name])} and should be {list(shape)}"
        for name, shape in expected.items()
        if name in stored and tuple(stored[name]) != tuple(shape)
    ]
    parts = {"missing": missing, "not the adapter's": unknown, "of another shape": other}
    if found := "; ".join(f"{kind}: {listed(names, SHOWN)}" for kind, names in parts.items() if names):
        raise ModelError(f"{what} does not fit this model and method: {found}")
