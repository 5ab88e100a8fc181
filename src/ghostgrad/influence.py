"""Which stored rows are nearest to a query: inner product, cosine, one damped preconditioned product.

All stream over the store once, in blocks that fit the cache: memory does not grow with the number of rows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ghostgrad.store import GradientStore

BLOCK_NUMBERS = 1 << 18
"""Numbers in a block: half a MiB in half precision, 1 MiB as the float32 it is multiplied in."""

MERGED_ROWS = 1 << 14
"""Rows whose scores wait for one merge into the running top k."""


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
    similarity: Literal["dot", "cosine"],
    largest: bool = True,
    without: Collection[str] = (),
) -> list[Nearest]:
    """The k rows with the largest (or smallest) similarity to each of `queries` [q, size], one `Nearest` per query.

    Equal to sorting all scores, ties broken by row order. Reads the store once; memory is one block and
    q * (MERGED_ROWS + k) scores, for any number of rows.

    Args:
        without: ids to leave out, such as the query's own.

    Raises:
        ValueError: an unknown similarity, or queries of another size.
    """
    if similarity not in ("dot", "cosine"):
        raise ValueError(f"similarity is {similarity!r}; accepted are dot, cosine")
    if queries.dim() != 2 or queries.shape[1] != store.size:
        raise ValueError(f"queries have shape {list(queries.shape)}; expected [q, {store.size}]")
    towards = queries.detach().float().cpu()
    if similarity == "cosine":
        towards = torch.nn.functional.normalize(towards, dim=1)
    left_out = torch.tensor(sorted(n for name in without if (n := store._places.get(name)) is not None))
    best = _Best(len(towards), k, largest)
    scores, first = torch.empty(len(towards), MERGED_ROWS), 0
    count = max(1, min(BLOCK_NUMBERS // store.size, MERGED_ROWS))
    wide, filled = torch.empty(count, store.size), 0
    for start, block in store.blocks(count):
        if filled + len(block) > MERGED_ROWS:
            best.merge(scores[:, :filled], first, left_out)
            first, filled = start, 0
        rows = wide[: len(block)].copy_(block)
        # One query is a matrix-vector product, which streams; the matrix product would copy the block first.
        found = torch.mv(rows, towards[0]).unsqueeze(0) if len(towards) == 1 else towards @ rows.mT
        if similarity == "cosine":
            found = found / torch.linalg.vector_norm(rows, dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        scores[:, filled : filled + len(block)] = found
        filled += len(block)
    best.merge(scores[:, :filled], first, left_out)
    return [
        Nearest([store.ids[place] for place in places.tolist()], values)
        for places, values in zip(best.places, best.scores * (1 if largest else -1), strict=True)
    ]


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
        chosen = []
        for row, some in zip(scores, candidates, strict=True):
            chosen.append(some[torch.argsort(row[some], descending=True, stable=True)[: self.k]])
        picked = torch.stack(chosen)
        self.scores, self.places = scores.gather(1, picked), places.gather(1, picked)


def preconditioned(store: GradientStore, queries: Tensor, damping: float) -> Tensor:
    """`queries` [q, size] times (F + λ)⁻¹, with F the mean outer product of the stored rows.

    λ is `damping` times the mean of F's diagonal, so that it has no unit. The inner product of the result with a row
    is the damped influence of the row (Koh and Liang 2017, arXiv 1703.04730, with the empirical Fisher matrix as
    Hessian). Costs one pass and size³ / 3; memory size² in float64. Finite for any rank because λ > 0.

    Raises:
        ValueError: damping that is not above 0, an empty store, or rows that are all 0.
    """
    if not damping > 0:
        raise ValueError(f"damping is {damping}; it must be above 0, since F has at most as many ranks as rows")
    fisher = torch.zeros(store.size, store.size, dtype=torch.float64)
    for _, block in store.blocks(max(1, BLOCK_NUMBERS // store.size)):
        rows = block.double()
        fisher.addmm_(rows.mT, rows)
    if not len(store) or not fisher.any():
        raise ValueError(f"{store.folder} holds no row other than 0")
    fisher /= len(store)
    fisher.diagonal().add_(damping * fisher.diagonal().mean())
    return torch.linalg.solve(fisher, queries.double().cpu().mT).mT.float()
