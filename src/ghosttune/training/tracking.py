"""Trackers: Transformers' integrations, which also hear of dev losses, norms, the ledger, answers, values and report.

Numbers go through an integration's `on_log`, so that each tracker names and counts them as those of any Trainer. What
is no number goes through `TRACKERS`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from ghosttune.errors import InputError
from ghosttune.training.instruments import Measurement, instrument_of
from ghosttune.training.ledger import Ledger
from ghosttune.training.norms import Norms

SAMPLES, VALUES, REPORT = "samples", "values", "report"
"""What trackers call answers, values of rows and the page of the run."""

COLUMNS = ["step", "example_id", "prompt", "output"]

BINS = 64


@dataclass(frozen=True)
class Tracker:
    """How a kind of tracker takes what is no number; each function is given its integration first."""

    integration: Callable[[], Any]
    """Makes Transformers' callback."""
    answers: Callable[[Any, int, list[list[Any]]], None]
    """Rows of COLUMNS."""
    histogram: Callable[[Any, int, np.ndarray], None]
    """The values of rows."""
    file: Callable[[Any, Path], None]
    """The report, one page of HTML."""
    end: Callable[[Any], None] = lambda integration: None
    """Ends what the integration leaves open, so that another run of the process does not go on with it."""


def _tensorboard_answers(board: Any, step: int, rows: list[list[Any]]) -> None:
    for _, example_id, prompt, output in rows:
        board.tb_writer.add_text(f"{SAMPLES}/{example_id}", f"{_indented(prompt)}\n\n---\n\n{_indented(output)}", step)


def _indented(text: str) -> str:
    """Text that Markdown, which TensorBoard takes it for, shows as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _wandb_answers(wandb: Any, step: int, rows: list[list[Any]]) -> None:
    table = wandb._wandb.Table(columns=COLUMNS, data=rows)
    wandb._wandb.log({SAMPLES: table, "train/global_step": step})


def _wandb_file(wandb: Any, path: Path) -> None:
    artifact = wandb._wandb.Artifact(REPORT, type=REPORT)
    artifact.add_file(str(path))
    wandb._wandb.run.log_artifact(artifact)


def _trackio_answers(trackio: Any, step: int, rows: list[list[Any]]) -> None:
    trackio._trackio.log({SAMPLES: trackio._trackio.Table(columns=COLUMNS, data=rows), "train/global_step": step})


def _trackio_histogram(trackio: Any, step: int, values: np.ndarray) -> None:
    trackio._trackio.log({VALUES: trackio._trackio.Histogram(values, num_bins=BINS), "train/global_step": step})


def _mlflow_answers(mlflow: Any, step: int, rows: list[list[Any]]) -> None:
    columns = {name: list(cells) for name, cells in zip(COLUMNS, zip(*rows, strict=True), strict=True)}
    mlflow._ml_flow.log_table(columns, f"{SAMPLES}.json")


def _swanlab() -> Any:
    """With a run: asked for the one that goes on, newer versions raise where Transformers expects None."""
    import swanlab  # type: ignore[reportMissingImports]

    if not swanlab.has_run():
        swanlab.init(mode=os.environ.get("SWANLAB_MODE"), project=os.environ.get("SWANLAB_PROJECT"))
    return integration_utils.SwanLabCallback()


def _swanlab_answers(swanlab: Any, step: int, rows: list[list[Any]]) -> None:
    texts = [swanlab._swanlab.Text(output, caption=f"{name}: {prompt}"[:CAPTION]) for _, name, prompt, output in rows]
    swanlab._swanlab.log({SAMPLES: texts}, step=step)


CAPTION = 200
"""Characters that stand above an answer in SwanLab."""


def _swanlab_histogram(swanlab: Any, step: int, values: np.ndarray) -> None:
    counts, edges = np.histogram(values, BINS)
    bar = swanlab._swanlab.echarts.Bar()
    bar.add_xaxis([f"{edge:.3g}" for edge in edges[:-1]])
    bar.add_yaxis(VALUES, counts.tolist())
    swanlab._swanlab.log({VALUES: bar}, step=step)


def _comet_answers(comet: Any, step: int, rows: list[list[Any]]) -> None:
    for _, name, prompt, output in rows:
        comet._experiment.log_text(output, step=step, metadata={"example_id": name, "prompt": prompt})


def _counted(values: np.ndarray) -> dict[str, list[float]]:
    counts, edges = np.histogram(values, BINS)
    return {"counts": counts.tolist(), "edges": edges.tolist()}


TRACKERS = {
    "tensorboard": Tracker(
        integration_utils.TensorBoardCallback,
        _tensorboard_answers,
        lambda board, step, values: board.tb_writer.add_histogram(VALUES, values, step),
        lambda board, path: board.tb_writer.add_text(REPORT, str(path)),  # a board holds no files
    ),
    "wandb": Tracker(
        integration_utils.WandbCallback,
        _wandb_answers,
        lambda wandb, step, values: wandb._wandb.log(
            {VALUES: wandb._wandb.Histogram(values.tolist(), num_bins=BINS), "train/global_step": step}
        ),
        _wandb_file,
        lambda wandb: wandb._wandb.finish(),
    ),
    "trackio": Tracker(
        integration_utils.TrackioCallback,
        _trackio_answers,
        _trackio_histogram,
        lambda trackio, path: trackio._trackio.log_artifact(path, name=REPORT, type=REPORT),
    ),
    "mlflow": Tracker(
        integration_utils.MLflowCallback,
        _mlflow_answers,
        lambda mlflow, step, values: mlflow._ml_flow.log_dict(_counted(values), f"{VALUES}.json"),
        lambda mlflow, path: mlflow._ml_flow.log_artifact(str(path), REPORT),
    ),
    "swanlab": Tracker(
        _swanlab,
        _swanlab_answers,
        _swanlab_histogram,
        lambda swanlab, path: swanlab._swanlab.log({REPORT: swanlab._swanlab.Html(path.read_text(encoding="utf-8"))}),
        lambda swanlab: swanlab._swanlab.finish(),
    ),
    "comet_ml": Tracker(
        integration_utils.CometCallback,
        _comet_answers,
        lambda comet, step, values: comet._experiment.log_histogram_3d(values, VALUES, step),
        lambda comet, path: comet._experiment.log_asset(str(path), f"{REPORT}.html"),
        lambda comet: comet._experiment.end(),
    ),
}
"""Name in `run.trackers`, which is that of Transformers' `report_to` and of the package -> the tracker."""


class Trackers(TrainerCallback):
    """The trackers of a run, from its first step to its report; a failure of one is said and ends that one alone."""

    def __init__(self, names: Sequence[str], measured: Measurement, listen: Callable[[dict[str, Any]], None]):
        self.kinds = {name: TRACKERS[name] for name in names}
        self.open: dict[str, Any] = {}
        """Those that still listen, as their integrations."""
        self.failed: dict[str, str] = {}
        """Those that do not any more -> where they stopped, and by what kind of error."""
        self.measured, self.listen = measured, listen

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """InputError for a tracker that cannot be started."""
        self.place = (args, state, control)
        for name, tracker in self.kinds.items():
            try:
                integration = tracker.integration()
                integration.on_train_begin(args, state, control, **given)
            except Exception as error:
                raise InputError(
                    f"run.trackers: {name} cannot be started ({_first_line(error)}). Its own environment variables say "
                    "where it writes: see docs/tracking.md. Or take it off the list"
                ) from error
            self.open[name] = integration

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        self.numbers({**(logs or {}), **self._measured()})

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float] | None = None, **_: Any
    ) -> None:
        self.numbers(metrics or {})

    def numbers(self, found: Mapping[str, Any]) -> None:
        """Tells numbers of the step that the run is at; what is not finite is left out."""
        finite = {
            name: value for name, value in found.items() if isinstance(value, (int, float)) and math.isfinite(value)
        }
        args, state, control = self.place
        self._tell(lambda tracker, integration: integration.on_log(args, state, control, logs=dict(finite)))

    def _measured(self) -> dict[str, float]:
        """The newest norms, and the ledger's totals so far."""
        norms, ledger = instrument_of(self.measured, Norms), instrument_of(self.measured, Ledger)
        found = {} if norms is None else {f"norm/{group}": value for group, value in norms.latest.items()}
        return found if ledger is None else found | {f"ledger/{name}": value for name, value in ledger.totals.items()}

    def answers(self, step: int, asked: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> None:
        """Tells what the model answers to the sampled prompts by now."""
        both = zip(asked, answers, strict=True)
        rows = [[step, one["example_id"], one["prompt"], str(said["output"])] for one, said in both]
        self._tell(lambda tracker, integration: tracker.answers(integration, step, rows))

    def finished(self, numbers: Mapping[str, float], values: np.ndarray, report: Path) -> None:
        """Tells what a run has when it is over."""
        self.numbers(numbers)
        step = self.place[1].global_step
        if len(values):
            self._tell(lambda tracker, integration: tracker.histogram(integration, step, values))
        self._tell(lambda tracker, integration: tracker.file(integration, report))

    def close(self) -> None:
        """Ends all that are open: they hear of a run's end late, after its report, or when it fails."""
        self._tell(lambda tracker, integration: integration.on_train_end(*self.place))
        self._tell(lambda tracker, integration: tracker.end(integration))
        self.open = {}

    def _tell(self, ask: Callable[[Tracker, Any], None]) -> None:
        if not self.open or not self.place[1].is_world_process_zero:
            return
        for name, integration in list(self.open.items()):
            try:
                ask(self.kinds[name], integration)
            except Exception as error:
                del self.open[name]
                self.failed[name] = f"{type(error).__name__} at step {self.place[1].global_step}"
                text = f"{name} is told nothing more: it failed with {type(error).__name__}: {_first_line(error)}"
                self.listen({"event": "notice", "text": text})


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
