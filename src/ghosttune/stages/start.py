"""What is written of a run before its first step, and whether a run that goes on is still the same."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ghosttune.config import templating
from ghosttune.config.rendering import plain_yaml
from ghosttune.config.schema import RunConfig
from ghosttune.data.encoding import Encoded
from ghosttune.data.records import Records
from ghosttune.errors import RunError
from ghosttune.models.loading import revision_of
from ghosttune.models.quantizing import weight_bytes
from ghosttune.run.directory import RunDir, write_csv, write_text
from ghosttune.run.recording import Record
from ghosttune.stages.model import Adapted
from ghosttune.stages.prepare import Prepared
from ghosttune.training.engines import found_wrong, without_rule


def begin(run: RunDir, prepared: Prepared, adapted: Adapted) -> Record:
    """The run directory with the configuration, the rows by split, and run.json."""
    run.create()
    write_text(run.config, plain_yaml(prepared.config))
    known = records_of(prepared)
    write_splits(run, known)
    _write_contamination(run, prepared)
    splits = {name: split for name, split in _encoded(prepared).items() if name in known}
    unsaid = {name: split.without_reasoning for name, split in splits.items()}
    template = prepared.config.model.chat_template
    return Record.begin(
        run,
        seed=prepared.config.train.seed,
        model={
            "name": prepared.config.model.name,
            "revision": revision_of(adapted.model),
            **({} if template is None else {"chat_template": templating.digest(template)}),
            "trainable_parameters": adapted.counts,
            "weight_bytes": weight_bytes(adapted.model),
        },
        data={
            "fingerprints": prepared.fingerprints,
            "rows": _rows_read(prepared) | {name: len(records) for name, records in known.items()},
            "tokens": {name: split.tokens for name, split in splits.items()},
            "targets": {name: split.targets for name, split in splits.items()},
            "cut_rows": {name: split.cut_rows for name, split in splits.items()},
            **({"left_out_of_each_epoch": left_out} if (left_out := prepared.left_out_of_an_epoch) else {}),
            **({"without_reasoning": unsaid} if any(unsaid.values()) else {}),
            **({"sources": prepared.sources} if prepared.sources else {}),
            **({"dev_sets": prepared.dev_sets} if prepared.dev_sets else {}),
            **({"patch": dict(prepared.patched)} if prepared.patched else {}),
        },
        left_out=prepared.left_out,
        contamination=_contamination(prepared),
        **without_rule_of(prepared.config, adapted.model, ()),
        configuration=_digest(prepared.config),
        origins=prepared.config.origins,
    )


def without_rule_of(config: RunConfig, model: Any, engines: Sequence[Any]) -> dict[str, Any]:
    """Which trained parameters have no rule that is right, and how rows are measured there; nothing if there are none.

    `engines` have seen their first pass.
    """
    none, wrong = without_rule(model), found_wrong(engines)
    return {"without_rule": none.recorded(config.measure.unsupported, wrong)} if none.names or wrong else {}


def require_same_configuration(run: RunDir, config: RunConfig) -> None:
    """RunError when the configuration of a run is not the one it was started with, nor its template's file."""
    record = run.read_record()
    if file := templating.changed_file(config, record.get("origins", {})):
        raise RunError(
            f"{file} changed since {run.path} was started, which keeps the template that it began with; restore the "
            "file or move it away to go on with that one, or start a new run"
        )
    if record.get("configuration") != _digest(config):
        raise RunError(
            f"{run.config} was edited since the run was started, and would continue as neither the old run nor a new "
            f"one; restore it, or start the new one: `ghosttune train {shlex.quote(str(run.config))} --out OTHER`"
        )


def _digest(config: RunConfig) -> str:
    return hashlib.sha256(plain_yaml(config).encode()).hexdigest()


def write_splits(run: RunDir, splits: Mapping[str, Sequence[Any]]) -> None:
    write_csv(
        run.splits,
        ["example_id", "split"],
        ([record.example_id, split] for split, records in splits.items() for record in records),
    )


def _contamination(prepared: Prepared) -> dict[str, Any]:
    """Which rows that judge were trained on, as run.json has it; not known of rows that are yet to come."""
    if prepared.stream is not None:
        return {"splits": {}, "named": [], "not_checked": "training rows are streamed"}
    return prepared.contamination.recorded()


def _write_contamination(run: RunDir, prepared: Prepared) -> None:
    """tables/contamination.csv: every row that judges and was trained on; no file where none was."""
    if prepared.stream is None and (overlaps := prepared.contamination.overlaps):
        rows = [list(asdict(overlap).values()) for overlap in overlaps]
        write_csv(run.export("contamination"), [*asdict(overlaps[0])], rows)


def records_of(prepared: Prepared) -> dict[str, Records]:
    """The rows that are known before the first step, by split; of a stream, those that train are not."""
    judges = {"dev": prepared.dev_records, "guide": prepared.guide_records}
    return judges if prepared.stream is not None else {"train": prepared.train_records} | judges


def _encoded(prepared: Prepared) -> dict[str, Encoded]:
    return {"train": prepared.train, "dev": prepared.dev, "guide": prepared.guide}


def _rows_read(prepared: Prepared) -> dict[str, int]:
    """Of a stream: how many rows the steps of the run read."""
    return {} if prepared.stream is None else {"train": len(prepared.stream)}
