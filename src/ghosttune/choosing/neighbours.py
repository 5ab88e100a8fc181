"""Rows that ask the model for the same change: the nearest to one row, and groups of near-duplicates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ghostgrad.influence import pairs_above, scores
from ghosttune.choosing.opened import OpenedRun, Rows
from ghosttune.data.content import content
from ghosttune.errors import DataError, InputError, nearest


@dataclass(frozen=True)
class Neighbour:
    """A row and how like another one its gradient is."""

    example_id: str
    cosine: float
    content: dict[str, Any]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Duplicates:
    """Rows of which each is connected to another by pairs at least as similar as was asked."""

    cosine: float
    """Of the least similar pair that connects them."""
    rows: list[Neighbour]
    """The first of the data, which would stay, then the others with their similarity to it."""


def similar(
    run: str | Path | OpenedRun,
    example_id: str,
    *,
    checkpoints: Sequence[str] = ("best",),
    data: str | Path | None = None,
    top: int = 10,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> list[Neighbour]:
    """The `top` rows whose gradients point most nearly where that of a row points; the mean over checkpoints.

    InputError for a row that is not there, or rows that are not indexed.
    """
    opened = run if isinstance(run, OpenedRun) else OpenedRun(run, device, trust_remote_code)
    rows = opened.rows(data)
    if example_id not in rows.ids:
        raise DataError(f"no row of {rows.name} is called {example_id!r}{nearest(example_id, rows.ids)}")
    total = torch.zeros(len(rows.ids))
    steps = opened.steps(checkpoints)
    for store in [opened.store(rows, step) for step in steps]:
        found = scores(store, store.rows([example_id]).float(), "cosine")[0]
        total += found[[store.place(name) for name in rows.ids]] / len(steps)
    order = torch.argsort(total, descending=True, stable=True).tolist()
    names = [rows.ids[place] for place in order]
    cosines = dict(zip(names, total[order].tolist(), strict=True))
    return [neighbour(rows, name, cosines[name]) for name in names if name != example_id][:top]


def dedupe(
    run: str | Path | OpenedRun,
    *,
    cosine: float = 0.95,
    checkpoint: str = "best",
    data: str | Path | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> list[Duplicates]:
    """Groups of near-duplicates, the most similar first. Compares all pairs: n² / 2 inner products.

    InputError for a cosine outside (0, 1], or rows that are not indexed.
    """
    if not 0 < cosine <= 1:
        raise InputError(f"--cosine is {cosine}; it must be above 0 and at most 1, which only equal rows have")
    opened = run if isinstance(run, OpenedRun) else OpenedRun(run, device, trust_remote_code)
    rows = opened.rows(data)
    (step,) = opened.steps([checkpoint])
    store = opened.store(rows, step)
    pairs = [(store.ids[first], store.ids[second], found) for first, second, found in pairs_above(store, cosine)]
    position = {name: place for place, name in enumerate(rows.ids)}
    groups = []
    for weakest, members in _connected(pairs):
        first, *others = sorted(members, key=position.__getitem__)
        own = store.rows([first]).float()
        to_first = torch.nn.functional.cosine_similarity(store.rows(others).float(), own).tolist()
        kept = [neighbour(rows, name, found) for name, found in zip([first, *others], [1.0, *to_first], strict=True)]
        groups.append(Duplicates(weakest, kept))
    return sorted(groups, key=lambda group: -group.cosine)


def _connected(pairs: Iterable[tuple[str, str, float]]) -> Iterator[tuple[float, list[str]]]:
    """(the weakest link that was needed, members) of each group that the pairs connect, strongest pairs first."""
    groups: dict[str, list[str]] = {}
    weakest: dict[int, float] = {}
    for first, second, cosine in sorted(pairs, key=lambda pair: -pair[2]):
        one, other = groups.setdefault(first, [first]), groups.setdefault(second, [second])
        if one is not other:
            one += other
            weakest[id(one)] = cosine
            groups.update(dict.fromkeys(other, one))
    for group in {id(group): group for group in groups.values()}.values():
        yield weakest[id(group)], group


def neighbour(rows: Rows, example_id: str, cosine: float) -> Neighbour:
    """A row with what it says."""
    record = rows.record(example_id)
    return Neighbour(example_id, cosine, content(record), record.metadata)
