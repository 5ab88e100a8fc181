"""Rows of an earlier run that are made forgotten while others are held on to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ghosttune.config.sections.forget import ForgetSettings
from ghosttune.data.encoding import RowFeatures
from ghosttune.errors import RunError
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import Table, read_table
from ghosttune.tasks.unlearning import forgetting_loss

TABLE = "forgotten"
COLUMNS = {"place": "int64", "example_id": "string", "targets": "int64", "nats": "float64"}

Collate = Callable[[Sequence[Any]], dict[str, Tensor]]


class Unlearning:
    """Turns the nats of a run's rows into what is trained.

    Args:
        settings: of the run.
        rows: all that it trains.
        starts: place among them of each row that is forgotten -> its nats before the first update.
    """

    def __init__(self, settings: ForgetSettings, rows: Sequence[RowFeatures], starts: Mapping[int, float]):
        self.settings, self.starts = settings, starts
        self.forgotten = [rows[place] for place in sorted(starts)]
        self.targets = sum(row.targets for row in self.forgotten)

    @property
    def start(self) -> float:
        """Loss of the forgotten rows before the first update, in nats per target."""
        return sum(self.starts.values()) / self.targets

    def beside(self, collate: Collate) -> Collate:
        """A collator of training rows whose batches say which are forgotten, and what these were at the start."""

        def collated(rows: Sequence[RowFeatures]) -> dict[str, Tensor]:
            known = [self.starts.get(row.index) for row in rows]
            return collate(rows) | {
                "forgets": torch.tensor([start is not None for start in known]),
                "start": torch.tensor([start or 0.0 for start in known], dtype=torch.float64),
            }

        return collated

    def loss(self, nats: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """[B] what is trained of each row, from its nats."""
        own = self.settings
        return forgetting_loss(nats, batch["start"], batch["forgets"], own.loss, own.beta, own.retain_weight)

    @classmethod
    def read(cls, run: RunDir, settings: ForgetSettings, rows: Sequence[RowFeatures]) -> Unlearning:
        """As an earlier part of the run began it; RunError where that is damaged."""
        table = read_table(run, TABLE, ["place", "example_id", "nats"]).to_pydict()
        starts = dict(zip(table["place"], table["nats"], strict=True))
        if [rows[place].example_id for place in starts if place < len(rows)] != table["example_id"]:
            raise RunError(f"{run.table(TABLE)} is damaged: it is of other rows; start the run anew")
        return cls(settings, rows, starts)

    def write(self, run: RunDir) -> None:
        """tables/forgotten: the rows, and what they were at the start."""
        rows, table = self.forgotten, Table(run, TABLE, COLUMNS)
        cells = (
            sorted(self.starts),
            [row.example_id for row in rows],
            [row.targets for row in rows],
            [self.starts[place] for place in sorted(self.starts)],
        )
        table.append(0, dict(zip(COLUMNS, cells, strict=True)))
        table.flush()


def is_begun(run: RunDir) -> bool:
    """Whether the run has the nats at its start already."""
    return run.table(TABLE).exists()
