"""Online selection: of the candidates of a step, the rows that train.

`Candidates` looks at more rows than a step trains and names those to keep (GREATS: Wang et al. 2024, NeurIPS). As many
train as without selection, so that runs with and without differ in which rows an update is made of, and in time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ghostgrad import Dots, Norms, Observer, UnsupportedLayer
from ghosttune.config.sections.data import OnlineSelectionSettings
from ghosttune.data.encoding import RowFeatures
from ghosttune.data.splitting import draw
from ghosttune.run.tables import Table
from ghosttune.training.engines import Unsupported, row_engine
from ghosttune.training.guide import evaluating
from ghosttune.training.instruments import Instrument, MicroBatch
from ghosttune.training.ledger import Ledger
from ghosttune.training.processes import gathered, processes, rank

SELECTION_COLUMNS = {"step": "int64", "example_id": "string", "tokens": "int64", "score": "float64", "kept": "bool"}


BY_GRADIENT = ("value", "gradient_norm")
"""Choices that look at the gradient of each candidate."""


class Candidates(Instrument):
    """Scores the candidates of each step at the weights it starts from; changes nothing itself.

    Costs a forward pass over every candidate, and for `value` and `gradient_norm` a backward pass that makes no
    parameter's gradient; nothing for `random`.

    Args:
        model: the model that trains, unwrapped.
        task: whose loss is scored.
        collate: makes batches of features.
        rows: the training rows.
        settings: by what they are chosen.
        seed: of the draws that decide between equal scores.
        batch_size: candidates that are scored at once: those of a micro-batch.
        table: of SELECTION_COLUMNS; one entry per candidate.
        ledger: whose guide gradient makes the `value`; for the others None.
        unsupported: what is done with trained parameters without a rule; those left out count for no candidate.

    Raises:
        UnsupportedLayer: for `value` and `gradient_norm`, a trained parameter whose per-row gradient is not known.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Any,
        collate: Any,
        rows: Sequence[RowFeatures],
        settings: OnlineSelectionSettings,
        seed: int,
        batch_size: int,
        table: Table,
        ledger: Ledger | None = None,
        unsupported: Unsupported = "exact",
    ):
        self.model, self.task, self.collate, self.rows = model, task, collate, rows
        self.settings, self.seed, self.batch_size, self.ledger = settings, seed, batch_size, ledger
        self.table, self.tables = table, (table,)
        self.device = next(model.parameters()).device
        self.engine = row_engine(model, unsupported) if settings.by in BY_GRADIENT else None
        if self.engine is not None and not self.engine.parameters:
            raise UnsupportedLayer(f"  all {len(self.engine.left_out)} trained tensors, which are left out")
        self.seconds = 0.0
        """Time that choosing has taken."""

    def choose(self, step: int, offered: Sequence[Sequence[int]]) -> list[list[int]]:
        """The micro-batches of row positions that this process trains, as many as the `offered` ones of its candidates.

        Every process knows all candidates and their scores, so that what is kept does not depend on their number.
        """
        begun = time.perf_counter()
        own = [position for batch in offered for position in batch]
        parts = gathered((own, self._scores(own)))
        places = [position for positions, _ in parts for position in positions]
        scores = None if parts[0][1] is None else np.concatenate([found for _, found in parts])
        count = len(offered) * processes()
        kept = self._kept(step, places, scores, min(len(places), count * self.batch_size))
        self._record(step, places, scores, kept)
        chosen = sorted((places[place] for place in kept), key=lambda position: len(self.rows[position]))
        self.seconds += time.perf_counter() - begun
        return [part.tolist() for part in np.array_split(chosen, count)[rank() :: processes()]]

    def _kept(self, step: int, places: list[int], scores: np.ndarray | None, keep: int) -> list[int]:
        """Which of the candidates train, by their place; equal scores are decided by a draw."""
        draws = [draw(self.seed, f"step {step}", self.rows[position].example_id) for position in places]
        drawn = np.argsort(draws, kind="stable")
        if scores is None:
            return drawn[:keep].tolist()
        wanted = -scores[drawn] if self.settings.lowest else scores[drawn]
        wanted[~np.isfinite(wanted)] = np.inf  # training refuses such a row by name; it is not to get lost here
        if self.settings.by == "value":
            targets = np.array([max(self.rows[places[place]].targets, 1) for place in drawn], float)
            return drawn[best_update(wanted, targets, keep)].tolist()
        return drawn[np.argsort(-wanted, kind="stable")[:keep]].tolist()

    def _record(self, step: int, places: list[int], scores: np.ndarray | None, kept: list[int]) -> None:
        among = set(kept)
        columns = {
            "step": [step] * len(places),
            "example_id": [self.rows[position].example_id for position in places],
            "tokens": [len(self.rows[position]) for position in places],
            "score": [None] * len(places) if scores is None else scores.tolist(),
            "kept": [place in among for place in range(len(places))],
        }
        self.table.append(step, columns)

    def _scores(self, positions: list[int]) -> np.ndarray | None:
        """[N] float64 of the candidates; None where there are none: a random draw, or no direction yet."""
        by = self.settings.by
        if by == "random" or (by == "value" and not self._direction()):
            return None
        scores = np.zeros(len(positions))
        by_length = sorted(range(len(positions)), key=lambda place: len(self.rows[positions[place]]))
        parts = [by_length[start : start + self.batch_size] for start in range(0, len(by_length), self.batch_size)]
        parts += parts[:1] * (max(gathered(len(parts))) - len(parts))  # a base that is shared out needs all, or none
        with evaluating(self.model):
            for some in parts:
                scores[some] = self._score([self.rows[positions[place]] for place in some]).double().cpu().numpy()
        return scores

    def _score(self, rows: Sequence[RowFeatures]) -> Tensor:
        batch = {name: tensor.to(self.device) for name, tensor in self.collate(rows).items()}
        if self.engine is None:
            with torch.no_grad():
                nats = self.task.example_loss(self.model, batch)
            return nats / nats.new_tensor([max(row.targets, 1) for row in rows])
        if self.settings.by == "gradient_norm":
            return self._observed(rows, batch, Norms())
        return self._observed(rows, batch, Dots(self._direction()))

    def _observed(self, rows: Sequence[RowFeatures], batch: Mapping[str, Tensor], observer: Norms | Dots) -> Tensor:
        engine: Any = self.engine
        shown = MicroBatch.of(self.task, self.model, batch, [row.example_id for row in rows])
        observers: list[Observer] = [observer]
        with shown.named(), engine.probe(*observers, **shown.by_row(engine)) as backward:
            backward(self.task.example_loss(self.model, batch).sum())
        return observer.total()

    def _direction(self) -> Mapping[str, Tensor]:
        """What a row's gradient is multiplied with; empty before the optimizer knows the size of its steps."""
        return self.ledger.direction if self.ledger is not None else {}


def best_update(values: np.ndarray, targets: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` places with the largest Σ values / Σ targets: the update that lowers the guide loss most.

    A step's gradient is the sum over its rows divided by their targets, so that long rows are not better for being
    long. Exact, by Dinkelbach's iteration (1967, Management Science 13): the best rows for a quotient are those with
    the largest value - quotient * targets, and the quotient of these is larger, until it is the best. Of equal rows the
    earlier ones.
    """
    chosen = np.argsort(-values / targets, kind="stable")[:keep]
    while True:
        quotient = values[chosen].sum() / targets[chosen].sum()
        if not np.isfinite(quotient):
            return chosen
        better = np.argsort(quotient * targets - values, kind="stable")[:keep]
        if values[better].sum() / targets[better].sum() <= quotient:
            return chosen
        chosen = better
