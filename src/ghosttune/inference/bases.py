"""One base in memory for all runs that were tuned on it.

Every run gets modules of its own, which hold the very same weights: its adapter changes its own modules and nothing
else, whatever the method, and it is computed exactly as if it were alone.
"""

from __future__ import annotations

import copy
from typing import Any

from ghosttune.config.facts import CAUSAL_LM, ModelKind
from ghosttune.config.schema import RunConfig
from ghosttune.errors import RunError
from ghosttune.models.loading import inference_device, load_model


def load_base(config: RunConfig, device: str, kind: ModelKind = CAUSAL_LM) -> Any:
    """The untouched base of a run, ready to answer on this device."""
    settings = config.model.model_copy(update={"attention": None})  # a kernel of the machine that trained
    model: Any = load_model(settings, config.train.seed, kind)
    return model.to(inference_device(device)).eval()


class Bases:
    """Models loaded once, and given out as copies that share their weights."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str, ...], Any] = {}
        self._weights: list[tuple[Any, int]] = []
        """With the version that torch counts for each, when it was loaded."""

    def take(self, config: RunConfig, device: str, kind: ModelKind = CAUSAL_LM) -> Any:
        """`load_base`, of which only the first of equal ones is loaded and costs memory.

        Equal are those of one name, revision, dtype, quantization and task; of random weights, of one seed.
        """
        drawn = str(config.train.seed) if config.model.init == "random" or kind.new_head else ""
        what = config.model.model_dump_json(exclude={"chat_template", "device", "attention"})
        key = (what, drawn, repr(kind), str(inference_device(device)))
        if key not in self._loaded:
            self._loaded[key] = load_base(config, device, kind)
            self._weights += [(weight, weight._version) for weight in _weights_of(self._loaded[key])]
        return shared_copy(self._loaded[key])

    def require_unchanged(self, name: str) -> None:
        """RunError where the weights that all share have been written to, by the run that was opened last."""
        if any(weight._version != version for weight, version in self._weights):
            raise RunError(
                f"{name} changes the weights of its base, which others share here: serve it by itself, or merge it "
                f"first with `ghosttune merge {name} --out FOLDER` and serve the folder"
            )


def shared_copy(model: Any) -> Any:
    """The model with modules of its own that hold the same parameters and buffers."""
    return copy.deepcopy(model, {id(weight): weight for weight in _weights_of(model)})


def _weights_of(model: Any) -> list[Any]:
    return [*model.parameters(), *model.buffers()]
