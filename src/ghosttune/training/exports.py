"""What the tables say, row by row, module by module and group by group: written once, at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ghosttune.metrics.ranking import auroc, separation
from ghosttune.run.directory import RunDir, write_csv, write_file, write_json
from ghosttune.run.tables import OUR_COLUMNS, PARTS, name_beside, read_table, table_columns
from ghosttune.training.rotation import standard_errors

GROUP_NAMES = {"embedding": "embed", "attention": "attention", "mlp": "mlp", "head": "lm_head"}
"""Group to its name in the columns of gradient_analysis, in their order."""

ROWS_TOGETHER = 10_000
"""Rows of a table that are written at once."""

COLUMNS_TOGETHER = 64
"""Columns of the rows' own that are read at once: bounds memory."""


def write_values(
    run: RunDir, rows: Sequence[tuple[str, Mapping[str, Any]]], tokens: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """tables/values.parquet and .csv: what every training row did over the run.

    `rows`: (example_id, the row's own columns, named by `name_beside`); `tokens` of each, where known. Returns
    `standing` and the yes/no columns of the rows that were scored.

    `value` and `credit` are the sums of the row's entries in the ledger.
    `standing` is for ranking: the row's value over the root mean square of the values of its step, averaged over the
    times it was scored. It takes out when a row came: early steps move the loss a thousand times more than late ones.
    A row that was never scored has neither.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    totals = totals_of(run)
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    never: tuple[None, None, None, int] = (None, None, None, 0)
    value, credit, standing, seen = zip(*(totals.get(example_id, never) for example_id, _ in rows), strict=True)
    table = pa.table(
        {
            "example_id": pa.array((example_id for example_id, _ in rows), pa.string()),
            "value": pa.array(value, pa.float64()),
            "credit": pa.array(credit, pa.float64()),
            "standing": pa.array(standing, pa.float64()),
            "steps_seen": pa.array(seen, pa.int64()),
        }
        | ({} if tokens is None else {"tokens": pa.array(tokens, pa.int64())})
        | {name: pa.array(cells, pa.float64()) for name, cells in _by_part(run, [n for n, _ in rows]).items()}
        | {name_beside(name, OUR_COLUMNS): cells_of(cells) for name, cells in _columns(rows, names)}
    )
    for part in run.table("values").glob("part-*"):
        part.unlink()
    write_file(run.table("values") / "part-000000000.parquet", lambda path: pq.write_table(table, path))
    lines = (line for part in table.to_batches(ROWS_TOGETHER) for line in zip(*map(_listed, part.columns), strict=True))
    write_csv(run.export("values"), table.column_names, lines)
    flags = [field.name for field in table.schema if pa.types.is_boolean(field.type)]
    return table.filter(table["standing"].is_valid()).select(["standing", *flags]).to_pylist()


def _columns(rows: Sequence[tuple[str, Mapping[str, Any]]], names: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    """Each column's cells. The rows lie on disk, each as a whole: they are read once for many columns, not for each."""
    for first in range(0, len(names), COLUMNS_TOGETHER):
        some: dict[str, list[Any]] = {name: [] for name in names[first : first + COLUMNS_TOGETHER]}
        for _, row in rows:
            for name, cells in some.items():
                cells.append(row.get(name))
        yield from some.items()


def totals_of(run: RunDir) -> dict[str, tuple[float | None, float | None, float | None, int]]:
    """(value, credit, standing, steps seen) by row: the ledger's entries added up, in the order of the steps."""
    table = read_table(run, "ledger", ["step", "example_id", "value", "credit"])
    ids = table["example_id"].combine_chunks().dictionary_encode()
    entries = np.stack([ids.indices.to_numpy(), table["step"].to_numpy()])
    visits, place = np.unique(entries, axis=1, return_inverse=True)
    values, credits = np.zeros((2, visits.shape[1]))
    np.add.at(values, place.ravel(), table["value"].to_numpy(zero_copy_only=False))
    np.add.at(credits, place.ravel(), table["credit"].to_numpy(zero_copy_only=False))
    row, step = visits
    scored = ~np.isnan(values)
    squares = np.bincount(step[scored], weights=values[scored] ** 2)
    typical = np.sqrt(squares / np.maximum(1, np.bincount(step[scored])))[step[scored]]
    standing = np.divide(values[scored], typical, out=np.zeros(scored.sum()), where=typical > 0)
    count = len(ids.dictionary)
    times = np.bincount(row[scored], minlength=count)
    sums = np.bincount(row[scored], weights=values[scored], minlength=count)
    credited = np.bincount(row, weights=np.nan_to_num(credits), minlength=count)
    known = np.bincount(row[~np.isnan(credits)], minlength=count)
    standings = np.bincount(row[scored], weights=standing, minlength=count) / np.maximum(1, times)
    seen = np.bincount(row, minlength=count)
    return {
        name: (
            float(sums[i]) if times[i] else None,
            float(credited[i]) if known[i] else None,
            float(standings[i]) if times[i] else None,
            int(seen[i]),
        )
        for i, name in enumerate(ids.dictionary.to_pylist())
    }


def _by_part(run: RunDir, ids: Sequence[str]) -> dict[str, list[float | None]]:
    """`value_PART` and `credit_PART` of each row, which add up to its own; nothing where rows have no lasting parts.

    None for a part that a row does not have, or that was never scored.
    """
    if "part" not in table_columns(run, "ledger"):
        return {}
    table = read_table(run, "ledger", ["example_id", "part", "value", "credit"])
    sums = table.group_by(["example_id", "part"]).aggregate([("value", "sum"), ("credit", "sum")])
    found: dict[str, dict[str, float | None]] = {}
    for row in sums.to_pylist():
        for kind in ("value", "credit") if row["part"] in PARTS else ():
            found.setdefault(f"{kind}_{row['part']}", {})[row["example_id"]] = row[f"{kind}_sum"]
    return {name: [own.get(example_id) for example_id in ids] for name, own in sorted(found.items())}


def selection_totals(run: RunDir) -> dict[str, int]:
    """What online selection did over the run, from tables/selection.

    Candidates and how many of them trained, the same in different rows, and the updates whose candidates had no score
    and were drawn.
    """
    table = read_table(run, "selection", ["step", "example_id", "score", "kept"])
    trained, unscored = table.filter(table["kept"]), table.filter(table["score"].is_null())
    return {
        "candidates": len(table),
        "kept": len(trained),
        "rows_offered": len(table["example_id"].unique()),
        "rows_kept": len(trained["example_id"].unique()),
        "steps_drawn": len(unscored["step"].unique()),
    }


def separated_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each yes/no column of the rows, whether its yes-rows stand lower than the others, with an interval."""
    scored = [row for row in rows if row["standing"] is not None]
    found = {}
    for name in rows[0] if rows else ():
        flags = np.array([row[name] is True for row in scored])
        if not all(isinstance(row[name], bool) for row in scored) or flags.all() or not flags.any():
            continue
        interval = auroc(np.array([row["standing"] for row in scored]), flags)
        fewest = int(min(flags.sum(), (~flags).sum()))
        found[name] = {"auroc": interval.as_dict(), "rows": int(flags.sum()), "verdict": separation(interval, fewest)}
    return found


def write_modules(run: RunDir) -> list[dict[str, Any]]:
    """tables/modules.csv: how much each module lowered the guide loss, largest first; returns the same rows.

    `share` is the module's part of the total; null where the total is not positive. With guide rows that take turns
    there is a `standard_error` of `guide_loss_drop`.
    """
    table = read_table(run, "module_steps")
    drops: dict[tuple[Any, ...], float] = {}
    columns = (table[name].to_pylist() for name in ("module", "layer", "group", "guide_loss_drop"))
    for *key, drop in zip(*columns, strict=True):
        drops[tuple(key)] = drops.get(tuple(key), 0.0) + drop
    total = sum(drops.values())
    rows = [
        {"module": m, "layer": layer, "group": g, "guide_loss_drop": d, "share": d / total if total > 0 else None}
        for (m, layer, g), d in sorted(drops.items(), key=lambda item: -item[1])
    ]
    if run.table("guide_contrasts").exists():
        errors = standard_errors(read_table(run, "guide_contrasts").to_pydict())
        rows = [row | {"standard_error": errors[row["module"]]} for row in rows]
    write_csv(run.export("modules"), list(rows[0]), [list(row.values()) for row in rows])
    return rows


def write_phases(run: RunDir, phases: Sequence[Mapping[str, Any]], tokens: Sequence[int]) -> list[dict[str, Any]]:
    """tables/phases.csv: what each phase trained, how much it was given, and what it did to the guide loss.

    `phases`: one row per phase, with `start` and `end`; `tokens`: of each update that was made. Without a ledger
    `guide_loss_drop` is empty. Returns the rows.
    """
    drops: dict[int, float] = {}
    if run.table("module_steps").exists():
        table = read_table(run, "module_steps", ["step", "guide_loss_drop"]).to_pydict()
        for step, drop in zip(table["step"], table["guide_loss_drop"], strict=True):
            drops[step] = drops.get(step, 0.0) + drop
    rows = [
        {
            **phase,
            "tokens": sum(tokens[phase["start"] : phase["end"]]),
            "guide_loss_drop": _between(drops, phase["start"], phase["end"]),
        }
        for phase in phases
    ]
    write_csv(run.export("phases"), list(rows[0]), [list(row.values()) for row in rows])
    return rows


def _between(drops: Mapping[int, float], start: int, end: int) -> float | None:
    """The drops of the windows that end in updates start + 1 … end; None where nothing was measured."""
    found = [drop for step, drop in drops.items() if start < step <= end]
    return sum(found) if found else None


def write_gradient_analysis(run: RunDir, layers: bool) -> None:
    """The three gradient_analysis files: norms before clipping per group, per layer, and their summary.

    An empty cell is a group that is frozen or not trained; a norm of zero is 0.0.
    """
    table = read_table(run, "norms", ["step", "layer", "group", "norm"]).to_pydict()
    groups: dict[int, dict[str, float]] = {}
    by_layer: dict[int, dict[str, float]] = {}
    names = {f"layer_{layer}_{g}" for layer, g in zip(table["layer"], table["group"], strict=True) if layer is not None}
    for step, layer, group, norm in zip(table["step"], table["layer"], table["group"], table["norm"], strict=True):
        row, cells = groups.setdefault(step, {}), by_layer.setdefault(step, {})
        if norm is None:
            continue
        for name in {GROUP_NAMES.get(group), "total"} - {None}:
            row[str(name)] = row.get(str(name), 0.0) + norm**2
        if layer is not None:
            cells[f"layer_{layer}_{group}"] = cells.get(f"layer_{layer}_{group}", 0.0) + norm**2
    columns = [*GROUP_NAMES.values(), "total"]
    _write_norms(run, "group_norms.csv", [f"{name}_norm" for name in columns], columns, groups)
    if layers:
        ordered = sorted(names, key=lambda name: (int(name.split("_")[1]), name))
        _write_norms(run, "layer_norms.csv", ordered, ordered, by_layer)
    write_json(run.gradient_analysis("summary.json"), _summary(groups, columns))


def _write_norms(
    run: RunDir, file: str, header: Sequence[str], names: Sequence[str], squares: Mapping[int, Mapping[str, float]]
) -> None:
    rows = (
        [step, *(None if (square := squares[step].get(name)) is None else square**0.5 for name in names)]
        for step in sorted(squares)
    )
    write_csv(run.gradient_analysis(file), ["step", *header], rows)


def _summary(squares: Mapping[int, Mapping[str, float]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    summary = {}
    for name in names:
        steps = [step for step in sorted(squares) if name in squares[step]]
        if steps:
            norms = np.sqrt([squares[step][name] for step in steps])
            summary[name] = {
                "mean": float(norms.mean()),
                "std": float(norms.std()),
                "max": float(norms.max()),
                "min": float(norms.min()),
                "peak_step": steps[int(norms.argmax())],
            }
    return summary


def _listed(column: Any) -> list[Any]:
    return column.to_pylist()


def cells_of(values: list[Any]) -> list[Any]:
    """The values as one column: as they are where they are of one simple type that Arrow has, else as text."""
    kinds = {type(value) for value in values if value is not None}
    simple = len(kinds) <= 1 and kinds <= {bool, int, float, str}
    if kinds == {int}:
        simple = all(value is None or -(1 << 63) <= value < 1 << 63 for value in values)
    return values if simple else [None if value is None else str(value) for value in values]
