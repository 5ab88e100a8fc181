"""Training the model's own parameters, with what the rest asks of an adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn


class DirectModel(nn.Module):
    """A model of which the named parameters train in place; saved as a plain model folder.

    What it does not have itself is the model's own. `load_again` gives the untouched model where it is asked for, so
    that no second copy is kept while training.
    """

    def __init__(self, model: Any, trained: Sequence[str], load_again: Callable[[], Any]):
        super().__init__()
        self.model = model
        self.trained = [f"model.{name}" for name in trained]
        self.load_again = load_again
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in self.trained)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def get_base_model(self) -> Any:
        """The model itself, tuned."""
        return self.model

    def merge_and_unload(self) -> Any:
        """The model itself, tuned: there is nothing to merge."""
        return self.model

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The untouched model in place of the tuned one; loads it, and holds both inside."""
        tuned = self.model
        self.model = self.load_again().to(tuned.device).train(tuned.training)
        try:
            yield
        finally:
            self.model = tuned

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """A model folder that Transformers loads alone."""
        self.model.save_pretrained(str(folder))
