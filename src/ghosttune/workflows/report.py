"""The report of a run, with the texts of its rows where they can still be had."""

from __future__ import annotations

from pathlib import Path

from ghosttune.config.loading import load_config
from ghosttune.data.records import Record
from ghosttune.data.sources import open_source
from ghosttune.errors import InputError
from ghosttune.reports.examples import Texts, extremes
from ghosttune.reports.page import write_report
from ghosttune.reports.reading import RunNumbers
from ghosttune.run.directory import RunDir


def report(path: str | Path) -> Path:
    """Writes `report/` of the run at `path` and returns the path of its page; RunError when there is no run."""
    run = RunDir(path).open()
    return write_report(run, *texts_of(run))


def texts_of(run: RunDir) -> tuple[Texts, str]:
    """(texts of the rows at both ends, why there are none): read again from their source, if it is still the same."""
    wanted = {row["example_id"] for rows in extremes(RunNumbers(run)).values() for row in rows}
    if not wanted:
        return {}, ""
    try:
        source = open_source(load_config(run.config).data.train)
    except InputError as error:
        return {}, f"The texts of the rows are not shown, because their source cannot be read any more: {error}"
    recorded = run.read_record()["data"]["fingerprints"]
    changed = [file for file, digest in source.fingerprints.items() if recorded.get(file) != digest]
    if changed:
        return {}, f"The texts of the rows are not shown, because these files changed since: {', '.join(changed)}"
    return {record.example_id: _said(record) for record in source.records if record.example_id in wanted}, ""


def _said(record: Record) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in record.turns]
