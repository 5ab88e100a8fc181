"""Which rows train and which judge: drawn by group and by id, a pure function of the seed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from ghosttune.data.records import Record
from ghosttune.errors import DataError


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
    """(rest, drawn): whole groups until the drawn rows reach the fraction, at least one group on each side.

    Raises DataError when all rows belong to one group, so that nothing can be set aside.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.group].append(record)
    if len(groups) < 2:
        raise DataError(
            f"{purpose} rows cannot be set aside: all {len(records)} rows have the same prompt, and equal prompts stay together. "
            f"Give data.{purpose}.path a file of its own."
        )
    wanted = max(1, round(fraction * len(records)))
    order = sorted(groups, key=lambda group: draw(seed, purpose, group))
    drawn: set[str] = set()
    rows = 0
    for group in order[:-1]:
        if rows >= wanted:
            break
        drawn.add(group)
        rows += len(groups[group])
    rest = [record for record in records if record.group not in drawn]
    return rest, [record for record in records if record.group in drawn]


def shared_groups(left: Iterable[Record], right: Iterable[Record]) -> list[str]:
    """Ids of the right-hand rows whose prompt also stands on the left."""
    known = {record.group for record in left}
    return [record.example_id for record in right if record.group in known]
