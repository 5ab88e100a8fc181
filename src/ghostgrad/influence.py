"""Which stored rows are nearest to a query, by inner product or cosine.

All stream over the store (`ghostgrad.reading`): memory does not grow with the rows, but for their scores.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ghostgrad.reading import PART_ROWS, parts
from ghostgrad.store import GradientStore

QUERY_NUMBERS = 1 << 24
"""Numbers of the rows that are compared with all others in one pass over the store: 64 MiB."""

Similarity = Literal["dot", "cosine"]


@dataclass(frozen=True)
class Nearest:
    """The best rows of one query, best first."""

    ids: list[str]
    scores: Tensor


def top_k(
    store: GradientStore,
    queries: Tensor,
    k: int,
    *,
    similarity: Similarity,
    largest: bool = True,
    without: Collection[str] = (),
) -> list[Nearest]:
    """The k rows with the largest (or smallest) similarity to each of `queries` [q, size], one `Nearest` per query.

    Equal to sorting all scores, ties broken by row order, for any number of threads. Reads the store once; memory is
    one block and q * (PART_ROWS + k) scores per thread, for any number of rows.

    Args:
        without: ids to leave out, such as the query's own.

    Raises:
        ValueError: an unknown similarity, or queries of another size.
    """
    left_out = torch.tensor(sorted(store.place(name) for name in without if name in store))
    best = _Best(len(queries), k, largest)
    for first, found in _scored(store, queries, similarity):
        best.merge(found, first, left_out)
    return [
        Nearest([store.ids[place] for place in places.tolist()], values)
        for places, values in zip(best.places, best.scores * (1 if largest else -1), strict=True)
    ]


def scores(store: GradientStore, queries: Tensor, similarity: Similarity) -> Tensor:
    """[q, n] similarity of every row to each of `queries`, in the order of the rows; ValueError like `top_k`."""
    found = torch.empty(len(queries), len(store))
    for first, part in _scored(store, queries, similarity):
        found[:, first : first + part.shape[1]] = part
    return found


def norms(store: GradientStore) -> Tensor:
    """[n] length of every row, in the order of the rows."""
    found = [part for _, part in parts(store, lambda blocks: torch.cat([lengths(block) for block in blocks]))]
    return torch.cat(found) if found else torch.empty(0)


def lengths(rows: Tensor) -> Tensor:
    """[n] of each of the rows."""
    return torch.linalg.vector_norm(rows, dim=1)


def _scored(store: GradientStore, queries: Tensor, similarity: Similarity) -> Iterator[tuple[int, Tensor]]:
    """(index of the first row, [q, <= PART_ROWS] similarities)."""
    if similarity not in ("dot", "cosine"):
        raise ValueError(f"similarity is {similarity!r}; accepted are dot, cosine")
    if queries.dim() != 2 or queries.shape[1] != store.size:
        raise ValueError(f"queries have shape {list(queries.shape)}; expected [q, {store.size}]")
    towards = queries.detach().float().cpu()
    if similarity == "cosine":
        towards = torch.nn.functional.normalize(towards, dim=1)

    def similarities(blocks: Iterator[Tensor]) -> Tensor:
        found_here, filled = torch.empty(len(towards), PART_ROWS), 0
        for rows in blocks:
            # One query is a matrix-vector product, which streams; the matrix product would copy the block first.
            found = torch.mv(rows, towards[0]).unsqueeze(0) if len(towards) == 1 else towards @ rows.mT
            if similarity == "cosine":
                found = found / lengths(rows).clamp_min(torch.finfo(torch.float32).tiny)
            found_here[:, filled : filled + len(rows)] = found
            filled += len(rows)
        return found_here[:, :filled]

    return parts(store, similarities)


def pairs_above(store: GradientStore, cosine: float) -> Iterator[tuple[int, int, float]]:
    """(row, later row, cosine) of every two rows at least that similar.

    Compares all pairs: n² / 2 inner products, in memory of QUERY_NUMBERS for any number of rows; the store is read
    once per QUERY_NUMBERS of it. Rows that are all 0 are similar to nothing.
    """
    for start, block in store.blocks(max(1, QUERY_NUMBERS // store.size)):
        for first, found in _scored(store, block, "cosine"):
            for place, later in torch.nonzero(found >= cosine).tolist():
                if start + place < first + later:
                    yield start + place, first + later, float(found[place, later])


class _Best:
    """The running top k of several queries; scores are negated where the smallest are wanted."""

    def __init__(self, queries: int, k: int, largest: bool):
        self.k, self.sign = k, 1 if largest else -1
        self.scores = torch.empty(queries, 0)
        self.places = torch.empty(queries, 0, dtype=torch.long)

    def merge(self, scores: Tensor, first: int, left_out: Tensor) -> None:
        scores = scores * self.sign
        inside = left_out[(left_out >= first) & (left_out < first + scores.shape[1])]
        places = torch.arange(first, first + scores.shape[1])
        if len(inside):
            keep = torch.ones(scores.shape[1], dtype=torch.bool)
            keep[inside.long() - first] = False
            scores, places = scores[:, keep], places[keep]
        scores = torch.cat([self.scores, scores], 1)
        places = torch.cat([self.places, places.expand(len(scores), -1)], 1)
        # Stable, so that of equal scores the earlier row wins, as in one sort of everything.
        if scores.shape[1] > self.k:
            threshold = scores.topk(self.k, dim=1).values[:, -1:]
            candidates = [torch.nonzero(row >= low).squeeze(1) for row, low in zip(scores, threshold, strict=True)]
        else:
            candidates = [torch.arange(scores.shape[1])] * len(scores)
        chosen: list[Tensor] = []
        for row, some in zip(scores, candidates, strict=True):
            chosen.append(some[torch.argsort(row[some], descending=True, stable=True)[: self.k]])
        picked = torch.stack(chosen)
        self.scores, self.places = scores.gather(1, picked), places.gather(1, picked)
