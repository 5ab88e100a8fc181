"""Which rows train and which judge: drawn by group and by id, a pure function of the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ghosttune.data.records import Records
from ghosttune.errors import TooFewRows, listed

if TYPE_CHECKING:
    import numpy as np

REMEDIES = {
    "dev": "Give data.dev.path a file of its own.",
    "guide": "Name a split with other prompts in data.guide.split, or train without a guide: measure.ledger: null.",
}
"""Purpose -> what to do when no rows can be set aside for it."""


def draw(seed: int, purpose: str, key: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments: the order in which things are drawn."""
    digest = hashlib.sha256(f"{seed}\x1f{purpose}\x1f{key}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def sampled(ids: Iterable[str], limit: int, seed: int) -> np.ndarray:
    """Positions of at most `limit` ids, drawn, in their own order."""
    import numpy as np

    draws = np.fromiter((draw(seed, "sample", example_id) for example_id in ids), float)
    return np.sort(np.argsort(draws, kind="stable")[:limit])


def sample(records: Records, limit: int | None, seed: int) -> Records:
    """At most `limit` records, drawn by id, in their own order."""
    if limit is None or limit >= len(records):
        return records
    return records.where(sampled((record.example_id for record in records), limit, seed))


def split_off(records: Records, fraction: float, seed: int, purpose: str) -> tuple[Records, Records]:
    """(rest, drawn): whole groups, drawn as long as each brings the rows nearer to the fraction; neither side is empty.

    Raises TooFewRows when all rows belong to one group, so that nothing can be set aside.
    """
    group, sizes, order = _drawn_groups(records, seed, purpose)
    wanted = max(1, round(fraction * len(records)))
    is_drawn = _groups_near(wanted, order, sizes)[group]
    return records.where(~is_drawn), records.where(is_drawn)


def split_off_each(
    records: Records, sources: np.ndarray, fraction: float, seed: int, purpose: str
) -> tuple[Records, Records]:
    """(rest, drawn), the fraction from every source: a group that is drawn of one leaves all of them.

    `sources` [N] names the source of each record. Raises TooFewRows for all sources of which nothing can be set aside
    or nothing remains.
    """
    import numpy as np

    names = list(dict.fromkeys(sources.tolist()))
    groups, faults = [], []
    for name in names:
        try:
            groups.append(split_off(records.where(sources == name), fraction, seed, purpose)[1].groups)
        except TooFewRows as error:
            faults.append(f"source {name}: {error}")
    if faults:
        raise TooFewRows("\n".join(faults))
    is_drawn = np.isin(records.groups, np.concatenate(groups))
    if gone := [name for name in names if is_drawn[sources == name].all()]:
        raise TooFewRows(
            f"no training rows are left of {listed(gone)}: their prompts stand in other sources too, and were drawn "
            f"there as {purpose} rows; leave these sources out. {REMEDIES[purpose]}"
        )
    return records.where(~is_drawn), records.where(is_drawn)


def split_off_rows(records: Records, rows: int, seed: int, purpose: str) -> tuple[Records, Records, int]:
    """(rest, exactly `rows` drawn, how many neither): whole groups leave the rest, and a last one may be cut.

    Raises TooFewRows when so many rows cannot be set aside.
    """
    import numpy as np

    group, sizes, order = _drawn_groups(records, seed, purpose)
    held = np.cumsum(sizes[order[:-1]])  # one group at least must stay
    if held[-1] < rows:
        raise TooFewRows(
            f"data.{purpose}.rows asks for {rows} rows, and of {len(records)} rows at most {held[-1]} can be set aside "
            f"(equal prompts stay together, and some must train); set it to at most {held[-1]}"
        )
    last = int(np.searchsorted(held, rows))
    is_drawn = np.isin(group, order[: last + 1])
    return records.where(~is_drawn), sample(records.where(is_drawn), rows, seed), int(held[last]) - rows


def _drawn_groups(records: Records, seed: int, purpose: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the number of each record's group, the rows of each group, the groups in the order in which they are drawn).

    TooFewRows when there is one group only, so that nothing can be set aside.
    """
    import numpy as np

    _, firsts, group, sizes = np.unique(records.groups, return_index=True, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        same = "there is only one row" if len(records) == 1 else f"all {len(records)} rows have the same prompt"
        raise TooFewRows(
            f"{purpose} rows cannot be set aside: {same}, and equal prompts stay together. {REMEDIES[purpose]}"
        )
    draws = np.fromiter((draw(seed, purpose, records[first].group) for first in firsts), float, len(firsts))
    return group, sizes, np.lexsort((firsts, draws))


def _groups_near(wanted: int, order: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which groups are drawn: the first of the order whose rows come near `wanted`, at least one, and never all."""
    import numpy as np

    is_drawn = np.zeros(len(order), bool)
    rows = drawn = 0
    for group in order:
        size = int(sizes[group])
        if abs(rows + size - wanted) < abs(rows - wanted) and drawn < len(order) - 1:
            is_drawn[group] = True
            rows, drawn = rows + size, drawn + 1
    if not drawn:
        is_drawn[order[np.argmin(sizes[order])]] = True
    return is_drawn


def shared_groups(left: Records, right: Records) -> list[str]:
    """Ids of the right-hand rows whose prompt also stands on the left."""
    import numpy as np

    shared = np.flatnonzero(np.isin(right.groups, left.groups))
    return [right[place].example_id for place in shared.tolist()]
