"""The public plot functions: from a run and from its CSV files alone, with the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ghosttune.errors import InputError, RunError
from ghosttune.reports import plots


def lines(drawing: Any) -> list[np.ndarray]:
    return [np.array(line.get_ydata(), float) for ax in drawing.axes for line in ax.lines]


def bars(drawing: Any) -> list[float]:
    return [patch.get_height() for ax in drawing.axes for patch in ax.patches]


def test_loss_from_a_run_and_from_its_csv(full_run):
    ours, theirs = (plots.plot_training_loss(s) for s in (full_run, full_run / "report" / "training_loss.csv"))
    drawn = [line for line in lines(ours) if len(line) > 2]
    assert [list(line) for line in drawn] == [list(line) for line in lines(theirs) if len(line) > 2]
    assert any(text.get_text().startswith("best dev") for text in ours.axes[0].texts)
    assert {text.get_text() for text in ours.axes[0].texts} >= {"both", "mlp", "attention"}, "phases carry their names"


def test_group_norms_from_a_run_and_from_its_csv(full_run):
    ours, theirs = (plots.plot_gradient_norms(s) for s in (full_run, full_run / "gradient_analysis.group_norms.csv"))
    wanted = [line for line in lines(ours) if len(line) == 12]
    found = [line for line in lines(theirs) if len(line) == 12 and not np.isnan(line).all()]
    assert len(wanted) == 6, "attention, mlp and total, each as measured and smoothed"
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(one, other)


def test_layers_from_a_run_and_from_its_csv(full_run):
    source = full_run / "gradient_analysis.layer_norms.csv"
    ours, theirs = plots.plot_layer_comparison(full_run, view="raw"), plots.plot_layer_comparison(source)
    np.testing.assert_allclose(bars(ours), bars(theirs))
    stacked = bars(plots.plot_layer_comparison(source, view="raw stacked"))
    np.testing.assert_allclose(stacked, np.square(bars(theirs)))


def test_evolution_and_map_from_a_csv_alone(full_run):
    source = full_run / "gradient_analysis.layer_norms.csv"
    ours, theirs = plots.plot_gradient_evolution(full_run, view="raw"), plots.plot_gradient_evolution(source)
    for one, other in zip(lines(ours), lines(theirs), strict=True):
        np.testing.assert_allclose(one, other)
    assert [ax.get_title(loc="left") for ax in plots.plot_layer_heatmap(source).axes][:2] == ["attention", "mlp"]


def test_a_plot_is_written_where_asked(full_run, tmp_path):
    plots.plot_layer_heatmap(full_run, tmp_path / "map.png", view="raw by group")
    plots.plot_training_loss(full_run, tmp_path / "loss.svg")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (tmp_path / "loss.svg").read_text()


def test_a_summary_of_several_runs(full_run, bare_run, tmp_path):
    found = plots.summary_report([full_run, bare_run], tmp_path / "experiment_summary.json")
    assert json.loads((tmp_path / "experiment_summary.json").read_text()) == found
    assert "raw" in found[str(full_run)] and "raw" not in found[str(bare_run)]


@pytest.mark.parametrize(
    ("content", "saying"),
    [
        ("", "holds no norms"),
        ("step,layer_0_attention\n", "holds no norms"),
        ("step,loss\n1,2\n", "holds no norms"),
        ("step,layer_x_mlp\n1,2\n", "holds no norms"),
        ("step,layer_0_mlp\n1,many\n", "is damaged"),
        ("step,layer_0_mlp\n1,2\n2\n", "is damaged"),
    ],
)
def test_a_file_without_norms_is_refused(tmp_path, content, saying):
    path = tmp_path / "norms.csv"
    path.write_text(content)
    with pytest.raises(RunError, match=saying):
        plots.plot_layer_heatmap(path)


def test_what_cannot_be_drawn_is_refused(bare_run, full_run, tmp_path):
    for plot in (plots.plot_gradient_norms, plots.plot_layer_heatmap, plots.plot_gradient_evolution):
        with pytest.raises(RunError, match="does not hold what this figure shows"):
            plot(bare_run)
    with pytest.raises(RunError, match="does not exist"):
        plots.plot_training_loss(tmp_path / "nothing")
    with pytest.raises(RunError, match="holds no loss"):
        plots.plot_training_loss(full_run / "gradient_analysis.group_norms.csv")
    with pytest.raises(InputError, match='view "rainbow" is not one of effective, raw'):
        plots.plot_layer_heatmap(full_run, view="rainbow")


def test_zeros_single_layers_and_single_steps_can_be_drawn(tmp_path):
    path = Path(tmp_path / "norms.csv")
    for content in ("step,layer_0_mlp\n1,0\n", "step,layer_0_mlp,layer_1_mlp\n1,0.5,\n", "step,layer_0_mlp\n3,\n"):
        path.write_text(content)
        plots.plot_layer_heatmap(path, tmp_path / "map.png")
