"""What is written of a run after its last step: measurements, adapters and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ghosttune.data.encoding import RowFeatures
from ghosttune.data.mixing import source_of_row
from ghosttune.data.stored import Each
from ghosttune.metrics.intervals import FEWEST_ROWS, mean_ratio, verdict
from ghosttune.run.directory import RunDir, write_csv, write_folder
from ghosttune.run.recording import Record
from ghosttune.run.tables import read_table
from ghosttune.stages.prepare import Prepared
from ghosttune.stages.start import records_of, without_rule_of, write_splits
from ghosttune.training import checkpoints
from ghosttune.training.candidates import Candidates
from ghosttune.training.drawn import DrawnRow, drawn_rows
from ghosttune.training.exports import (
    selection_totals,
    separated_columns,
    write_gradient_analysis,
    write_modules,
    write_phases,
    write_values,
)
from ghosttune.training.guide import GuideRows
from ghosttune.training.instruments import Measurement, instrument_of
from ghosttune.training.ledger import Ledger
from ghosttune.training.order import RowOrder, rows_of_steps
from ghosttune.training.phasing import Phasing
from ghosttune.training.processes import processes
from ghosttune.training.trainer import RunTrainer
from ghosttune.training.watching import Watch


def throughput(watch: Watch, record: Record) -> dict[str, Any]:
    """Of all updates, in the seconds that made them: what was lost with a kill and done again counts once."""
    tokens, padding, targets = watch.counted()
    seconds = record.contents["stage_seconds"].get("train", 0.0)
    return {
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "targets_per_second": round(targets / seconds, 1) if seconds else None,
        "padding_share": round(padding / (tokens + padding), 4) if tokens else None,
    }


def note_selection(run: RunDir, record: Record, measured: Measurement, candidates: Candidates) -> None:
    """What online selection has done and taken so far, in all the parts of a run that was interrupted."""
    measured.flush()
    seconds = seconds_in_all(record, "online_selection", candidates.seconds)
    record.note(online_selection={"seconds": seconds, **selection_totals(run)})


def seconds_in_all(record: Record, name: str, seconds: float) -> float:
    """Those of this process and of the parts of the run before it."""
    return round(record.contents.get(name, {}).get("seconds", 0.0) + seconds, 3)


def saved(record: Record, step: int) -> None:
    """Notes how far the run is and how long it took, for a run that is killed and goes on from here."""
    record.count_seconds()
    record.note(step=step)


def write_measurements(run: RunDir, record: Record, prepared: Prepared, measured: Measurement) -> None:
    """Exports what the closed instruments hold: tables, gradient_analysis and the account."""
    record.note(**without_rule_of(prepared.config, measured.model, measured.engines()))
    if prepared.config.measure.norms.every is not None:
        write_gradient_analysis(run, prepared.config.measure.norms.layers)
    read = None if prepared.stream is None else drawn_rows(run)
    if read is not None:
        write_splits(run, {"train": read} | records_of(prepared))
        _note_drawn(record, read)
    ledger = instrument_of(measured, Ledger)
    if ledger is not None:
        if read is None:
            rows = Each(prepared.train_records, lambda record: (record.example_id, record.metadata))
            values = write_values(run, rows, list(_tokens(prepared)))
        else:
            rows = [(row.example_id, row.columns) for row in read]
            values = write_values(run, rows, [row.tokens for row in read])
        write_modules(run)
        _write_guide_losses(run, ledger)
        record.note(ledger=ledger.account() | {"columns": separated_columns(values)})


def _note_drawn(record: Record, read: Sequence[DrawnRow]) -> None:
    """Which rows of the stream were read, in place of how many there would be."""
    data = record.contents["data"]
    data["rows"]["train"] = len(read)
    data["cut_rows"]["train"] = [row.example_id for row in read if row.cut]
    data["tokens"]["train"] = sum(row.tokens for row in read)
    record.note(data=data)


def _write_guide_losses(run: RunDir, ledger: Ledger) -> None:
    """tables/guide_losses.csv: what each guide row, or window of one, adds to the guide loss at both ends."""
    assert isinstance(ledger.guide, GuideRows) and ledger.end is not None  # a run's own, and closed
    losses = zip(ledger.guide.example_ids, ledger.start["losses"].tolist(), ledger.end.tolist(), strict=True)
    write_csv(run.export("guide_losses"), ["example_id", "before", "after"], losses)


def _tokens(prepared: Prepared) -> Iterator[int]:
    """The tokens of each training row: of all its windows where it is several, 0 where it has no features."""
    windows = groupby(prepared.train.features, key=lambda row: row.example_id)
    example_id, own = next(windows, (None, iter(())))
    for record in prepared.train_records:
        if record.example_id == example_id:
            yield sum(len(window) for window in own)
            example_id, own = next(windows, (None, iter(())))
        else:
            yield 0


def write_phase_table(
    run: RunDir, record: Record, prepared: Prepared, phasing: Phasing, trainer: RunTrainer, steps: int
) -> None:
    """tables/phases.csv, and which phase the best and the last adapter come from."""
    tokens = tokens_of_steps(run, prepared, trainer.order, steps)
    rows = write_phases(run, phasing.table(steps, prepared.config.train.learning_rate), tokens)
    origin = {"best": trainer.watch.best_step, "last": steps}
    record.note(
        phases={
            name: None if step is None else rows[phasing.schedule.index(step)]["phase"] for name, step in origin.items()
        }
    )


def tokens_of_steps(run: RunDir, prepared: Prepared, order: RowOrder, steps: int) -> list[int]:
    """The tokens that each update trained."""
    train, features = prepared.config.train, prepared.train.features
    if prepared.config.data.online_selection.by is not None:
        tokens = np.zeros(steps, np.int64)
        table = read_table(run, "selection", ["step", "tokens", "kept"]).to_pydict()
        np.add.at(tokens, np.array(table["step"]) - 1, np.where(table["kept"], table["tokens"], 0))
        return tokens.tolist()
    if prepared.config.task.draws:
        return _tokens_of_answers(run, prepared, steps)
    if prepared.stream is not None:
        table, tokens = read_table(run, "drawn", ["step", "tokens"]), np.zeros(steps + 1, np.int64)
        np.add.at(tokens, table["step"].to_numpy(), table["tokens"].to_numpy())
        return tokens[1:].tolist()
    consumed = rows_of_steps(order, train.per_device_train_batch_size, processes(), steps)
    return [sum(len(features[position]) for position in step) for step in consumed]


def _tokens_of_answers(run: RunDir, prepared: Prepared, steps: int) -> list[int]:
    """The same where the model draws the answers that train: with their prompts, at every update that they train."""
    drawn = np.zeros(steps + 1, np.int64)
    table = read_table(run, "completions", ["step", "prompt_tokens", "tokens"]).to_pydict()
    np.add.at(drawn, table["step"], np.add(table["prompt_tokens"], table["tokens"]))
    first = np.maximum.accumulate(np.where(drawn > 0, np.arange(steps + 1), 0))
    return drawn[first[1:]].tolist()


def write_adapters(run: RunDir, prepared: Prepared, model: Any, watch: Watch) -> None:
    """`last/` from the model as it is, then `adapter/` from the best checkpoint, whose weights the model keeps."""
    write_folder(run.last, _adapter_writer(prepared, model))
    if watch.best_step is not None:
        checkpoints.restore_adapter(run.checkpoint(watch.best_step), model)
    write_folder(run.adapter, _adapter_writer(prepared, model))


def _adapter_writer(prepared: Prepared, model: Any) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        checkpoints.write_adapter(model, folder)
        prepared.encoder.tokenizer.save_pretrained(str(folder))

    return fill


def judge(run: RunDir, trainer: RunTrainer, prepared: Prepared, watch: Watch) -> dict[str, Any]:
    """Whether the best adapter lowered the dev loss of the untouched base, with an interval; writes dev_losses.csv."""
    rows = prepared.dev.features
    targets = _by_record(rows, np.array([row.targets for row in rows], float))
    tuned = _by_record(rows, trainer.example_losses(rows).numpy())
    with trainer.model.disable_adapter():
        base = _by_record(rows, trainer.example_losses(rows).numpy())
    ids = dict.fromkeys(row.example_id for row in rows)
    losses = zip(ids, targets.tolist(), tuned.tolist(), base.tolist(), strict=True)
    write_csv(run.export("dev_losses"), ["example_id", "targets", "nats", "base_nats"], losses)
    change = mean_ratio(tuned - base, targets)
    return {
        "verdict": verdict(change, of=float(base.sum() / targets.sum())),
        "dev_loss_base": float(base.sum() / targets.sum()),
        "dev_loss": float(tuned.sum() / targets.sum()),
        "change": change.as_dict(),
        "best_step": watch.best_step,
        "note": f"{change.n} dev rows are too few to tell" if change.n < FEWEST_ROWS else None,
        **({"sources": _by_source(list(ids), targets, tuned, base)} if prepared.judged_by_source else {}),
    }


def _by_source(ids: Sequence[str], targets: np.ndarray, tuned: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    """The same of the dev rows of each source of a mixture."""
    names = np.array([source_of_row(example_id) for example_id in ids], object)
    found = {}
    for name in dict.fromkeys(names.tolist()):
        own = names == name
        total = targets[own].sum()
        change = mean_ratio((tuned - base)[own], targets[own])
        losses = {"dev_loss_base": float(base[own].sum() / total), "dev_loss": float(tuned[own].sum() / total)}
        found[name] = losses | {"change": change.as_dict()}
    return found


def _by_record(rows: Sequence[RowFeatures], values: np.ndarray) -> np.ndarray:
    """The sum of each record's values, in order of appearance: windows of one record are not independent."""
    sums: dict[str, float] = dict.fromkeys((row.example_id for row in rows), 0.0)
    for row, value in zip(rows, values, strict=True):
        sums[row.example_id] += float(value)
    return np.array(list(sums.values()))
