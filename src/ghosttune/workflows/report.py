"""The report of a run, with the texts of its rows where they can still be had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ghosttune.config.loading import load_config
from ghosttune.config.schema import RunConfig
from ghosttune.data.files import changed_files
from ghosttune.data.mixing import open_data
from ghosttune.data.records import Record
from ghosttune.data.sources import Source
from ghosttune.errors import InputError
from ghosttune.models.loading import load_tokenizer
from ghosttune.registry import TASKS
from ghosttune.reports.examples import Shades, Texts, extremes
from ghosttune.reports.page import write_report
from ghosttune.reports.reading import RunNumbers
from ghosttune.run.directory import RunDir


def report(path: str | Path, *, tokens: int = 0, trust_remote_code: bool = False) -> Path:
    """Writes `report/` of the run at `path` and returns the path of its page; RunError when there is no run.

    The targets of `tokens` rows at each end are shaded, which opens the run and its model (`tokens.guide_shares`).
    InputError where nothing can be shaded.
    """
    run = RunDir(path).open()
    return write_report(run, *texts_of(run, trust_remote_code), shades_of(run, tokens, trust_remote_code))


def shades_of(run: RunDir, count: int, trust_remote_code: bool = False) -> Shades:
    """What is to be shaded of the first `count` rows at each end."""
    if not count:
        return {}
    ids = [row["example_id"] for rows in extremes(RunNumbers(run)).values() for row in rows[:count]]
    if not ids:
        raise InputError(f"{run.path} has no values of rows, so that there is nothing to shade (measure.ledger)")
    from ghosttune.choosing.opened import OpenedRun
    from ghosttune.choosing.tokens import guide_shares

    found = guide_shares(OpenedRun(run.path, trust_remote_code=trust_remote_code), ids)
    return {name: [(share.text, share.tokens, share.share) for share in shares] for name, shares in found.items()}


def texts_of(run: RunDir, trust_remote_code: bool = False) -> tuple[Texts, str]:
    """(texts of the rows at both ends, why there are none): read again from their source, if it is still the same."""
    wanted = {row["example_id"] for rows in extremes(RunNumbers(run)).values() for row in rows}
    if not wanted:
        return {}, ""
    try:
        config = load_config(run.config, trust_remote_code=trust_remote_code)
        if config.data.train.streaming:
            return {}, "The texts of the rows are not shown, because they were streamed: their ids name file and line."
        source = open_data(config.data.train, TASKS[config.task.type].build(config.task).formats)
    except InputError as error:
        return {}, f"The texts of the rows are not shown, because their source cannot be read any more: {error}"
    if changed := changed_files(run.read_record()["data"]["fingerprints"], source.fingerprints):
        return {}, f"The texts of the rows are not shown, because these files changed since: {', '.join(changed)}"
    return {name: said for name, said in every_text(source, config) if name in wanted}, ""


def every_text(source: Source, config: RunConfig) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(example_id, (who says it, what)) of every row of the source."""
    if source.in_blocks is None:
        yield from ((record.example_id, _said(record)) for record in source.records)
        return
    tokenizer = load_tokenizer(config.model)
    for record in source.in_blocks(tokenizer, config.data.max_length):
        tokens: Any = record.tokens
        yield record.example_id, _said(record) if tokens is None else [("text", str(tokenizer.decode(tokens)))]


def _said(record: Record) -> list[tuple[str, str]]:
    columns = {name: value for name, value in record.columns.items() if value is not None}
    words = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in columns.items()}
    return [(turn.role, turn.words) for turn in record.turns] or [(name, str(text)) for name, text in words.items()]
