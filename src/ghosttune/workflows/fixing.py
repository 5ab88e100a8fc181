"""The rows of a source that can be used, as a file of their own, and the others with what is wrong with each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ghosttune.config.schema import RunConfig
from ghosttune.data.files import rows_and_faults
from ghosttune.data.sources import BUILTIN_ROWS, source_files
from ghosttune.errors import InputError, listed
from ghosttune.run.directory import write_jsonl


def require_fixable(config: RunConfig, out: Path) -> None:
    """InputError when there are no rows of the user's own to sort, or when a file would be replaced."""
    train = config.data.train
    if train.sources is not None:
        raise InputError(
            f"--fix sorts the rows of one source, and data.train.sources mixes {listed(train.sources)}; give them one "
            "by one, with --set data.train.path"
        )
    if train.streaming:
        raise InputError("--fix sorts all rows of a file, and these are streamed; give it one shard, not streamed")
    if train.name is not None or train.path in (None, BUILTIN_ROWS):
        raise InputError(f"--fix sorts rows of your own (data.train.path), and these are {train.name or train.path}")
    if out.suffix != ".jsonl":
        raise InputError(f"--fix writes JSON lines: call the file .jsonl, not {out.name}")
    for path in (out, others_of(out)):
        if path.exists():
            raise InputError(f"{path} exists; give --fix the name of a new file")


def others_of(out: Path) -> Path:
    """Where the rows go that cannot be used: `rows.left-out.jsonl` beside `rows.jsonl`."""
    return out.with_suffix(".left-out.jsonl")


def write_usable(config: RunConfig, unusable: Mapping[str, str], out: Path) -> dict[str, Any]:
    """Writes the usable rows as they stand to `out`, and {place, reason, row} of each other one beside it.

    Rows of a folder carry the split of their file, so that the one file stands for all. Lines that are no rows have a
    place and a reason only.
    """
    kept: list[dict[str, Any]] = []
    left_out: dict[str, dict[str, Any]] = {place: {"place": place, "reason": why} for place, why in unusable.items()}
    for split, path in source_files(Path(config.data.train.path or "")).items():
        for place, fields in rows_and_faults(path)[0]:
            row = json.loads(json.dumps(fields, default=str))  # Parquet has dates
            if place in unusable:
                left_out[place]["row"] = row
            else:
                kept.append(row if split is None else {**row, "split": split})
    write_jsonl(out, kept)
    write_jsonl(others_of(out), left_out.values())
    return {"path": str(out), "rows": len(kept), "others": str(others_of(out)), "left_out": len(left_out)}
