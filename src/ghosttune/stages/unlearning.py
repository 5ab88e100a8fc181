"""How a run begins that forgets rows of another: from that run's adapter, with what it says of the rows."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

from ghosttune.config.schema import RunConfig
from ghosttune.data.retaining import forgotten_ids
from ghosttune.errors import DataError, RunError, listed
from ghosttune.models.upstream import faults_of
from ghosttune.run.directory import RunDir, read_csv
from ghosttune.stages.prepare import Prepared
from ghosttune.stages.runs import open_run
from ghosttune.tasks.protocol import row_nats
from ghosttune.training import checkpoints
from ghosttune.training.processes import gathered
from ghosttune.training.unlearning import Unlearning, is_begun


def unlearning_of(run: RunDir, prepared: Prepared, model: Any, resumes: bool) -> Unlearning | None:
    """What is made forgotten, the model having been given the adapter to start from; None where nothing is.

    A run that `resumes` at a checkpoint has its adapter from there. RunError or DataError where the run to start from
    is not what it must be.
    """
    config, rows = prepared.config, prepared.train.features
    if config.forget.run is None:
        return None
    if not resumes:
        start_from(config, model)
    if is_begun(run):
        return Unlearning.read(run, config.forget, rows)
    names = forgotten_ids(config.forget)
    places = [place for place, row in enumerate(rows) if row.example_id in names]
    if not places:
        raise DataError(f"forget.rows {config.forget.rows}: none of the rows has anything to forget")
    with faults_of(config.model.name):
        nats = gathered(row_nats(prepared.task, model, prepared.encoder, [rows[place] for place in places]))[0]
    return Unlearning(config.forget, rows, dict(zip(places, nats, strict=True)))


def start_from(config: RunConfig, model: Any) -> None:
    """Gives the model the best adapter of `forget.run`; RunError unless that run trained it, and these rows."""
    source = open_run(str(config.forget.run), trust_remote_code=config.model.trust_remote_code)
    if source.record["status"] != "finished":
        raise RunError(f"{source.path} is not finished; continue it with `{source.folder.resume_command}`")
    theirs = source.config
    for name, own, other in (
        ("model.name", config.model.name, theirs.model.name),
        ("model.revision", config.model.revision, theirs.model.revision),
        ("method", config.method, theirs.method),
    ):
        if own != other:
            raise RunError(f"forget.run {source.path} has another {name} ({other}); rows are forgotten with its own")
    trained = {row["example_id"] for row in read_csv(source.folder.splits) if row["split"] == "train"}
    if unknown := sorted(forgotten_ids(config.forget) - trained):
        raise DataError(
            f"forget.rows {config.forget.rows} names {len(unknown)} rows that {source.path} did not train: "
            f"{listed(unknown, 5)}; its splits.csv has those that it did"
        )
    checkpoint = best_checkpoint(source.folder)
    checkpoints.verify(checkpoint)
    checkpoints.restore_adapter(checkpoint, model)


def best_checkpoint(run: RunDir) -> Any:
    """The folder of the checkpoint whose adapter a finished run is known by."""
    return run.checkpoint(run.read_record()["best_step"])


def digest_of(names: Collection[str]) -> str:
    """sha256 of the sorted ids, one in each line."""
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(names)).encode()).hexdigest()


def described(prepared: Prepared, unlearning: Unlearning) -> dict[str, Any]:
    """What run.json says of it; the settings stand in config.yaml."""
    source = RunDir(str(prepared.config.forget.run))
    forgotten = {row.example_id for row in unlearning.forgotten}
    retained = {row.example_id for row in prepared.train.features} - forgotten
    return {
        "forgets": {
            "run": str(source.path),
            "adapter": checkpoints.weights_digest(best_checkpoint(source)),
            "settings": prepared.config.forget.model_dump(),
            "forgotten": {"rows": len(forgotten), "sha256": digest_of(forgotten)},
            "retained": {"rows": len(retained), "sha256": digest_of(retained)},
            "start_loss": unlearning.start,
        }
    }
