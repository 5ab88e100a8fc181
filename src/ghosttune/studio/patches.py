"""Changes to a run's rows while somebody makes them: `rows.patch.jsonl` in its directory, for the next run."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ghosttune.data.columns import RowFault
from ghosttune.data.files import read_file
from ghosttune.data.patching import SPLITS, change_of, edited, read_patch
from ghosttune.data.records import Record, detect_format, each_record
from ghosttune.errors import DataError, InputError
from ghosttune.run.directory import RunDir, write_jsonl
from ghosttune.stages.prepare import task_of
from ghosttune.stages.runs import open_run
from ghosttune.studio.folder import Folder

Line = dict[str, Any]

_WRITING = threading.Lock()


def lines_of(run: RunDir) -> list[Line]:
    """What has been noted; at first, what the run itself was trained with."""
    if run.patch.is_file():
        return [dict(fields) for _, fields in read_file(run.patch)] if run.patch.stat().st_size else []
    before = open_run(run.path).config.data.train.patch
    return [dict(fields) for _, fields in read_file(Path(before))] if before and Path(before).is_file() else []


def change(folder: Folder, name: str, record: Record, wanted: Mapping[str, Any]) -> list[Line]:
    """Notes what shall happen to a row, in place of what was noted before; nothing wanted takes it back.

    InputError says why it cannot be done, before anything is written.
    """
    run = folder.run(name)
    line = {key: value for key, value in wanted.items() if not (value is None or value is False or value == "")}
    if "add" in line:
        raise InputError(f"{record.example_id} is a row of the data, or was added already: edit it")
    with _WRITING:
        lines = lines_of(run)
        before = next((one for one in lines if one["example_id"] == record.example_id), {})
        if "add" in before and line.get("drop"):
            line = {}
        elif "add" in before:
            line = _added_again(before, line)
        new = {"example_id": record.example_id, **line}
        if line:
            _require(run, record, new)
        others = [one for one in lines if one["example_id"] != record.example_id]
        lines = [*others, new] if line else others
        write_jsonl(run.patch, lines)
    folder.note("patched", run=name, row=record.example_id, change=line)
    return lines


def _added_again(before: Line, line: Line) -> Line:
    """A row that an earlier patch added, as it shall be now."""
    edit = line.pop("edit", None)
    return {
        **{key: before[key] for key in ("add", "split") if key in before},
        **line,
        **({"add": edit} if edit else {}),
    }


def _require(run: RunDir, record: Record, line: Line) -> None:
    formats = task_of(open_run(run.path).config).formats
    try:
        found = change_of(line, run.patch.name)
        if found.edit is not None:
            edited(record, found.edit, run.patch.name, formats)
    except (RowFault, DataError) as fault:
        raise InputError(f"{record.example_id}: {fault}") from fault


def add(folder: Folder, name: str, row: Mapping[str, Any], split: str) -> list[Line]:
    """Notes a row that the data does not have, for training or as a guide; InputError where it is none."""
    run = folder.run(name)
    if split not in SPLITS:
        raise InputError(f"a row is added to {' or '.join(SPLITS)}, not to {split!r}")
    formats = task_of(open_run(run.path).config).formats
    with _WRITING:
        lines = lines_of(run)
        taken = {one["example_id"] for one in lines}
        number = next(n for n in range(1, len(taken) + 2) if f"patch-{n}" not in taken)
        line: Line = {"example_id": f"patch-{number}", "add": dict(row), "split": split}
        try:
            placed = (run.patch.name, dict(row))
            list(each_record([(line["example_id"], placed)], detect_format([placed], formats)))
        except (RowFault, DataError) as fault:
            raise InputError(f"the row cannot be added: {fault}") from fault
        lines = [*lines, line]
        write_jsonl(run.patch, lines)
    folder.note("patched", run=name, row=line["example_id"], change=line)
    return lines


def drop(folder: Folder, name: str, ids: Sequence[str]) -> list[Line]:
    """Notes that these rows shall be dropped, in place of what was noted of them before."""
    run = folder.run(name)
    with _WRITING:
        before = {line["example_id"]: line for line in lines_of(run)}
        added = {own for own, line in before.items() if "add" in line}
        others = [line for own, line in before.items() if own not in set(ids)]
        lines = [*others, *({"example_id": own, "drop": True} for own in ids if own not in added)]
        write_jsonl(run.patch, lines)
    folder.note("patched", run=name, rows=len(ids), change={"drop": True})
    return lines


def clear(folder: Folder, name: str) -> list[Line]:
    """Takes back all that was noted."""
    write_jsonl(folder.run(name).patch, [])
    folder.note("patched", run=name, change={})
    return []


def remove(folder: Folder, name: str, example_id: str) -> list[Line]:
    """Takes back what was noted of a row."""
    run = folder.run(name)
    with _WRITING:
        lines = [one for one in lines_of(run) if one["example_id"] != example_id]
        write_jsonl(run.patch, lines)
    folder.note("patched", run=name, row=example_id, change={})
    return lines


def snapshot(lines: Sequence[Line], path: Path) -> Path:
    """The lines as a file that a run keeps to; InputError where there are none."""
    if not lines:
        raise InputError("nothing has been changed yet: drop, edit, weight or add a row first")
    write_jsonl(path, lines)
    read_patch(path)
    return path
