"""A run opened to ask about its rows: its model at any of its checkpoints, and rows as the run would read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ghostgrad import Sketcher, SketchOptions
from ghostgrad.sketch import ErrorBar
from ghostgrad.store import GradientStore, StoreError
from ghosttune.config.facts import ParameterFacts
from ghosttune.config.loading import load_config
from ghosttune.config.sections.train import ADAMW
from ghosttune.data.encoding import Encoded, RowFeatures
from ghosttune.data.records import Record, Records
from ghosttune.data.sources import open_source, read_source, settings_of_file, source_files
from ghosttune.errors import DataError, RunError, listed
from ghosttune.models.loading import device_of
from ghosttune.run.directory import RunDir
from ghosttune.stages.model import adapted_model
from ghosttune.stages.prepare import prepare, require_same_data
from ghosttune.training import checkpoints
from ghosttune.training.guide import GuideRows, guide_gradient
from ghosttune.training.sketching import RowGradients, row_facts, sketcher_for

TRAIN = "train"
"""Name of the run's own training rows."""

GRADIENT = "of a row's summed nats, without dropout"


@dataclass(frozen=True)
class Rows:
    """Rows to ask about."""

    name: str
    """Under which the run keeps their gradients."""
    records: Records
    encoded: Encoded

    @property
    def features(self) -> Sequence[RowFeatures]:
        return self.encoded.features

    @cached_property
    def ids(self) -> list[str]:
        """Of the rows that have features, in their order."""
        return list(dict.fromkeys(row.example_id for row in self.features))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {record.example_id: place for place, record in enumerate(self.records)}

    def record(self, example_id: str) -> Record:
        return self.records[self._places[example_id]]

    def column(self, name: str) -> dict[str, str]:
        """The value of a column of each row, by its id; DataError for a column that no row has."""
        known = sorted({column for record in self.records for column in record.metadata})
        if name not in known:
            raise DataError(f"no row has a column {name!r}; there are {listed(known) or 'none'}")
        return {example_id: str(self.record(example_id).metadata.get(name)) for example_id in self.ids}

    @cached_property
    def digest(self) -> str:
        """sha256 of every row's id and of all that the model sees of it."""
        digest = hashlib.sha256()
        for row in self.features:
            for name, value in sorted(vars(row).items()):
                if name != "index":
                    digest.update(name.encode())
                    digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        return digest.hexdigest()


def best_step(run: RunDir) -> int | None:
    """The step whose adapter answers; None where there is no checkpoint yet."""
    have = run.checkpoint_steps()
    return (run.read_record().get("best_step") or have[-1]) if have else None


class OpenedRun:
    """Reads a run directory and holds its model; raises as training does where rows or weights are not what they were.

    Args:
        path: of the run.
        device: `auto`, `cpu` or `cuda:N`, whatever the run was trained on.
        trust_remote_code: whether code that comes with its model may run, where its configuration asks for that.
    """

    def __init__(self, path: str | Path, device: str = "auto", trust_remote_code: bool = False):
        self.run = RunDir(path).open()
        config = load_config(
            self.run.config,
            overrides=[f"model.device={device}", "model.attention=null"],
            trust_remote_code=trust_remote_code,
        )
        self.prepared = prepare(config)
        require_same_data(self.run, self.prepared.fingerprints)
        self.config, self.task = self.prepared.config, self.prepared.task
        self._verified: dict[tuple[str, int, str], GradientStore] = {}
        """Stores whose bytes need not be read once more."""

    @cached_property
    def train(self) -> Rows:
        """The rows that trained; RunError where the run has streamed them."""
        if self.prepared.stream is not None:
            raise RunError(
                f"{self.run.path} streamed its training rows and does not have them as a whole; name a file of rows "
                "with --data, such as one shard"
            )
        return Rows(TRAIN, self.prepared.train_records, self.prepared.train)

    @cached_property
    def adapted(self) -> Any:
        return adapted_model(self.prepared)

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The trained ones, by name."""
        named = dict(self.adapted.model.named_parameters())
        return {name: named[name] for name in self.adapted.facts}

    @cached_property
    def row_facts(self) -> dict[str, ParameterFacts]:
        """Of the trained parameters whose gradients of single rows are kept."""
        return row_facts(self.adapted.model, self.adapted.facts, self.config.measure.unsupported)

    def rows(self, data: str | Path | None) -> Rows:
        """The training rows, or all rows of a file, read and encoded as the run reads its own; DataError if it cannot.

        Rows of a file are named after it.
        """
        if data is None:
            return self.train
        path = Path(data).expanduser()
        files = source_files(path)
        if path.is_dir():
            raise DataError(f"{data} is a folder; give one file of it: {listed(file.name for file in files.values())}")
        train = self.config.data.train
        settings, formats = settings_of_file(path, train), self.task.formats
        source = open_source(settings, formats) if settings.name else read_source(files, settings, formats)
        records = source.records
        if not records:
            raise DataError(f"{data} holds no rows")
        name = path.name.split(".")[0]
        if name == TRAIN:
            name = f"{path.parent.name}-{name}"
        return Rows(name, records, self.encode(records))

    def encode(self, records: Sequence[Record], truncated_share: float | None = None) -> Encoded:
        """As the run's own rows are; of how many rows context may be cut where that is not as in the run."""
        share = self.config.data.truncated_share if truncated_share is None else truncated_share
        return self.prepared.encoder.encode(records, share)

    def steps(self, names: Sequence[str]) -> list[int]:
        """The steps of checkpoints called `best`, `last`, `all` or by their number; RunError for others."""
        have = self.run.checkpoint_steps()
        if not have:
            raise RunError(f"{self.run.path} has no checkpoint yet; continue it with `{self.run.resume_command}`")
        known = {"best": [best_step(self.run)], "last": have[-1:], "all": have}
        known |= {str(step): [step] for step in have}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise RunError(
                f"{self.run.path} has no checkpoint {listed(unknown)}; it has {listed(known)}. More are kept with "
                "train.save_total_limit"
            )
        return sorted({step for name in names for step in known[name]})

    def at(self, step: int) -> Any:
        """The model with the adapter of a checkpoint; RunError when it is damaged."""
        folder = self.run.checkpoint(step)
        checkpoints.verify(folder)
        checkpoints.restore_adapter(folder, self.adapted.model)
        return self.adapted.model

    def gradients(self, step: int, sketcher: Sketcher, batch_size: int | None = None) -> RowGradients:
        """Gradients of rows at a checkpoint, under a sketch."""
        size = batch_size or self.config.train.per_device_train_batch_size
        unsupported = self.config.measure.unsupported
        return RowGradients(self.at(step), self.task, self.prepared.collator, sketcher, size, unsupported)

    def guide(self, rows: Sequence[RowFeatures], batch_size: int | None = None) -> GuideRows:
        """Rows whose loss in nats per target is asked about."""
        size, model = batch_size or self.config.train.per_device_train_batch_size, self.adapted.model
        return GuideRows(self.task, self.prepared.collator, rows, size, next(model.parameters()).device)

    def direction(self, rows: Sequence[RowFeatures], names: Iterable[str]) -> dict[str, Tensor]:
        """The gradient of their loss by these parameters, at the weights the model has now."""
        named = {name: self.parameters[name] for name in names}
        return guide_gradient(self.adapted.model, self.guide(rows), named)[1]

    def require_second_moments(self) -> None:
        """RunError where the run's optimizer kept none that torch's AdamW would."""
        if (optim := self.config.train.optim) not in ADAMW:
            raise RunError(f"{self.run.path} trained with train.optim: {optim}, which keeps no second moments of AdamW")

    def second_moments(self, step: int) -> dict[str, Any]:
        """AdamW's v̂ at a checkpoint, by parameter; RunError for a run of another optimizer."""
        self.require_second_moments()
        return checkpoints.second_moments(
            self.run.checkpoint(step), self.config.train.adam_beta2, device_of(self.config.model)
        )

    def learning_rate(self, step: int) -> float:
        """What the run recorded at this step, between the events around it."""
        events = [event for event in self.run.events() if "learning_rate" in event]
        if not events:
            raise RunError(f"{self.run.metrics} has no learning rate; lower train.logging_steps")
        return float(np.interp(step, [e["step"] for e in events], [e["learning_rate"] for e in events]))

    def meaning(self, rows: Rows, step: int) -> dict[str, Any]:
        """What the stored gradients of these rows are of; the sketch says how they are kept."""
        return {
            "checkpoint": {"step": step, "weights": checkpoints.weights_digest(self.run.checkpoint(step))},
            "model": {"name": self.config.model.name, "dtype": self.config.model.dtype},
            "rows": {"count": len(rows.ids), "sha256": rows.digest},
            "gradient": GRADIENT,
        }

    def store(self, rows: Rows, step: int) -> GradientStore:
        """The complete, undamaged store of the rows at a checkpoint; RunError says what is not as it should be."""
        key = rows.name, step, rows.digest
        if key not in self._verified:
            self._verified[key] = self._verified_store(rows, step)
        return self._verified[key]

    def _verified_store(self, rows: Rows, step: int) -> GradientStore:
        folder = self.run.store(rows.name, step)
        again = f"`ghosttune index {self.run.path}{'' if rows.name == TRAIN else ' --data FILE'} --checkpoint {step}`"
        if not folder.exists():
            raise RunError(
                f"{self.run.path} has no gradients of its {rows.name} rows at step {step}; make them: {again}"
            )
        try:
            store = GradientStore.read_sealed(folder)
            store.require(self.meaning(rows, step))
            if set(store.ids) != set(rows.ids):
                raise StoreError(f"{folder} does not hold the {len(rows.ids):,} {rows.name} rows")
        except StoreError as error:
            raise RunError(f"{error}. Complete it with {again}; delete the folder first where it is damaged") from error
        return store

    def sketcher(self, store: GradientStore) -> Sketcher:
        """The projections a store was made with; RunError where they come out otherwise here."""
        written = store.manifest["meaning"].get("sketch")
        stored: Any = written.get("options") if isinstance(written, dict) else None
        try:
            options = SketchOptions.from_json(stored)
            sketcher = sketcher_for(self.row_facts, self.parameters, options)
            store.require({"sketch": sketcher.manifest()})
        except StoreError as error:
            raise RunError(str(error)) from error
        except ValueError as error:
            raise RunError(
                f"{store.folder}/manifest.json is damaged: {error}; delete the folder and index again"
            ) from None
        if (store.size, store.dtype) != (sketcher.size, options.dtype):
            raise RunError(
                f"{store.folder} is damaged: its rows are not those of its sketch; delete the folder and index again"
            )
        return sketcher


def sketch_error(store: GradientStore) -> dict[str, float] | None:
    """How far sketches are from whole gradients (`ghostgrad.sketch.ErrorBar`), as the seal says; None for whole ones.

    RunError where it says something else.
    """
    error = store.notes.get("error", "nothing")
    if error is not None and not (
        isinstance(error, dict)
        and error.keys() == {field.name for field in fields(ErrorBar)}
        and all(isinstance(value, int | float) for value in error.values())
    ):
        raise RunError(f"{store.folder}/seal.json is damaged: error is {error!r}; delete the folder and index again")
    return error
