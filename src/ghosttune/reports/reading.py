"""What figures read from a run directory: each table once, and only when a figure asks for it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ghosttune.errors import RunError
from ghosttune.reports.drawing import Span, in_order
from ghosttune.run.directory import RunDir, read_csv
from ghosttune.run.tables import read_table

MOST_STEPS = 600
"""Columns of a heat map and points of a line: more than a page can show are averaged."""


@dataclass(frozen=True)
class Place:
    """Where a module stands: `role` is its name within its layer, or its whole name where it is in none."""

    layer: int | None
    group: str
    role: str


@dataclass(frozen=True)
class Norms:
    """Norms of modules over steps."""

    steps: np.ndarray
    """[S] the measured steps; a bin's last one after `thinned`."""
    places: list[Place]
    """[M] the modules."""
    values: np.ndarray
    """[M, S]; NaN where the module is frozen."""

    @property
    def layers(self) -> list[int]:
        return sorted({place.layer for place in self.places if place.layer is not None})

    @property
    def groups(self) -> list[str]:
        return in_order({place.group for place in self.places})

    @property
    def roles(self) -> list[str]:
        return roles_of(self.places)

    def thinned(self, most: int = MOST_STEPS) -> Norms:
        """At most `most` columns, each the mean over its bin of steps, of the steps at which the module trained."""
        if len(self.steps) <= most:
            return self
        bins = np.array_split(np.arange(len(self.steps)), most)
        values = np.stack([mean_of(self.values[:, columns]) for columns in bins], axis=1)
        return replace(self, steps=self.steps[[columns[-1] for columns in bins]], values=values)

    def together(self, **wanted: Any) -> np.ndarray:
        """[S] the norm of all modules whose place has these facts, taken as one vector; NaN where none trains."""
        rows = [all(getattr(place, name) == value for name, value in wanted.items()) for place in self.places]
        return combined(self.values[rows])

    def layer_map(self, **wanted: Any) -> np.ndarray:
        """[L, S] the same by layer."""
        return np.stack([self.together(layer=layer, **wanted) for layer in self.layers])


def roles_of(places: Iterable[Place]) -> list[str]:
    """Of the modules in layers, group by group, else in the order in which they first appear."""
    inside = {place.role: place.group for place in places if place.layer is not None}
    return [role for group in in_order(set(inside.values())) for role, own in inside.items() if own == group]


def combined(values: np.ndarray) -> np.ndarray:
    """[S] the norm of several vectors as one: the root of the sum of their squares; NaN where all are."""
    known = ~np.isnan(values)
    return np.where(known.any(0), (np.where(known, values, 0.0) ** 2).sum(0) ** 0.5, np.nan)


def mean_of(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is known; NaN where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(-1)
    return np.divide(np.where(known, values, 0.0).sum(-1), count, out=np.full(count.shape, np.nan), where=count > 0)


class RunNumbers:
    """The numbers of one run; None, or an empty list, where the run does not have them."""

    def __init__(self, run: RunDir):
        self.run = run

    @cached_property
    def record(self) -> dict[str, Any]:
        """The contents of run.json; empty for a folder that a Trainer of one's own wrote."""
        return self.run.read_record() if self.run.exists else {}

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        return self.run.events()

    @cached_property
    def losses(self) -> list[tuple[int, str, float]]:
        """(step, `train` or the split, loss), in the order of the events."""
        return [
            (event["step"], "train" if event["event"] == "log" else event["split"], event["loss"])
            for event in self.events
            if event["event"] in ("log", "eval") and event.get("loss") is not None
        ]

    @cached_property
    def rewards(self) -> list[tuple[int, str, float, float]]:
        """(step, `drawn` or the split, reward, share of successes) of answers, where they are rewarded."""
        return [
            (event["step"], "drawn" if event["event"] == "log" else event["split"], event["reward"], event["success"])
            for event in self.events
            if event.get("reward") is not None
        ]

    @cached_property
    def validation(self) -> dict[str, Any] | None:
        """What training again without some rows showed; None where nobody did."""
        path = self.run.validation_result
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @cached_property
    def forgetting(self) -> dict[str, Any] | None:
        """How a run that forgets rows was judged; None where it forgets none."""
        path = self.run.forgetting_result
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @cached_property
    def spans(self) -> list[Span]:
        """The phases, from the events of their beginnings; the last ends where the run stands."""
        begun = [(event["step"], event["trains"]) for event in self.events if event["event"] == "phase"]
        last = max((event["step"] for event in self.events), default=0)
        ends = [*(step for step, _ in begun), last][1:]
        return [Span(start, end, trains) for (start, trains), end in zip(begun, ends, strict=True)]

    @cached_property
    def norms(self) -> Norms | None:
        """Of the adapter's own gradients before clipping: all factors of a module as one vector."""
        return self._norms("norms", "norm")

    @cached_property
    def effective(self) -> Norms | None:
        """Of the gradients of the adapted weights."""
        found = self._norms("effective", "effective_norm")
        if found is None or self.norms is None:
            return found
        known = {place: row for row, place in enumerate(self.norms.places)}  # backward order otherwise
        order = sorted(range(len(found.places)), key=lambda row: known.get(found.places[row], len(known)))
        return replace(found, places=[found.places[row] for row in order], values=found.values[order])

    def _norms(self, table: str, column: str) -> Norms | None:
        if not self.has(table):
            return None
        rows = read_table(self.run, table, ["step", "layer", "group", "module", column])
        named = rows["module"].combine_chunks().dictionary_encode()
        columns = (rows[name].to_pylist() for name in ("module", "layer", "group"))
        standing = {module: (layer, group) for module, layer, group in zip(*columns, strict=True)}
        steps, column_of = np.unique(rows["step"].to_numpy(), return_inverse=True)
        found = rows[column].to_numpy()  # NaN where it is null
        known = ~np.isnan(found)
        at = (named.indices.to_numpy()[known], column_of[known])
        squares, counts = np.zeros((2, len(named.dictionary), len(steps)))
        np.add.at(squares, at, found[known] ** 2)
        np.add.at(counts, at, 1)
        values = np.where(counts > 0, np.sqrt(squares), np.nan)
        names = named.dictionary.to_pylist()
        places = [Place(*standing[name], role_of(name, standing[name][0])) for name in names]
        return Norms(steps, places, values)

    def table(self, name: str, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """A table row by row; empty when the run has none."""
        return read_table(self.run, name, columns).to_pylist() if self.has(name) else []

    def has(self, table: str) -> bool:
        """Whether the run has parts of this table."""
        return self.run.table(table).is_dir() and any(self.run.table(table).iterdir())

    def export(self, name: str) -> list[dict[str, str]]:
        """A CSV of `tables/`, row by row; empty when the run has none."""
        path = self.run.export(name)
        return read_csv(path) if path.is_file() else []

    @cached_property
    def ledger(self) -> dict[str, Any] | None:
        """The account of the guide loss; None without a ledger, and before a run ends."""
        return self.record.get("ledger")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """See `summary_of`."""
        from ghosttune.reports.summary import summary_of

        return summary_of(self)

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        return self.run.read_evaluation()

    def predictions(self, split: str) -> list[dict[str, Any]]:
        return self.run.read_predictions(split)


def role_of(module: str, layer: int | None) -> str:
    """What a module is called within its layer: `self_attn.q_proj` of `model.layers.3.self_attn.q_proj`."""
    return module if layer is None else module.partition(f".{layer}.")[2] or module


def norms_of_csv(path: Path) -> Norms:
    """Norms from `layer_norms.csv` (layer_0_attention, …) or `group_norms.csv` (attention_norm, …), empty cells NaN.

    RunError when the file is neither.
    """
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    places = [place_of_column(name) for name in header[1:]]
    known = [place for place in places if place is not None]
    if header[:1] != ["step"] or len(known) < len(places) or not rows:
        raise RunError(f"{path} holds no norms: expected step and columns such as layer_0_attention or attention_norm")
    try:
        cells = np.array([[float(cell) if cell else np.nan for cell in row] for row in rows])
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if cells.shape != (len(rows), len(header)):
        raise RunError(f"{path} is damaged: its rows have unequal lengths")
    return Norms(cells[:, 0].astype(int), known, cells[:, 1:].T)


CSV_GROUPS = {"embed": "embedding", "attention": "attention", "mlp": "mlp", "lm_head": "head", "total": "total"}


def place_of_column(name: str) -> Place | None:
    """What a column of the gradient_analysis files holds; None for any other name."""
    if name.startswith("layer_"):
        number, _, group = name.removeprefix("layer_").partition("_")
        return Place(int(number), group, group) if number.isdigit() and group else None
    group = CSV_GROUPS.get(name.removesuffix("_norm"))
    return Place(None, group, group) if group and name.endswith("_norm") else None
