"""Log-probabilities of the untouched base, computed once before the first step and kept in the run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ghosttune.data.pairing import SIDES, PreferenceFeatures
from ghosttune.errors import RunError
from ghosttune.models.reference import as_reference
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import Table, read_table
from ghosttune.training.processes import gathered
from ghosttune.training.sharding import own_share

TABLE = "reference"
COLUMNS = {"example_id": "string", "part": "string", "tokens": "int64", "logp": "float64", "digest": "string"}


class Reference:
    """What the base says of answers, by what it was asked: the ids of a sequence and which of them are the answer."""

    def __init__(self, logps: Mapping[bytes, float]):
        self.logps = logps

    @classmethod
    def of(
        cls, task: Any, model: Any, collate: Any, rows: Iterable[PreferenceFeatures], batch_size: int, device: Any
    ) -> Reference:
        """Of all these rows: one forward pass each, those of like lengths together, shared by the processes."""
        by_length = sorted(rows, key=lambda row: row.positions)
        batches = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
        own: dict[bytes, float] = {}
        with as_reference(model):  # once, and not for every batch: some methods load the base for it
            for batch, _ in own_share(batches):
                tensors = {name: tensor.to(device) for name, tensor in collate(batch).items()}
                logps = task.logps(model, tensors).double().tolist()
                own |= zip((key for row in batch for key in row.keys), logps, strict=True)
        return cls({key: logp for part in gathered(own) for key, logp in part.items()})

    @classmethod
    def read(cls, run: RunDir) -> Reference:
        """As an earlier part of the run has written it; RunError where it is damaged."""
        table = read_table(run, TABLE, ["digest", "logp"])
        try:
            keys = [bytes.fromhex(digest) for digest in table["digest"].to_pylist()]
            return cls(dict(zip(keys, map(float, table["logp"].to_pylist()), strict=True)))
        except (TypeError, ValueError) as error:
            raise RunError(f"{run.table(TABLE)} is damaged: {error}; delete it, and it is made anew") from error

    def write(self, run: RunDir, rows: Iterable[PreferenceFeatures]) -> None:
        """tables/reference: what is known of the answers of these rows."""
        cells: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for row in rows:
            for side, key, (_, trained) in zip(row.sides, row.keys, row.sequences(), strict=True):
                if key in self.logps:
                    found = (row.example_id, SIDES[side], int(trained.sum()), self.logps[key], key.hex())
                    for name, cell in zip(COLUMNS, found, strict=True):
                        cells[name].append(cell)
        table = Table(run, TABLE, COLUMNS)
        table.append(0, cells)
        table.flush()

    def beside(self, collate: Callable[[Sequence[Any]], dict[str, Tensor]]) -> Collate:
        """A collator whose batches hold what the base says, where it is known of all their answers."""

        def collated(rows: Sequence[PreferenceFeatures]) -> dict[str, Tensor]:
            batch, found = collate(rows), [self.logps.get(key) for row in rows for key in row.keys]
            if None in found:
                return batch
            return batch | {"reference": torch.tensor(found, dtype=torch.float64)}

        return collated


Collate = Callable[[Sequence[Any]], dict[str, Tensor]]


def is_kept(run: RunDir) -> bool:
    """Whether the run has its reference already."""
    return run.table(TABLE).exists()
