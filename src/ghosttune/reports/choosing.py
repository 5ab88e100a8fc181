"""Which candidates online selection let train, by the columns that came with the rows."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np

from ghosttune.metrics.intervals import Interval, mean_ratio
from ghosttune.registry import FIGURES
from ghosttune.reports.figures import Figure, Standing
from ghosttune.reports.reading import RunNumbers
from ghosttune.reports.values import columns_of, draw_means, kind_of


@FIGURES.register("kept_by_column", Standing("rows", 3))
def kept_by_column(numbers: RunNumbers) -> Figure | None:
    """The share of its candidates that each kind of rows had trained."""
    candidates = numbers.table("selection", ["example_id", "kept"])
    rows = {row["example_id"]: row for row in numbers.table("values")} if candidates else {}
    columns = columns_of(list(rows.values()))
    if not columns:
        return None
    offered = Counter(row["example_id"] for row in candidates)
    kept = Counter(row["example_id"] for row in candidates if row["kept"])
    found: dict[str, dict[str, Interval]] = {}
    for column in columns:
        members: dict[str, list[str]] = {}
        for example_id in offered:
            members.setdefault(kind_of(rows[example_id][column]), []).append(example_id)
        shares = {kind: _share(names, kept, offered) for kind, names in members.items()}
        found[column] = dict(sorted(shares.items(), key=lambda item: item[1].value))
    return Figure(
        "What online selection let train",
        f"Of the {sum(offered.values()):,} candidates {sum(kept.values()):,} trained. The share of each kind, with its "
        "95 % interval over rows; the line is the share of all.",
        ("column", "kind", "rows", "share_kept", "low", "high"),
        [
            (column, kind, share.n, share.value, share.low, share.high)
            for column, shares in found.items()
            for kind, share in shares.items()
        ],
        {
            column: partial(draw_means, shares, "share kept (rows)", sum(kept.values()) / sum(offered.values()))
            for column, shares in found.items()
        },
    )


def _share(names: list[str], kept: Counter[str], offered: Counter[str]) -> Interval:
    return mean_ratio(np.array([kept[name] for name in names]), np.array([offered[name] for name in names]))
