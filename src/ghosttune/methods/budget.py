"""Ranks for a given number of trained parameters, so that arms of a comparison are equally large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ghosttune.errors import ConfigError, Problem


def ranks_for(sizes: Mapping[str, int], budget: int, fixed: int = 0) -> dict[str, int]:
    """Whole ranks by module, as equal as the budget allows, whose parameters come nearest to `budget`.

    Every module gets the same rank, and some of them one more: the set of them whose sizes add up best to what remains,
    spread evenly over the model. Of two sums equally near the smaller is taken.

    Args:
        sizes: parameters that one rank of each module costs, its inputs plus its outputs.
        budget: trained parameters wanted.
        fixed: parameters of it that no rank changes.

    Raises:
        ConfigError: a budget below one rank per module.
    """
    each = sum(sizes.values())
    if budget < each + fixed:
        least = each + fixed
        message = f"is {budget:,}, and one rank for each of the {len(sizes)} target modules takes {least:,}; raise it"
        raise ConfigError([Problem("method.parameter_budget", message)])
    rank, rest = divmod(budget - fixed, each)
    kinds = sorted(set(sizes.values()))
    names = {kind: [name for name, size in sizes.items() if size == kind] for kind in kinds}
    raised = _nearest_counts(kinds, [len(names[kind]) for kind in kinds], rest)
    more = {name for kind, count in zip(kinds, raised, strict=True) for name in _spread(names[kind], count)}
    return {name: rank + (name in more) for name in sizes}


def _nearest_counts(kinds: Sequence[int], available: Sequence[int], wanted: int) -> list[int]:
    """How many of each kind, so that the sum of their sizes is nearest to `wanted` (bounded subset sum)."""
    unit = int(np.gcd.reduce(kinds))
    reach = sum(kind * count for kind, count in zip(kinds, available, strict=True)) // unit
    reachable = [np.zeros(reach + 1, bool)]
    reachable[0][0] = True
    for kind, count in zip(kinds, available, strict=True):
        now = reachable[-1].copy()
        for times in range(1, count + 1):
            shift = times * kind // unit
            now[shift:] |= reachable[-1][: reach + 1 - shift]
        reachable.append(now)
    sums = np.flatnonzero(reachable[-1])
    total = int(sums[np.argmin(np.abs(sums * unit - wanted))])
    counts = []
    for place in range(len(kinds) - 1, -1, -1):
        step = kinds[place] // unit
        count = next(n for n in range(available[place] + 1) if total >= n * step and reachable[place][total - n * step])
        counts.append(count)
        total -= count * step
    return counts[::-1]


def _spread(names: Sequence[str], count: int) -> list[str]:
    """So many of the names, at even distances."""
    return [names[int((place + 0.5) * len(names) / count)] for place in range(count)]
