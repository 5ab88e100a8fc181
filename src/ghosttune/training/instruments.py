"""What an instrument is, and how instruments take part in a step without changing it.

    before_step      the model as it is before the update (first micro-batch)
    observing        around the forward and backward of every micro-batch
    after_backward   the step's gradient is complete, not yet clipped
    after_update     the optimizer has moved the weights; the learning rate is still the step's

Instruments only read. `Measurement` is the Trainer's side of it: a callback and a context manager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ghostgrad import GradientEngine, NotFinite
from ghosttune.errors import NotANumber
from ghosttune.run.tables import Table


def lengths(tensors: list[Tensor]) -> list[Tensor]:
    """The norm of each, left on its device; one call for all: hundreds of small ones cost more than the work."""
    return list(torch._foreach_norm(tensors))  # type: ignore[reportPrivateImportUsage]


@dataclass(frozen=True)
class MicroBatch:
    """What the model reads in one micro-batch, row by row, and where layers see only chosen positions of it."""

    example_ids: list[str]
    """Of each sequence: of its row."""
    head: str | None = None
    """Name of the output layer when it sees chosen positions only."""
    positions: Tensor | None = None
    """[N] the sequence, or the row of packed rows, (0, 1, …) of each position the output layer sees."""
    row_of_position: Tensor | None = None
    """[R, T] the row of each position of packed rows, -1 for padding; None where a row is a sequence, or several."""
    owners: Tensor | None = None
    """[S] the row (0, 1, …) of each sequence, where a row is several."""
    parts: Sequence[str] = ()
    """Of its row that each sequence is."""

    @classmethod
    def of(cls, task: Any, model: Any, batch: Mapping[str, Tensor], example_ids: Sequence[str]) -> MicroBatch:
        """A batch of these rows, as its task reads it."""
        head, positions = task.head_positions(model, batch)
        owners, parts = task.sequences(batch)
        ids = list(example_ids) if owners is None else [example_ids[int(row)] for row in owners.tolist()]
        return cls(ids, head, positions, batch.get("row_of_position"), owners, parts)

    @property
    def names(self) -> list[str]:
        """What tells its sequences apart: ids, behind the part of their row that they are."""
        if not self.parts:
            return self.example_ids
        return [f"{part}:{name}" for part, name in zip(self.parts, self.example_ids, strict=True)]

    def selected(self, engine: GradientEngine) -> dict[str, Tensor]:
        """What `engine.observe` must know about layers that see chosen positions only."""
        return self._selected(engine, self.positions)

    def by_row(self, engine: GradientEngine) -> dict[str, Any]:
        """The same, and what lets the engine show whole rows where they are several sequences."""
        if self.owners is None or self.positions is None:
            return {"selected": self.selected(engine)}
        return {"selected": self._selected(engine, self.owners[self.positions]), "examples": self.owners}

    def _selected(self, engine: GradientEngine, positions: Tensor | None) -> dict[str, Tensor]:
        if self.head is None or positions is None:
            return {}
        below = [site.name for site in engine.sites if site.name.startswith(f"{self.head}.")]
        return dict.fromkeys([self.head, *below], positions)

    @contextmanager
    def named(self) -> Iterator[None]:
        """NotANumber with the ids of the rows of which the gradient is not finite."""
        try:
            yield
        except NotFinite as error:
            which = ", ".join(dict.fromkeys(self.example_ids[row] for row in error.rows)) or "unknown"
            raise NotANumber(
                f"the loss is not a number (rows {which}), so that these rows have no gradient; look at them with "
                "`ghosttune preview`, and at the weights if it is so for all rows"
            ) from error


@dataclass(frozen=True)
class StepGradient:
    """The complete, unclipped gradient of one step."""

    step: int
    norms: dict[str, Tensor]
    """Norm of each parameter's gradient, on its device; parameters without a gradient are absent."""
    length: Tensor
    """Of all of it."""
    limit: float | None
    """Length to which it is clipped; None for any."""


class Instrument:
    """Measures and never changes anything; each method is optional."""

    tables: Sequence[Table] = ()

    def open(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Training begins or continues."""

    def before_step(self, step: int) -> None:
        """Nothing of this step has been computed."""

    @contextmanager
    def observing(self, batch: MicroBatch) -> Iterator[None]:
        """Around the forward and backward of a micro-batch."""
        yield

    def after_backward(self, gradient: StepGradient) -> None:
        """The gradient of the step is complete."""

    def after_update(self, step: int) -> None:
        """The optimizer has made its step."""

    def tensors(self) -> dict[str, Tensor]:
        """State that a checkpoint must hold."""
        return {}

    def counters(self) -> dict[str, Any]:
        """State that a checkpoint must hold, as JSON."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Takes up the state of a checkpoint; comes before `open`."""

    def close(self, model: nn.Module) -> None:
        """The last step has been made."""


class Measurement(TrainerCallback):
    """Lets instruments take part in a Trainer's steps.

    Args:
        model: the model that trains, unwrapped.
        instruments: in the order in which they are asked.
        max_grad_norm: the Trainer's; 0 for no clipping.
    """

    def __init__(self, model: nn.Module, instruments: Sequence[Instrument], max_grad_norm: float):
        self.model, self.instruments, self.max_grad_norm = model, instruments, max_grad_norm
        self.parameters = dict(model.named_parameters())
        self.step = 0
        self.opened = False
        """Whether the step under way has begun."""

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self.step = state.global_step
        self.open(getattr(optimizer, "optimizer", optimizer))

    def open(self, optimizer: torch.optim.Optimizer) -> None:
        """Before the first step, or where there is none left."""
        for instrument in self.instruments:
            instrument.open(self.model, optimizer)

    def begin_step(self) -> None:
        """The step under way begins, unless it has; for who needs the instruments before its first micro-batch."""
        if self.opened:
            return
        self.opened = True
        for instrument in self.instruments:
            instrument.before_step(self.step + 1)

    @contextmanager
    def micro_batch(self, batch: Callable[[], MicroBatch], is_last: Callable[[], bool]) -> Iterator[None]:
        """Around the forward and backward of a micro-batch; `is_last` says whether it completes the step."""
        if not self.instruments:
            yield
            return
        self.begin_step()
        with ExitStack() as stack:
            rows = batch()
            for instrument in self.instruments:
                stack.enter_context(instrument.observing(rows))
            yield
        if is_last():
            gradient = self._gradient()
            for instrument in self.instruments:
                instrument.after_backward(gradient)

    def _gradient(self) -> StepGradient:
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        norms = lengths(list(gradients.values()))
        total = torch.linalg.vector_norm(torch.stack(norms))
        return StepGradient(self.step + 1, dict(zip(gradients, norms, strict=True)), total, self.max_grad_norm or None)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step = state.global_step + 1
        self.opened = False
        for instrument in self.instruments:
            instrument.after_update(self.step)

    def engines(self) -> list[GradientEngine]:
        """With which instruments see single rows."""
        found = [getattr(instrument, "engine", None) for instrument in self.instruments]
        return [engine for engine in found if engine is not None]

    def flush(self) -> None:
        """Writes what the tables hold back."""
        for table in self._tables():
            table.flush()

    def forget_after(self, step: int) -> None:
        """Removes what a resumed run will measure again."""
        for table in self._tables():
            table.forget_after(step)

    def _tables(self) -> list[Table]:
        return [table for instrument in self.instruments for table in instrument.tables]

    def tensors(self) -> dict[str, Tensor]:
        """State of all instruments for a checkpoint."""
        return {name: tensor for instrument in self.instruments for name, tensor in instrument.tensors().items()}

    def counters(self) -> dict[str, Any]:
        return {name: value for instrument in self.instruments for name, value in instrument.counters().items()}

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        for instrument in self.instruments:
            instrument.restore(tensors, counters)

    def close(self) -> None:
        """After the last step: what is still open is measured and everything is written."""
        for instrument in self.instruments:
            instrument.close(self.model)
        self.flush()


def instrument_of(measurement: Measurement, kind: type[Instrument]) -> Any:
    """The instrument of a kind; None when it is off."""
    return next((one for one in measurement.instruments if isinstance(one, kind)), None)
