"""Which rows are kept, by a score: a share, a number or a threshold, of all rows or of each kind; with reasons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ghosttune.data.files import kind_of, read_file
from ghosttune.data.splitting import draw
from ghosttune.errors import DataError, InputError, listed_faults


@dataclass(frozen=True)
class Decision:
    """What happens to a row, and why."""

    example_id: str
    kept: bool
    score: float | None
    reason: str


def keep_best(
    scores: Mapping[str, float | None],
    keep: float,
    named: str,
    *,
    lowest: bool = False,
    kinds: Mapping[str, str] | None = None,
) -> list[Decision]:
    """One decision per row, in the order of `scores`: the highest (or lowest) are kept, of equal ones the earlier.

    Args:
        scores: by row; rows without one are never kept.
        keep: a share below 1, or a number of rows.
        named: what the score is, for the reasons.
        kinds: the kind of each row; every kind keeps the same share, and the total is what it would be without kinds.

    Raises InputError for a share or number that cannot be kept.
    """
    scored = [name for name, score in scores.items() if score is not None]
    wanted = _count(keep, len(scores), len(scored), named)
    kinds = kinds or dict.fromkeys(scored, "")
    groups: dict[str, list[str]] = {}
    for name in sorted(scored, key=lambda name: (scores[name] or 0.0) * (1 if lowest else -1)):
        groups.setdefault(kinds[name], []).append(name)
    shares = shares_of({kind: len(names) for kind, names in groups.items()}, wanted)
    decided: dict[str, Decision] = {}
    for kind, names in groups.items():
        for rank, name in enumerate(names, start=1):
            kept = rank <= shares[kind]
            order = (
                f"rank {rank} of {len(names)}{f' in {kind}' if kind else ''} by {'lowest ' if lowest else ''}{named}"
            )
            decided[name] = Decision(name, kept, scores[name], f"{order}, of which {shares[kind]} are kept")
    return [decided.get(name) or _unscored(name, named) for name in scores]


def keep_beyond(
    scores: Mapping[str, float | None], named: str, *, above: float | None = None, below: float | None = None
) -> list[Decision]:
    """One decision per row: those with a score above one number, or below the other, are kept."""
    side, limit = ("above", above) if above is not None else ("below", below)
    decisions = []
    for name, score in scores.items():
        if score is None or limit is None:
            decisions.append(_unscored(name, named))
            continue
        kept = score > limit if side == "above" else score < limit
        decisions.append(Decision(name, kept, score, f"{named} is {'' if kept else 'not '}{side} {limit:g}"))
    return decisions


def drawn(names: Sequence[str], seed: int) -> dict[str, float]:
    """A score for each row that depends on nothing but its id and the seed."""
    return {name: draw(seed, "select", name) for name in names}


def ids_in(path: Path, setting: str = "data.train.keep") -> set[str]:
    """The ids in a file: the `example_id` of each row, or each line of a .txt file.

    DataError, in the name of the setting, when the file is missing, or an id is.
    """
    if not path.is_file():
        raise DataError(f"{setting} {path} is not a file")
    rows = read_file(path)
    name = "text" if kind_of(path) == "txt" else "example_id"
    without = [place for place, fields in rows if not isinstance(fields.get(name), str)]
    if without:
        raise DataError(listed_faults(f"{path}: rows without a text as their example_id", without))
    return {fields[name] for _, fields in rows}


def _unscored(name: str, named: str) -> Decision:
    return Decision(name, False, None, f"has no {named}")


def _count(keep: float, rows: int, scored: int, named: str) -> int:
    if not (math.isfinite(keep) and keep > 0 and (keep < 1 or keep == int(keep))):
        raise InputError(f"--keep is {keep:g}; give a share between 0 and 1, or a number of rows")
    wanted = round(keep * rows) if keep < 1 else int(keep)
    if not 0 < wanted <= scored:
        raise InputError(f"--keep {keep:g} asks for {wanted} rows, and {scored} of {rows} rows have a {named}")
    return wanted


def shares_of(sizes: Mapping[str, float], wanted: int) -> dict[str, int]:
    """How many of each kind, in proportion, by largest remainder: they add up to `wanted`."""
    total = sum(sizes.values())
    exact = {kind: wanted * size / total for kind, size in sizes.items()}
    shares = {kind: int(share) for kind, share in exact.items()}
    for kind in sorted(exact, key=lambda kind: shares[kind] - exact[kind])[: wanted - sum(shares.values())]:
        shares[kind] += 1
    return shares
