"""The figures of the report as functions, for scripts and notebooks: from a run directory, or from a CSV file alone.

Each returns a matplotlib figure, and writes it to `path` (PNG, SVG or PDF, by its suffix) where one is given. A CSV
holds no phases, so that none are marked then.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ghosttune.errors import InputError, RunError, listed
from ghosttune.reports import gradients
from ghosttune.reports.drawing import Span, styled
from ghosttune.reports.figures import Figure
from ghosttune.reports.heatmaps import heatmap_figure
from ghosttune.reports.projections import lines_of, projection_figure
from ghosttune.reports.reading import Norms, RunNumbers, norms_of_csv
from ghosttune.reports.summary import Summary
from ghosttune.reports.training import Loss, loss_figure
from ghosttune.run.directory import RunDir, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Source = str | Path
"""A run directory, or a CSV file."""


def plot_training_loss(source: Source, path: Source | None = None, *, view: str | None = None) -> Drawing:
    """Train and dev loss, the best dev loss marked.

    `source`: a run, or a CSV with step, split and loss, such as its report/training_loss.csv. `view`: linear or
    logarithmic. Raises RunError where there are no losses.
    """
    numbers = _run(source)
    losses, spans = (_losses(Path(source)), []) if numbers is None else (numbers.losses, numbers.spans)
    return _drawn(loss_figure(losses, spans) if losses else None, source, view, path)


def plot_gradient_norms(
    source: Source, path: Source | None = None, *, view: str | None = None, smoothing: int = gradients.SMOOTHING
) -> Drawing:
    """Raw norm of each group over the run, as measured and as a moving mean over `smoothing` measured steps.

    `source`: a run, or gradient_analysis.group_norms.csv. `view`: logarithmic or linear. Raises RunError without norms.
    """
    norms, spans = _norms(source)
    figure = None if norms is None else gradients.group_figure(norms.steps, gradients.lines_of(norms), spans, smoothing)
    return _drawn(figure, source, view, path)


def plot_layer_heatmap(source: Source, path: Source | None = None, *, view: str | None = None) -> Drawing:
    """Norms by layer and step, a map for each role, or group.

    `source`: a run, or gradient_analysis.layer_norms.csv. `view`: effective, raw, effective by group, raw by group.
    Raises RunError without norms of layers.
    """
    spans = _norms(source)[1]
    return _drawn(heatmap_figure(_measured(source), spans), source, view, path)


def plot_layer_comparison(source: Source, path: Source | None = None, *, view: str | None = None) -> Drawing:
    """Mean norm of each layer by group.

    `source`: a run, or gradient_analysis.layer_norms.csv. `view`: effective or raw, alone or with ` logarithmic` or
    ` stacked` (squares, which add up). Raises RunError without norms of layers.
    """
    return _drawn(gradients.layers_figure(_measured(source)), source, view, path)


def plot_gradient_evolution(source: Source, path: Source | None = None, *, view: str | None = None) -> Drawing:
    """Norms over the layers at seven steps, from the first measured to the last.

    `source`: a run, or gradient_analysis.layer_norms.csv. `view`: effective or raw. Raises RunError without norms of
    more than one layer.
    """
    return _drawn(gradients.evolution_figure(_measured(source)), source, view, path)


def plot_projection_error(source: Source, path: Source | None = None, *, view: str | None = None) -> Drawing:
    """Error of sketched inner products and cosines by the numbers kept, with what theory predicts.

    `source`: the JSON that benchmarks/projection_error.py writes. `view`: relative, rmse or cosine. Raises RunError
    where it holds no errors.
    """
    return _drawn(projection_figure(lines_of(Path(source))), source, view, path)


def summary_report(runs: Sequence[Source], path: Source | None = None) -> dict[str, Summary]:
    """Run -> its statistics (see `summary_of`), written to `path` as JSON where one is given.

    The runs stand beside each other and are not compared: they may differ in budget, data and seed.
    """
    summaries = {str(run): RunNumbers(RunDir(run).open()).summary for run in runs}
    if path is not None:
        write_json(Path(path), summaries)
    return summaries


def _run(source: Source) -> RunNumbers | None:
    """The numbers of a run directory; None for a file; RunError when there is neither."""
    if Path(source).is_dir():
        return RunNumbers(RunDir(source).open())
    if not Path(source).is_file():
        raise RunError(f"{source} does not exist; give a run directory or a CSV file")
    return None


def _norms(source: Source) -> tuple[Norms | None, list[Span]]:
    """(raw norms, phases)."""
    numbers = _run(source)
    return (norms_of_csv(Path(source)), []) if numbers is None else (numbers.norms, numbers.spans)


def _measured(source: Source) -> gradients.Measured:
    numbers = _run(source)
    return {"raw": norms_of_csv(Path(source))} if numbers is None else gradients.measured(numbers)


def _losses(path: Path) -> list[Loss]:
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        try:
            return [(int(row["step"]), row["split"], float(row["loss"])) for row in reader]
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{path}:{reader.line_num} holds no loss: expected step, split and loss ({error})"
            ) from error


def _drawn(figure: Figure | None, source: Source, view: str | None, path: Source | None) -> Drawing:
    if figure is None:
        raise RunError(f"{source} does not hold what this figure shows")
    if view is not None and view not in figure.views:
        raise InputError(f"view {json.dumps(view)} is not one of {listed(figure.views)}")
    with styled():
        drawing = figure.views[view or next(iter(figure.views))](False)
        if path is not None:
            drawing.savefig(path)
    return drawing
