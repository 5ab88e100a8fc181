"""What the gradient of each row is at the weights a model has now, small enough to keep.

A row's gradient is that of its summed nats, without dropout. Adapters' own gradients are kept as they are where all of
them fit into EXACT_BYTES; else every parameter's is projected (`ghostgrad.sketch`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ghostgrad import (
    PROFILES,
    Dots,
    GradientEngine,
    Gram,
    Observer,
    Sketcher,
    Sketches,
    SketchOptions,
    UnsupportedLayer,
)
from ghostgrad.sketch import ErrorBar, error_bar
from ghosttune.config.facts import ParameterFacts
from ghosttune.data.encoding import RowFeatures
from ghosttune.errors import InputError, listed, nearest
from ghosttune.training.engines import Unsupported, row_engine, unsupported_layers
from ghosttune.training.guide import evaluating
from ghosttune.training.instruments import MicroBatch

EXACT_BYTES = 1 << 28
"""Largest store of whole gradients that `auto` makes: 256 MiB."""

CALIBRATION_ROWS = 16
"""Rows whose exact inner products tell the error of sketched ones: 120 pairs."""

Seen = TypeVar("Seen", bound=Observer)

Batch = dict[str, list[RowFeatures]]
"""example_id -> its windows: one, but for tasks that cut long texts."""

AUTO, EXACT, SKETCHED = "auto", "exact@1", "standard@1"


def sketcher_of(
    facts: Mapping[str, ParameterFacts],
    parameters: Mapping[str, nn.Parameter],
    rows: int,
    kind: str = AUTO,
    changes: Mapping[str, Any] | None = None,
) -> Sketcher:
    """The projections of a store of so many rows: those of a profile with some options replaced.

    `auto` keeps whole gradients where they fit into EXACT_BYTES and nothing is replaced. InputError for options that
    contradict each other or leave nothing to keep.
    """
    if kind != AUTO and kind not in PROFILES:
        raise InputError(
            f"no sketch is called {kind!r}{nearest(kind, PROFILES)}; known are {listed([AUTO, *PROFILES])}"
        )
    numbers = sum(parameters[name].numel() for name in facts)
    if kind == AUTO:
        kind = EXACT if not changes and numbers * rows * 4 <= EXACT_BYTES else SKETCHED
    try:
        return sketcher_for(facts, parameters, replace(PROFILES[kind], **(changes or {})))
    except ValueError as error:
        raise InputError(f"these gradients cannot be kept like that: {error}") from error


def sketcher_for(
    facts: Mapping[str, ParameterFacts], parameters: Mapping[str, nn.Parameter], options: SketchOptions
) -> Sketcher:
    """The projections under these options; ValueError as `Sketcher` raises it."""
    tables = frozenset(name for name, fact in facts.items() if fact.group == "embedding")
    return Sketcher({name: tuple(parameters[name].shape) for name in facts}, options, tables)


def is_exact(sketcher: Sketcher) -> bool:
    """Whether rows are the gradients themselves."""
    return sketcher.size == sum(math.prod(shape) for shape in sketcher.shapes.values())


def row_facts(
    model: nn.Module, facts: Mapping[str, ParameterFacts], unsupported: Unsupported
) -> dict[str, ParameterFacts]:
    """Of the trained parameters, those whose gradients of single rows are kept."""
    left_out = row_engine(model, "leave_out").left_out if unsupported == "leave_out" else {}
    kept = {name: fact for name, fact in facts.items() if name not in left_out}
    if not kept:
        raise InputError(
            f"all {len(left_out)} trained tensors are without a rule and left out of what is kept of rows; train the "
            "run with measure.unsupported: exact"
        )
    return kept


def predicted(
    model: nn.Module, facts: Mapping[str, ParameterFacts], rows: int, unsupported: Unsupported
) -> dict[str, Any]:
    """Kind, width and size of the store that `auto` makes of so many rows; InputError where there can be none."""
    named = dict(model.named_parameters())
    sketcher = sketcher_of(row_facts(model, facts, unsupported), named, rows)
    engine_of(model, sketcher, unsupported)
    size = sketcher.size * sketcher.options.dtype.itemsize * rows
    return {
        "gradients": "whole" if is_exact(sketcher) else "projected",
        "numbers_per_row": sketcher.size,
        "bytes": size,
    }


def engine_of(model: nn.Module, sketcher: Sketcher, unsupported: Unsupported) -> GradientEngine:
    """Sees the parameters that are sketched; InputError for those whose per-row gradient is not known, by name."""
    try:
        return row_engine(model, unsupported, select=lambda name, parameter: name in sketcher)
    except UnsupportedLayer as error:
        remedy = ". Train the run with measure.unsupported: exact or leave_out" if unsupported == "refuse" else ""
        raise InputError(f"gradients of single rows are not known for {unsupported_layers(error)}{remedy}") from error


class RowGradients:
    """Gradients of rows under a sketch, at the weights the model has when they are asked for.

    Args:
        model: with its adapter, on its device.
        task: whose loss is differentiated.
        collate: makes batches of features.
        sketcher: see `sketcher_of`; its parameters are observed and no others.
        batch_size: rows of one forward and backward: what memory grows with.
        unsupported: what is done with parameters without a rule; those left out are not in the sketch.

    Raises:
        InputError: a parameter whose per-row gradient is not known, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Any,
        collate: Any,
        sketcher: Sketcher,
        batch_size: int,
        unsupported: Unsupported = "exact",
    ):
        self.model, self.task, self.collate, self.sketcher, self.batch_size = model, task, collate, sketcher, batch_size
        self.device = next(model.parameters()).device
        self.engine = engine_of(model, sketcher, unsupported)

    def sketches(self, rows: Sequence[RowFeatures]) -> Iterator[tuple[list[str], Tensor]]:
        """(ids, [B, size] rows) of all rows, shortest first."""
        return self.batch_sketches(self.batches(rows))

    def batches(self, rows: Sequence[RowFeatures]) -> Iterator[Batch]:
        """All rows in the batches they are computed in."""
        return row_batches(rows, self.batch_size)

    def batch_sketches(self, batches: Iterable[Batch]) -> Iterator[tuple[list[str], Tensor]]:
        """(ids, [B, size] rows) of each batch; windows of one row are added up."""
        with evaluating(self.model):
            for batch in batches:
                sketches = Sketches(self.sketcher)
                places = self._observe(batch, sketches)
                own = sketches.rows()
                if len(places) == len(batch):
                    yield list(batch), own
                    continue
                added = torch.zeros(len(batch), own.shape[1], dtype=torch.float32, device=own.device)
                yield list(batch), added.index_add_(0, places, own.float()).to(own.dtype)

    def unrounded(self, windows: Sequence[RowFeatures]) -> Tensor:
        """[n, size] of each window by itself, in order, in the dtype sums are made in."""
        return torch.cat([found.unrounded() for found in self._alone(windows, lambda: Sketches(self.sketcher))])

    def dots(self, windows: Sequence[RowFeatures], direction: Mapping[str, Tensor]) -> Tensor:
        """[n] inner product of each window's gradient by itself with a direction, as `direction` gives one."""
        return torch.cat([found.total() for found in self._alone(windows, lambda: Dots(direction))])

    def _alone(self, windows: Sequence[RowFeatures], observer: Callable[[], Seen]) -> Iterator[Seen]:
        """An observer that has seen the windows, for each batch of them, in order."""
        with evaluating(self.model):
            for start in range(0, len(windows), self.batch_size):
                seen, part = observer(), windows[start : start + self.batch_size]
                self._observe({str(place): [window] for place, window in enumerate(part)}, seen)
                yield seen

    def error(self, rows: Sequence[RowFeatures]) -> ErrorBar:
        """How far cosines of sketches are from those of the gradients, over pairs of a few rows.

        InputError for fewer than three rows, which cannot tell.
        """
        some = next(row_batches(rows, CALIBRATION_ROWS), {})
        if len(some) < 3:
            raise InputError(
                f"{len(some)} rows cannot tell the error of projections, for which three are needed; keep whole "
                f"gradients ({EXACT})"
            )
        gram, sketches = Gram(), Sketches(self.sketcher)
        with evaluating(self.model):
            places = self._observe(some, gram, sketches)
        belongs = torch.nn.functional.one_hot(places.cpu()).double()
        exact, own = gram.total().double().cpu(), sketches.rows().double().cpu()
        return error_bar(belongs.mT @ exact @ belongs, belongs.mT @ own)

    def _observe(self, rows: Batch, *observers: Observer) -> Tensor:
        """Runs the rows in sight of the observers; [windows] which row each window is of."""
        windows = [window for own in rows.values() for window in own]
        batch = {name: tensor.to(self.device) for name, tensor in self.collate(windows).items()}
        shown = MicroBatch.of(self.task, self.model, batch, [window.example_id for window in windows])
        with shown.named(), self.engine.probe(*observers, **shown.by_row(self.engine)) as backward:
            backward(self.task.example_loss(self.model, batch).sum())
        sizes = torch.tensor([len(own) for own in rows.values()], device=self.device)
        return torch.arange(len(rows), device=self.device).repeat_interleave(sizes)


def row_batches(rows: Sequence[RowFeatures], size: int) -> Iterator[Batch]:
    """The rows with their windows, shortest first, until a batch has `size` windows; a row is never split."""
    windows: Batch = {}
    for window in sorted(rows, key=len):
        windows.setdefault(window.example_id, []).append(window)
    batch: Batch = {}
    held = 0
    for example_id, own in windows.items():
        if batch and held + len(own) > size:
            yield batch
            batch, held = {}, 0
        batch[example_id] = own
        held += len(own)
    if batch:
        yield batch


def over_second_moments(
    direction: Mapping[str, Tensor], moments: Mapping[str, Tensor], epsilon: float
) -> dict[str, Tensor]:
    """The direction over √v̂ + ε: its inner product with a row is what AdamW makes of that row's gradient.

    0 where v̂ is, and for parameters without one: no gradient has reached them.
    """
    scaled = {}
    for name, gradient in direction.items():
        second = moments.get(name)
        scaled[name] = (
            torch.zeros_like(gradient)
            if second is None
            else torch.where(second > 0, gradient / (second.sqrt() + epsilon), 0.0)
        )
    return scaled
