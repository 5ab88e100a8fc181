"""Everything that a run has before its first step: rows, a model, and what schedules and measures it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from ghosttune.run.directory import RunDir
from ghosttune.stages.instruments import measurement_of
from ghosttune.stages.model import Adapted, adapted_model, initialise, phasing_of, reference_of, referring
from ghosttune.stages.ordering import Scores, by_place, keep, scores_of
from ghosttune.stages.ordering import described as order_described
from ghosttune.stages.prepare import Prepared
from ghosttune.stages.unlearning import described as unlearning_described
from ghosttune.stages.unlearning import unlearning_of
from ghosttune.training.instruments import Measurement
from ghosttune.training.phasing import Phasing
from ghosttune.training.processes import rank
from ghosttune.training.referring import Reference, is_kept
from ghosttune.training.unlearning import Unlearning, is_begun


@dataclass(frozen=True)
class Ready:
    """A run that could make its next step."""

    prepared: Prepared
    adapted: Adapted
    measured: Measurement
    phasing: Phasing | None
    unlearning: Unlearning | None
    scores: Scores | None
    """What the training rows are ordered by."""
    reference: Reference | None
    """What the untouched base says of the rows, where a loss asks."""
    described: dict[str, Any]
    """What run.json says of how the adapter began and of the order."""

    @property
    def model(self) -> Any:
        return self.adapted.model

    def keep(self, run: RunDir) -> None:
        """Writes what was known of rows before the first update, once, into the run directory."""
        if rank() > 0:
            return
        keep(run, self.scores)
        if self.unlearning is not None and not is_begun(run):
            self.unlearning.write(run)
        if self.reference is not None and not is_kept(run):
            prepared = self.prepared
            rows: Any = chain(prepared.train.features, prepared.dev.features, prepared.guide.features)
            self.reference.write(run, rows)


def ready(run: RunDir, prepared: Prepared, resumes: bool) -> Ready:
    """Loads the model and asks it what has to be known before the first step; what the run has kept is read.

    A run that `resumes` has its adapter from a checkpoint. Nothing is written. Raises what its parts raise: ConfigError
    where settings, model and rows do not fit each other, DataError or RunError where another run or file is asked.
    """
    adapted = adapted_model(prepared)
    scores = scores_of(prepared, adapted.model, run)
    prepared = replace(prepared, scores=by_place(prepared, scores))
    reference = Reference.read(run) if is_kept(run) else reference_of(prepared, adapted)
    prepared = referring(prepared, reference)
    unlearning = unlearning_of(run, prepared, adapted.model, resumes)
    described = order_described(prepared.config, scores)
    if not resumes:
        begun = initialise(prepared, adapted) if unlearning is None else unlearning_described(prepared, unlearning)
        described = begun | described
    phasing = phasing_of(prepared, adapted)
    measured = measurement_of(run, prepared, adapted, phasing)
    return Ready(prepared, adapted, measured, phasing, unlearning, scores, reference, described)
