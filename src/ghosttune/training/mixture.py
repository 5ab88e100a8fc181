"""The weights of a mixture's sources, learnt while the run goes on.

After every window of updates, what the rows of each source did in it says how the next window's rows are drawn. By
`guide` that is their value per target (first order, as the ledger has it: what they did to the guide loss), by `odm`
their loss per target, by `doremi` what of it is above a reference's. All of it is recorded, and the order of rows
follows from the seed and the recorded shares.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghosttune.config.sections.data import MixtureSettings
from ghosttune.data.encoding import RowFeatures
from ghosttune.data.mixing import source_of_row
from ghosttune.data.selecting import shares_of
from ghosttune.run.tables import Table
from ghosttune.training.instruments import Instrument, MicroBatch
from ghosttune.training.ledger import Ledger
from ghosttune.training.order import WHOLE, LearntOrder
from ghosttune.training.processes import gathered, processes, rank

MIXTURE_COLUMNS = {
    "step": "int64",
    "source": "string",
    "weight": "float64",
    "rows": "int64",
    "targets": "int64",
    "signal": "float64",
}
"""`weight` holds from update `step` on; it was learnt from `signal`, per target of the rows of the window before."""

REMEMBERED = 0.9
"""Of an average reward, the share that a window leaves as it was (Albalak et al. 2023)."""


class Exponentiated:
    """Exponentiated gradient on the guide loss (DoGE: Fan et al. 2023, arXiv 2310.15393, at the rate of Hedge).

    A source's weight is its first one times exp(rate times what its targets gained so far). What it gained in a window
    is over the largest that any source gained or lost there: the first windows, in which whatever trains lowers the
    loss, would outweigh all others. The rate is that of Hedge after T windows, sqrt(2 ln K / T): gains that are all
    chance leave the weights near the first ones however long the run is, and who is always better gets everything.
    """

    def __init__(self, first: Sequence[float], floor: float):
        self.first, self.floor = np.array(first), floor
        self.gained, self.windows = np.zeros(len(first)), 0

    def learn(self, signals: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The next weights; `signals` of the window that had these weights, NaN for a source that had no row."""
        seen = ~np.isnan(signals)
        if seen.any() and weights[seen].sum() > 0:
            mean = np.average(signals[seen], weights=weights[seen])
            gains = np.where(seen, signals, mean)  # who had no row neither gains on the mixture nor loses
            if largest := np.abs(gains).max():
                self.gained, self.windows = self.gained + gains / largest, self.windows + 1
        count = len(self.first)
        rate = math.sqrt(2 * math.log(count) / self.windows) if self.windows else 0.0
        return _above(self.first * np.exp(rate * (self.gained - self.gained.max())), self.floor / count)

    def state(self) -> dict[str, Any]:
        return {"gained": self.gained.tolist(), "windows": self.windows}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.gained, self.windows = np.array(state["gained"]), state["windows"]


class Excess:
    """DoReMi (Xie et al. 2023, arXiv 2305.10429): exponentiated gradient on a source's loss above a reference's.

    The rate is 1 and the weights are mixed with equal ones, as published; `floor` says how much. What is clipped at 0
    is a row's excess, where DoReMi clips that of each token. A window without a row of a source leaves it as it was.
    """

    def __init__(self, first: Sequence[float], floor: float):
        self.first, self.floor = np.array(first), floor
        self.gained = np.zeros(len(first))

    def learn(self, signals: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The next weights; `signals` of the window that had these weights, NaN for a source that had no row."""
        self.gained = self.gained + np.nan_to_num(signals)
        return _above(self.first * np.exp(self.gained - self.gained.max()), self.floor / len(self.first))

    def state(self) -> dict[str, Any]:
        return {"gained": self.gained.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.gained = np.array(state["gained"])


class Bandit:
    """Online data mixing (Albalak et al. 2023, arXiv 2312.02406): EXP3 with a source's loss as its reward.

    Rewards are averaged over the windows, as published. A reward is divided by the chance that the window had a row of
    the source at all, which is 1 but for the rarest: what is published divides by the weight, since there one draw
    decides what a whole batch is of. And the average begins with the first reward in place of 0, which would take
    thousands of updates to leave.
    """

    def __init__(self, first: Sequence[float], floor: float, rows: int):
        self.first, self.floor, self.rows = np.array(first), floor, rows
        self.rewards, self.windows = np.full(len(first), np.nan), 0

    def learn(self, signals: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The next weights; `signals` of the window that had these weights, NaN for a source that had no row."""
        seen = ~np.isnan(signals)
        rewards = signals / np.minimum(1.0, np.maximum(weights * self.rows, 1e-9))
        averaged = REMEMBERED * self.rewards + (1 - REMEMBERED) * rewards
        self.rewards = np.where(seen, np.where(np.isnan(self.rewards), rewards, averaged), self.rewards)
        rate, self.windows = self._exploring(self.windows), self.windows + 1
        known = self.rewards[~np.isnan(self.rewards)]
        known = np.nan_to_num(self.rewards, nan=float(known.mean()) if len(known) else 0.0)
        least = max(self._exploring(self.windows), self.floor / len(self.first))
        return _above(self.first * np.exp(rate * (known - known.max())), least)

    def _exploring(self, window: int) -> float:
        count = len(self.first)
        return min(1 / count, math.sqrt(math.log(count) / (count * window))) if window else 1 / count

    def state(self) -> dict[str, Any]:
        rewards = [None if math.isnan(reward) else reward for reward in self.rewards.tolist()]
        return {"rewards": rewards, "windows": self.windows}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.rewards, self.windows = np.array(state["rewards"], float), state["windows"]


def _above(weights: np.ndarray, least: float) -> np.ndarray:
    """The weights as shares of what is left when each source has the least."""
    return (1 - len(weights) * least) * weights / weights.sum() + least


class Mixture(Instrument):
    """Learns the shares of `order` and records them; `saw` is to be told of every micro-batch.

    Args:
        rows: the training rows.
        order: that draws them; a window begins with the shares that are appended to it.
        settings: from what, how often and how far the weights are learnt.
        device: of the model.
        table: of MIXTURE_COLUMNS; one entry per window and source.
        ledger: that tells what rows do; only `guide` asks it.
        reference: the nats of each row under the reference of `doremi`.
    """

    def __init__(
        self,
        rows: Sequence[RowFeatures],
        order: LearntOrder,
        settings: MixtureSettings,
        device: torch.device,
        table: Table,
        ledger: Ledger | None = None,
        reference: Sequence[float] | None = None,
    ):
        self.order, self.by, self.every = order, settings.by, settings.every
        self.ledger = ledger if settings.by == "guide" else None
        self.table, self.tables = table, (table,)
        first = [share / WHOLE for share in order.shares[0]]
        self.learner = {
            "guide": partial(Exponentiated, first, settings.floor),
            "odm": partial(Bandit, first, settings.floor, settings.every * order.rows_per_step),
            "doremi": partial(Excess, first, settings.floor),
        }[settings.by or ""]()
        self.place = {name: place for place, name in enumerate(order.sources)}
        self.source_of = torch.tensor([self.place[source_of_row(row.example_id)] for row in rows], device=device)
        self.targets_of = torch.tensor([row.targets for row in rows], dtype=torch.float64, device=device)
        self.reference = None if reference is None else torch.tensor(reference, dtype=torch.float64, device=device)
        self.sums = torch.zeros(3, len(first), dtype=torch.float64, device=device)
        """[rows, targets and nats (above the reference), sources] of this process in the window under way."""
        self.values = torch.zeros(len(first), dtype=torch.float64)
        """The same of what its rows did to the guide loss."""
        self.ids: list[str] = []
        """Of the sequences of the step under way."""
        self.seconds = 0.0
        """Time that learning took."""

    def before_step(self, step: int) -> None:
        if (step - 1) % self.every:
            return
        with self._timed():
            if step == 1:
                self._record(step, np.zeros((2, len(self.place))), np.full(len(self.place), np.nan))
            else:
                self._learn(step)

    def _learn(self, step: int) -> None:
        parts = [np.concatenate([sums, [values]]) for sums, values in gathered((self.sums.tolist(), self._values()))]
        rows, targets, nats, values = np.sum(parts, axis=0)
        told = nats if self.ledger is None else values
        signals = np.divide(told, targets, out=np.full(len(told), np.nan), where=targets > 0)
        weights = self.learner.learn(signals, np.array(self.order.shares[-1]) / WHOLE)
        learnt = dict(zip(self.order.sources, weights.tolist(), strict=True))
        self.order.shares.append(list(shares_of(learnt, WHOLE).values()))
        self._record(step, np.stack([rows, targets]), signals)
        self.sums.zero_()
        self.values.zero_()

    def _values(self) -> list[float]:
        """Of a step, whose gradient is the mean of all processes'."""
        return (self.values / processes()).tolist()

    def _record(self, step: int, counts: np.ndarray, signals: np.ndarray) -> None:
        rows, targets = counts.astype(int).tolist()
        columns = {
            "step": [step] * len(self.place),
            "source": self.order.sources,
            "weight": [share / WHOLE for share in self.order.shares[-1]],
            "rows": rows,
            "targets": targets,
            "signal": [None if math.isnan(signal) else signal for signal in signals.tolist()],
        }
        self.table.append(step, columns)

    def saw(self, positions: Tensor, nats: Tensor) -> None:
        """Takes the rows of a micro-batch that trains, by their positions, and the nats of each."""
        with self._timed():
            targets = self.targets_of[positions]
            loss = nats.detach().double()
            told = loss if self.reference is None else (loss - self.reference[positions]).clamp(min=0)
            told = torch.stack([torch.ones_like(targets), targets, told])
            self.sums.index_add_(1, self.source_of[positions], told)

    @contextmanager
    def observing(self, batch: MicroBatch) -> Iterator[None]:
        yield
        self.ids += batch.example_ids

    def after_update(self, step: int) -> None:
        if self.ledger is not None and self.ledger.scored is not None:
            with self._timed():
                places = torch.tensor([self.place[source_of_row(example_id)] for example_id in self.ids])
                self.values.index_add_(0, places, self.ledger.scored.values.double().sum(1))
        self.ids = []

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begun

    def described(self) -> dict[str, Any]:
        """What was learnt, for run.json."""
        first, last = (np.array(self.order.shares[place]) / WHOLE for place in (0, -1))
        weights = {
            name: {"first": float(first[place]), "last": float(last[place])} for name, place in self.place.items()
        }
        if self.by == "doremi":
            for name, mean in zip(weights, np.mean(self.order.shares, axis=0) / WHOLE, strict=True):
                weights[name]["mean"] = float(mean)  # what DoReMi recommends for the next run
        return {"by": self.by, "changes": len(self.order.shares) - 1, "weights": weights}

    def counters(self) -> dict[str, Any]:
        sums = gathered((self.sums.tolist(), self.values.tolist()))
        return {"mixture": {"shares": self.order.shares, "sums": sums, "learner": self.learner.state()}}

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        saved = counters["mixture"]
        self.order.shares = saved["shares"]
        sums, values = saved["sums"][rank()]
        self.sums.copy_(torch.tensor(sums, dtype=torch.float64))
        self.values.copy_(torch.tensor(values, dtype=torch.float64))
        self.learner.restore(saved["learner"])
