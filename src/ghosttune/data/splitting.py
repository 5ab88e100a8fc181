"""Which rows train and which judge: drawn by group and by id, a pure function of the seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

from ghosttune.data.records import Record
from ghosttune.errors import TooFewRows

REMEDIES = {
    "dev": "Give data.dev.path a file of its own.",
    "guide": "Name a split with other prompts in data.guide.split, or train without a guide: measure.ledger: null.",
}
"""Purpose -> what to do when no rows can be set aside for it."""


def draw(seed: int, purpose: str, key: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments: the order in which things are drawn."""
    digest = hashlib.sha256(f"{seed}\x1f{purpose}\x1f{key}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def sample(records: list[Record], limit: int | None, seed: int) -> list[Record]:
    """At most `limit` records, drawn by id, in their own order."""
    if limit is None or limit >= len(records):
        return records
    chosen = sorted(records, key=lambda record: draw(seed, "sample", record.example_id))[:limit]
    kept = {record.example_id for record in chosen}
    return [record for record in records if record.example_id in kept]


def split_off(records: list[Record], fraction: float, seed: int, purpose: str) -> tuple[list[Record], list[Record]]:
    """(rest, drawn): whole groups, drawn as long as each brings the rows nearer to the fraction; neither side is empty.

    Raises TooFewRows when all rows belong to one group, so that nothing can be set aside.
    """
    sizes = _group_sizes(records, purpose)
    wanted = max(1, round(fraction * len(records)))
    drawn = _groups_near(wanted, sorted(sizes, key=lambda group: draw(seed, purpose, group)), sizes)
    rest = [record for record in records if record.group not in drawn]
    return rest, [record for record in records if record.group in drawn]


def split_off_rows(records: list[Record], rows: int, seed: int, purpose: str) -> tuple[list[Record], list[Record], int]:
    """(rest, exactly `rows` drawn, how many neither): whole groups leave the rest, and a last one may be cut.

    Raises TooFewRows when so many rows cannot be set aside.
    """
    sizes = _group_sizes(records, purpose)
    order = sorted(sizes, key=lambda group: draw(seed, purpose, group))
    drawn: set[str] = set()
    found = 0
    for group in order[:-1]:  # one group at least must stay
        if found < rows:
            drawn.add(group)
            found += sizes[group]
    if found < rows:
        raise TooFewRows(
            f"data.{purpose}.rows asks for {rows} rows, and of {len(records)} rows at most {found} can be set aside "
            f"(equal prompts stay together, and some must train); set it to at most {found}"
        )
    chosen = sample([record for record in records if record.group in drawn], rows, seed)
    return [record for record in records if record.group not in drawn], chosen, found - rows


def _group_sizes(records: list[Record], purpose: str) -> Counter[str]:
    """Rows per group; TooFewRows when there is one group only, so that nothing can be set aside."""
    sizes = Counter(record.group for record in records)
    if len(sizes) < 2:
        same = "there is only one row" if len(records) == 1 else f"all {len(records)} rows have the same prompt"
        raise TooFewRows(
            f"{purpose} rows cannot be set aside: {same}, and equal prompts stay together. {REMEDIES[purpose]}"
        )
    return sizes


def _groups_near(wanted: int, order: list[str], sizes: Mapping[str, int]) -> set[str]:
    """The first groups of the order whose rows come near `wanted`: at least one, and never all."""
    drawn: set[str] = set()
    rows = 0
    for group in order:
        if abs(rows + sizes[group] - wanted) < abs(rows - wanted) and len(drawn) < len(order) - 1:
            drawn.add(group)
            rows += sizes[group]
    return drawn or {min(order, key=lambda group: sizes[group])}


def shared_groups(left: Iterable[Record], right: Iterable[Record]) -> list[str]:
    """Ids of the right-hand rows whose prompt also stands on the left."""
    known = {record.group for record in left}
    return [record.example_id for record in right if record.group in known]
