"""What is said of rows only when somebody asks, because it takes the model: their loss, and which are alike."""

from __future__ import annotations

from typing import Any

from ghosttune.data.files import read_file
from ghosttune.errors import InputError, listed
from ghosttune.run.directory import RunDir, write_jsonl
from ghosttune.studio.folder import Folder

MEASURED = {"loss": "float64", "cluster": "int64", "duplicates": "int64"}
"""Nats per target at the best checkpoint; a group of rows whose gradients point the same way; of near-duplicates."""

CLUSTERS = 8


def measured_file(folder: Folder, run: RunDir, what: str) -> Any:
    """Where it is kept: among the studio's own files, since a run holds only what its commands write."""
    return folder.own("measured", run.path.relative_to(folder.path).as_posix(), f".{what}.jsonl")


def read_measured(folder: Folder, run: RunDir, what: str) -> dict[str, Any]:
    """id -> the number, empty before it was asked for; rows in no group are left out."""
    file = measured_file(folder, run, what)
    if not file.is_file() or not file.stat().st_size:
        return {}
    return {line["example_id"]: line[what] for _, line in read_file(file)}


def measure(folder: Folder, run: RunDir, opened: Any, what: str) -> int:
    """Keeps the number of every row that has one, and says of how many; rows are indexed first where that is needed."""
    from ghosttune.choosing.clustering import cluster
    from ghosttune.choosing.neighbours import dedupe
    from ghosttune.choosing.select import losses

    if what not in MEASURED:
        raise InputError(f"rows are not measured by {what!r}; by {listed(MEASURED)}")
    rows = opened.rows(None)
    file = measured_file(folder, run, what)
    file.parent.mkdir(parents=True, exist_ok=True)
    if what == "loss":
        (step,) = opened.steps(["best"])
        numbers: dict[str, Any] = losses(opened, rows, step)
    elif what == "cluster":
        found = cluster(opened, min(CLUSTERS, len(rows.ids)), top=len(rows.ids)).clusters
        numbers = {row.example_id: group.number for group in found for row in group.rows}
    else:
        groups = dedupe(opened)
        numbers = {row.example_id: number for number, group in enumerate(groups, 1) for row in group.rows}
    write_jsonl(file, [{"example_id": name, what: found} for name, found in numbers.items() if found is not None])
    return sum(found is not None for found in numbers.values())
