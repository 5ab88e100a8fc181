"""The models that ship inside the package."""

from pathlib import Path

BUILTIN_MODELS = {"builtin:tiny": "builtin_tiny"}
"""Name in a config, and the folder beside this file that holds the model."""


def builtin_model_folder(name: str) -> Path:
    """The folder of a built-in model, in the form that `from_pretrained` loads; `KeyError` for other names."""
    return Path(__file__).parent / BUILTIN_MODELS[name]
