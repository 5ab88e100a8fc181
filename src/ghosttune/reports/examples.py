"""Single rows: the most harmful and the most helpful with their text, and answers to dev rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ghosttune.reports.markup import Markup, joined, said, shown, tag
from ghosttune.reports.reading import RunNumbers
from ghosttune.reports.values import scored
from ghosttune.run.tables import OUR_COLUMNS, read_table

EXTREMES = 10
"""Rows at either end that are shown."""

UNFOLDED = 4
"""Of them, those that are seen without a click."""

ANSWERS = 8

STRONGEST = 60
"""Per cent of colour behind the target of the largest number: words stay readable on it."""

Texts = Mapping[str, Sequence[tuple[str, str]]]
"""example_id -> (who says it, what)."""

Shades = Mapping[str, Sequence[tuple[str, int, float]]]
"""example_id -> (text of a target, how many tokens it is, how fast a step along its gradient lowers the guide loss)."""

SHADING = (
    "Targets are shaded by how fast a step of AdamW along each one's gradient lowers the guide loss, at the last "
    "checkpoint: green lowers it, orange raises it, the strongest of a row are its largest. A value is of all visits "
    "to the row; this is of where the run ended, when a row that was learned has hardly a gradient left."
)

FIRST_FIELDS = ("prompt", "reference", "references", "output", "base_output")
"""Of a prediction, in the order in which they are shown."""


def extremes(numbers: RunNumbers) -> dict[str, list[dict[str, Any]]]:
    """`lowest` and `highest` -> the rows that stand there, the most extreme first; no row is in both."""
    rows = scored(numbers)
    count = min(EXTREMES, len(rows) // 2)
    return {"lowest": rows[:count], "highest": rows[::-1][:count]} if count else {}


def extreme_rows(numbers: RunNumbers, texts: Texts, why_no_texts: str, shades: Shades) -> Markup:
    """Cards of the rows at both ends; `why_no_texts` is shown where `texts` is empty."""
    ends = extremes(numbers)
    parts = _parts(numbers, [row["example_id"] for rows in ends.values() for row in rows])
    blocks: list[Markup] = [tag("p", why_no_texts, class_="soft")] if ends and not texts else []
    blocks += [tag("p", SHADING)] if shades else []
    for end, rows in ends.items():
        harmful = sum(row["standing"] < 0 for row in rows)
        blocks.append(tag("h3", f"The {len(rows)} rows that stand {end}"))
        blocks.append(
            tag("p", f"{harmful or 'None'} of them raised the loss of the guide rows more than they lowered it.")
        )
        cards = [
            _row_card(
                row, texts.get(row["example_id"], ()), parts[row["example_id"]], shades.get(row["example_id"], ())
            )
            for row in rows
        ]
        blocks += cards[:UNFOLDED]
        if more := cards[UNFOLDED:]:
            blocks.append(tag("details", tag("summary", f"{len(more)} more"), *more))
    return joined(blocks)


def _row_card(
    row: Mapping[str, Any],
    text: Sequence[tuple[str, str]],
    parts: Iterable[str],
    shades: Sequence[tuple[str, int, float]],
) -> Markup:
    own = {name: value for name, value in row.items() if name not in OUR_COLUMNS and value not in (None, "")}
    facts = [
        f"value {row['value']:+.4g} nats per target",
        *([f"credit {row['credit']:+.4g}"] if row.get("credit") is not None else []),
        f"visits: {row['steps_seen']}",
        f"tokens: {row['tokens']}",
        *(f"{name}: {shown(value)}" for name, value in own.items()),
    ]
    standing = tag("span", f"{row['standing']:+.2f}", class_="bad" if row["standing"] < 0 else "good")
    return tag(
        "div",
        tag("h5", standing, " ", row["example_id"]),
        tag("p", " · ".join(facts), class_="meta"),
        tag("p", " · ".join(parts), class_="meta"),
        tag(
            "dl",
            *(joined([tag("dt", who), tag("dd", said(what))]) for who, what in text),
            *([tag("dt", "targets"), tag("dd", said(_shaded(shades)))] if shades else []),
        ),
        class_="card",
    )


def _shaded(shades: Sequence[tuple[str, int, float]]) -> Markup:
    """Targets, the stronger the larger their number, which is said where one points."""
    largest = max(abs(number) for _, _, number in shades) or 1.0
    return joined(
        tag(
            "span",
            text or f" … {tokens:,} more",
            title=f"{number:+.3g}",
            style=f"--strength: {STRONGEST * abs(number) / largest:.0f}%",
            class_="lowers" if number > 0 else "raises",
        )
        for text, tokens, number in shades
    )


def _parts(numbers: RunNumbers, ids: Sequence[str]) -> dict[str, list[str]]:
    """example_id -> its value by group of modules and by phase, in words."""
    if not ids:
        return {}
    import pyarrow as pa
    import pyarrow.compute as pc

    table = read_table(numbers.run, "ledger", ["step", "example_id", "group", "value"])
    chosen = table.filter(pc.is_in(table["example_id"], pa.array(ids)))  # type: ignore[attr-defined]
    by_group: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    by_phase: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in chosen.to_pylist():
        if row["value"] is None:
            continue
        by_group[row["example_id"]][row["group"]] += row["value"]
        for place, span in enumerate(numbers.spans, 1):
            if span.start < row["step"] <= span.end:
                by_phase[row["example_id"]][f"phase {place} ({span.name})"] += row["value"]
    kinds = {"by group": by_group} | ({"by phase": by_phase} if len(numbers.spans) > 1 else {})
    return {name: [f"{kind}: {_sums(sums[name])}" for kind, sums in kinds.items()] for name in ids}


def _sums(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:+.3g}" for name, value in parts.items())


def answers(numbers: RunNumbers, split: str) -> Markup:
    """The first answered rows of a split, which were drawn at random."""
    rows = numbers.predictions(split)
    if not rows:
        return Markup("")
    count = min(ANSWERS, len(rows))
    note = f"The first {count} of {len(rows)}, not the best; all are in predictions/{split}.jsonl."
    return joined([tag("h3", f"Answers: {split}"), tag("p", note), *(_answer_card(row) for row in rows[:count])])


def _answer_card(row: Mapping[str, Any]) -> Markup:
    names = [name for name in dict.fromkeys([*FIRST_FIELDS, *row]) if name != "example_id"]
    between = {"references": "\n"}
    found = {name.replace("_", " "): _text(row.get(name), between.get(name, " ")) for name in names}
    texts = {name: text for name, text in found.items() if text is not None}
    others = [f"{name}: {shown(value)}" for name, value in _flat(row).items() if _text(value) is None]
    return tag(
        "div",
        tag("h5", row["example_id"]),
        tag("p", " · ".join(others), class_="meta"),
        tag("dl", *(joined([tag("dt", name), tag("dd", said(text))]) for name, text in texts.items())),
        class_="card",
    )


def _text(value: Any, between: str = " ") -> str | None:
    """A text, or several joined; None for anything else."""
    if isinstance(value, str):
        return value
    is_several = isinstance(value, list) and value and all(isinstance(entry, str) for entry in value)
    return between.join(value) if is_several else None


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and flags, those of `scores` and `base_scores` by metric; what is empty is left out."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        above = name.removesuffix("scores").replace("_", " ")
        inner = {f"{above}{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
        flat |= {key.replace("base_", "base "): entry for key, entry in inner.items() if entry not in (None, [], "")}
    return flat
