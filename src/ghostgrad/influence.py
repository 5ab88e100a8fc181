"""Which stored rows are nearest to a query: inner product, cosine, one damped preconditioned product.

All stream over the store (`ghostgrad.reading`): memory does not grow with the rows, but for their scores.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ghostgrad.reading import PART_ROWS, parts
from ghostgrad.store import GradientStore

FISHER_NUMBERS = 1 << 20
"""Numbers in a block whose outer products are summed: enough rows for their products to cost more than the calls."""

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
        chosen = []
        for row, some in zip(scores, candidates, strict=True):
            chosen.append(some[torch.argsort(row[some], descending=True, stable=True)[: self.k]])
        picked = torch.stack(chosen)
        self.scores, self.places = scores.gather(1, picked), places.gather(1, picked)


def preconditioned(
    store: GradientStore, queries: Tensor, damping: float, blocks: Sequence[tuple[int, int]] | None = None
) -> Tensor:
    """`queries` [q, size] times (F + λ)⁻¹, with F the mean outer product of the stored rows.

    λ is `damping` times the mean of F's diagonal, so that it has no unit. The inner product of the result with a row
    is the damped influence of the row (Koh and Liang 2017, arXiv 1703.04730, with the empirical Fisher matrix as
    Hessian). Finite for any rank because λ > 0.

    Args:
        blocks: (first column, column behind the last) of the blocks of F that are kept, which cover all columns: those
            of a sketch's parameters make F block-diagonal (LoGra, arXiv 2405.13954). One block when not given.

    Costs one pass and width³ / 3 per block; memory width² in float64 for all blocks. A block that is wider than there
    are rows is solved among the rows instead, at rows² * width.

    Raises:
        ValueError: damping that is not above 0, an empty store, or rows that are all 0.
    """
    if not damping > 0:
        raise ValueError(f"damping is {damping}; it must be above 0, since F has at most as many ranks as rows")
    blocks = blocks or [(0, store.size)]
    narrow = {span: torch.zeros(n, n, dtype=torch.float64) for span in blocks if (n := span[1] - span[0]) <= len(store)}
    trace = 0.0
    for _, block in store.blocks(max(1, FISHER_NUMBERS // store.size)):
        trace += float(block.float().square().sum(dtype=torch.float64))
        for (start, stop), fisher in narrow.items():
            rows = block[:, start:stop].double()
            fisher.addmm_(rows.mT, rows)
    if not trace:
        raise ValueError(f"{store.folder} holds no row other than 0")
    count, damped = len(store), damping * trace / len(store) / store.size
    result = queries.double().cpu().mT.clone()
    for start, stop in blocks:
        own = result[start:stop]
        if (start, stop) in narrow:
            fisher = narrow[start, stop] / count
            fisher.diagonal().add_(damped)
            own.copy_(torch.linalg.solve(fisher, own))
        else:  # (RᵀR/n + λ)⁻¹ q = (q - Rᵀ (RRᵀ + nλ)⁻¹ R q) / λ
            rows = store.columns(start, stop).double()
            gram = rows @ rows.mT
            gram.diagonal().add_(count * damped)
            own.sub_(rows.mT @ torch.linalg.solve(gram, rows @ own)).div_(damped)
    return result.mT.float()
