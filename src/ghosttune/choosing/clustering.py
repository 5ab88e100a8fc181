"""Rows in groups whose gradients point the same way: what a run's rows teach, without being told."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from ghostgrad.clusters import NOWHERE, Clusters, spherical_clusters
from ghostgrad.store import GradientStore
from ghosttune.choosing.neighbours import Neighbour, neighbour
from ghosttune.choosing.opened import OpenedRun, Rows
from ghosttune.errors import InputError
from ghosttune.run.directory import write_csv, write_jsonl

SAMPLE_NUMBERS = 1 << 24
"""Numbers of the rows that choose where centres start: 64 MiB, for any number of rows."""

STARTS = 10
"""Draws of starting centres, of which the best is taken."""

COLUMNS = ("example_id", "cluster", "cosine")
"""What the file holds of every row."""


@dataclass(frozen=True)
class Cluster:
    """Rows whose gradients point nearly the same way."""

    number: int
    """From 1, the largest cluster first."""
    size: int
    cosine: float
    """Mean of its rows' with its centre."""
    makeup: dict[str, int]
    """How many of its rows have each value of the column that was asked for, most frequent first."""
    rows: list[Neighbour]
    """Those nearest to the centre."""


@dataclass(frozen=True)
class Clustering:
    """All rows in clusters."""

    checkpoint: int
    rows: int
    clusters: list[Cluster]
    """As many as were asked for, fewer where there are fewer different directions."""
    nowhere: int
    """Rows without a gradient, which are in no cluster."""
    file: str | None


def cluster(
    run: str | Path | OpenedRun,
    clusters: int,
    *,
    by: str | None = None,
    checkpoint: str = "best",
    data: str | Path | None = None,
    top: int = 3,
    seed: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    tell: Callable[[int, int], None] | None = None,
) -> Clustering:
    """The rows in so many groups by the direction of their gradients, the largest group first.

    Centres start where `sklearn.cluster.KMeans` puts them for a sample of the rows, and move until no row changes its
    cluster (`ghostgrad.clusters`). Equal seeds give equal clusters.

    Args:
        by: a column of the rows; each cluster says how many of its rows have each of its values.
        top: rows nearest to the centre that are returned of each cluster.
        seed: of the sample and the starts; the run's if not given.
        out: a .jsonl or .csv file for COLUMNS of every row, in the order of the data.
        tell: called after each pass over the store, with its number and how many rows changed their cluster.

    Raises InputError where anything asked for cannot be had.
    """
    if out is not None and Path(out).suffix not in (".jsonl", ".csv"):
        raise InputError(f"--out is {out}; it must end in .jsonl or .csv")
    opened = run if isinstance(run, OpenedRun) else OpenedRun(run, device, trust_remote_code)
    rows = opened.rows(data)
    if not 1 <= clusters <= len(rows.ids):
        raise InputError(f"--clusters is {clusters}; it must be from 1 to the number of rows, {len(rows.ids)}")
    values = rows.column(by) if by else {}
    (step,) = opened.steps([checkpoint])
    store = opened.store(rows, step)
    starts = _starts(store, rows.ids, clusters, opened.config.train.seed if seed is None else seed)
    numbers, cosines = _in_order_of_size(spherical_clusters(store, starts, tell), store, rows)
    found = [
        _cluster(rows, number, np.flatnonzero(numbers == number), cosines, values, top)
        for number in range(1, numbers.max(initial=0) + 1)
    ]
    if out is not None:
        _write(Path(out), rows.ids, numbers.tolist(), cosines.tolist())
    return Clustering(step, len(rows.ids), found, int((numbers == 0).sum()), None if out is None else str(out))


def _starts(store: GradientStore, ids: list[str], clusters: int, seed: int) -> Tensor:
    """[clusters, size] centres of a sample of the rows."""
    count = min(len(ids), max(clusters, SAMPLE_NUMBERS // store.size))
    drawn = np.sort(np.random.default_rng(seed).choice(len(ids), count, replace=False))
    sample = torch.nn.functional.normalize(store.rows([ids[place] for place in drawn]).float(), dim=1)
    with warnings.catch_warnings():  # fewer different rows than clusters: what comes back says how many there are
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = KMeans(clusters, n_init=STARTS, random_state=seed % (1 << 32))  # type: ignore[arg-type]
        means.fit(sample.numpy())
    return torch.from_numpy(means.cluster_centers_)


def _in_order_of_size(found: Clusters, store: GradientStore, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """(number of each row's cluster, 0 for none, its cosine), in the order of the data; the largest cluster is 1."""
    places = [store.place(name) for name in rows.ids]
    labels, cosines = found.labels[places].tolist(), found.cosines[places].numpy()
    sizes = Counter(label for label in labels if label != NOWHERE)
    number = {label: place for place, (label, _) in enumerate(sizes.most_common(), 1)} | {NOWHERE: 0}
    return np.array([number[label] for label in labels]), cosines


def _cluster(
    rows: Rows, number: int, members: np.ndarray, cosines: np.ndarray, values: dict[str, str], top: int
) -> Cluster:
    own = cosines[members]
    nearest = members[np.argsort(-own, kind="stable")[:top]].tolist()
    makeup = Counter(values[rows.ids[place]] for place in members.tolist()) if values else Counter()
    return Cluster(
        number,
        len(members),
        float(own.mean()),
        dict(makeup.most_common()),
        [neighbour(rows, rows.ids[place], float(cosines[place])) for place in nearest],
    )


def _write(out: Path, ids: list[str], numbers: list[int], cosines: list[float]) -> None:
    lines = [
        (name, number or None, cosine if number else None)
        for name, number, cosine in zip(ids, numbers, cosines, strict=True)
    ]
    if out.suffix == ".csv":
        write_csv(out, COLUMNS, lines)
    else:
        write_jsonl(out, (dict(zip(COLUMNS, line, strict=True)) for line in lines))
