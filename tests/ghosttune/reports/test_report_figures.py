"""Figures appear exactly where the run has their data, and show its numbers."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ghosttune.metrics.ranking import spearman
from ghosttune.registry import FIGURES
from ghosttune.reports.drawing import LIGHT, PALETTE, label, pictures_of
from ghosttune.reports.figures import picture_name
from ghosttune.reports.gradients import SMOOTHING, smoothed
from ghosttune.reports.page import figures_of
from ghosttune.reports.reading import Norms, Place, RunNumbers
from ghosttune.run.directory import RunDir, write_csv
from ghosttune.run.tables import read_table

WITHOUT = {
    "metrics.jsonl": {"training_loss", "learning_rate"},
    "tables/norms.parquet": {"gradient_norms"},
    "tables/module_steps.parquet": {"ledger_modules", "ledger_steps", "early_sensitivity"},
    "tables/values.parquet": {"value_distribution", "values_by_column", "kept_by_column"},
    "tables/selection.parquet": {"kept_by_column"},
    "tables/effective.parquet": {"early_sensitivity"},
    "evaluation.json": {"evaluation"},
    "validation/validation.json": {"validation"},
}
"""What a run lacks -> the figures that are then missing."""

USUAL = set(FIGURES.names()) - {"rewards", "dev_loss_by_set", "mixture_weights", "forgetting"}
"""Figures of runs that are not rewarded (tests/ghosttune/grpo has one that is), nor mixed (test_learnt_weights.py)."""


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def floats(rows: list[dict[str, str]], column: str) -> list[float]:
    return [float(row[column]) if row[column] else np.nan for row in rows]


def test_a_run_that_measured_everything_has_every_figure(full):
    assert set(figures_of(full)) == USUAL


def test_a_validation_is_drawn_half_by_half(full_run):
    rows = rows_of(full_run / "report" / "validation.csv")
    assert floats(rows, "predicted_drop") == pytest.approx([0.1 * k for k in range(8)])
    assert floats(rows, "measured_drop") == pytest.approx([0.1 * k + 0.01 for k in range(8)]), "the mean over seeds"


def test_a_run_that_measured_nothing_has_the_loss(bare_run):
    names = {path.stem for path in (bare_run / "report").glob("*.csv")}
    assert names == {"training_loss", "learning_rate"}
    assert json.loads((bare_run / "report" / "summary.json").read_text()).keys() == {"dev_loss", "verdict"}


@pytest.mark.parametrize("missing", WITHOUT)
def test_a_figure_without_its_data_is_not_there(full_run, tmp_path, missing):
    shutil.copytree(full_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "report"))
    gone = tmp_path / "run" / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert USUAL - set(figures_of(RunNumbers(RunDir(tmp_path / "run")))) == WITHOUT[missing]


def test_every_figure_has_its_numbers_and_a_picture_per_view(full, full_run):
    for name, figure in figures_of(full).items():
        assert rows_of(full_run / "report" / f"{name}.csv")[0].keys() == set(figure.columns)
        for view in figure.views:
            picture = (full_run / "report" / picture_name(name, figure, view)).read_bytes()
            assert picture.startswith(b"\x89PNG")
    assert not list((full_run / "report").glob(".*"))


def test_shares_kept_are_those_of_the_candidates(full_run):
    planted = {row["example_id"]: row["planted"] for row in read_table(RunDir(full_run), "values").to_pylist()}
    candidates = read_table(RunDir(full_run), "selection").to_pylist()
    found = [row for row in rows_of(full_run / "report" / "kept_by_column.csv") if row["column"] == "planted"]
    assert {row["kind"] for row in found} == {"yes", "no"}
    for row in found:
        kept = [one["kept"] for one in candidates if planted[one["example_id"]] is (row["kind"] == "yes")]
        assert float(row["share_kept"]) == pytest.approx(sum(kept) / len(kept))
        assert float(row["low"]) <= float(row["share_kept"]) <= float(row["high"])


def test_losses_are_those_of_the_events(full_run):
    events = [json.loads(line) for line in (full_run / "metrics.jsonl").read_text().splitlines()]
    expected = [(e["step"], e["loss"]) for e in events if e["event"] in ("log", "eval")]
    found = rows_of(full_run / "report" / "training_loss.csv")
    assert [(int(row["step"]), float(row["loss"])) for row in found] == expected


def test_group_norms_are_those_of_the_run(full_run):
    found = rows_of(full_run / "report" / "gradient_norms.csv")
    reference = rows_of(full_run / "gradient_analysis.group_norms.csv")
    for group in ("attention", "mlp", "total"):
        ours = floats([row for row in found if row["group"] == group], "norm")
        np.testing.assert_allclose(ours, floats(reference, f"{group}_norm"), rtol=1e-12)
    assert np.isnan(floats(reference, "attention_norm")).sum() == 4, "attention is frozen in the second phase"


@pytest.mark.parametrize(
    ("measure", "table", "column"), [("raw", "norms", "norm"), ("effective", "effective", "effective_norm")]
)
def test_the_map_holds_every_module_and_step_and_leaves_frozen_ones_empty(full_run, measure, table, column):
    squares: dict[Any, float | None] = {}
    for row in read_table(RunDir(full_run), table).to_pylist():
        role = row["module"].split(f"layers.{row['layer']}.")[1]
        key = (row["step"], row["layer"], role)
        squares[key] = None if row[column] is None else (squares.get(key) or 0.0) + row[column] ** 2
    found = [row for row in rows_of(full_run / "report" / "layer_heatmap.csv") if row["measure"] == measure]
    ours = {(int(row["step"]), int(row["layer"]), row["role"]): row["norm"] for row in found}
    assert ours.keys() == squares.keys()
    for key, square in squares.items():
        assert ours[key] == "" if square is None else float(ours[key]) == pytest.approx(square**0.5, rel=1e-12)


def test_layer_means_leave_out_the_steps_at_which_a_group_was_frozen(full_run):
    reference = rows_of(full_run / "gradient_analysis.layer_norms.csv")
    for row in rows_of(full_run / "report" / "layer_comparison.csv"):
        if row["measure"] == "raw":
            known = [float(r[f"layer_{row['layer']}_{row['group']}"] or "nan") for r in reference]
            assert float(row["mean_norm"]) == pytest.approx(np.nanmean(known), rel=1e-12)


def test_modules_and_their_account_are_those_of_the_ledger(full_run):
    modules = {row["module"]: float(row["guide_loss_drop"]) for row in rows_of(full_run / "tables" / "modules.csv")}
    found = rows_of(full_run / "report" / "ledger_modules.csv")
    assert {row["module"]: float(row["guide_loss_drop"]) for row in found} == pytest.approx(modules, rel=1e-9)
    ledger = json.loads((full_run / "run.json").read_text())["ledger"]
    account = [row for row in rows_of(full_run / "report" / "ledger_account.csv") if row["account"] == "by group"]
    terms = {row["term"]: float(row["guide_loss_drop"]) for row in account}
    assert terms["residual"] == ledger["modules_residual"]
    assert terms["attention"] + terms["mlp"] == pytest.approx(ledger["modules"])
    assert terms["attention"] + terms["mlp"] + terms["residual"] == pytest.approx(terms["measured drop"])
    last = {
        row["group"]: float(row["guide_loss_drop_so_far"]) for row in rows_of(full_run / "report" / "ledger_steps.csv")
    }
    assert last == pytest.approx({group: terms[group] for group in ("attention", "mlp")})


def test_standard_errors_of_modules_are_shown_where_the_run_has_them(full_run, tmp_path):
    run = RunDir(shutil.copytree(full_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "report")))
    modules = rows_of(run.export("modules"))
    rows = [[*row.values(), at / 1000] for at, row in enumerate(modules, 1)]
    write_csv(run.export("modules"), [*modules[0], "standard_error"], rows)
    figure = figures_of(RunNumbers(run))["ledger_modules"]
    assert figure.columns[-1] == "standard_error" and "Whiskers" in figure.caption
    assert [row[-1] for row in figure.rows] == [row[-1] for row in rows]
    (ax,) = figure.views["ranked"](True).axes
    assert len([line for line in ax.lines if np.size(line.get_xdata()) == 2]) == len(rows) + 1, "one is the zero line"


def test_values_are_those_of_the_run_and_their_means_by_kind(full_run):
    values = {row["example_id"]: row for row in rows_of(full_run / "tables" / "values.csv") if row["standing"]}
    found = rows_of(full_run / "report" / "value_distribution.csv")
    assert {row["example_id"]: float(row["standing"]) for row in found} == {
        name: float(row["standing"]) for name, row in values.items()
    }
    kinds = [row for row in rows_of(full_run / "report" / "values_by_column.csv") if row["column"] == "planted"]
    for row in kinds:
        flag = {"yes": "True", "no": "False"}[row["kind"]]
        own = [float(value["standing"]) for value in values.values() if value["planted"] == flag]
        assert int(row["rows"]) == len(own) and float(row["mean_standing"]) == pytest.approx(np.mean(own))
        assert float(row["low"]) <= float(row["mean_standing"]) <= float(row["high"])
    assert len(kinds) == 2


def test_scores_are_those_of_the_evaluation(full_run):
    scores = json.loads((full_run / "evaluation.json").read_text())["dev"]
    found = rows_of(full_run / "report" / "evaluation.csv")
    assert {(row["system"], row["metric"]) for row in found} >= {("adapter", "stopped"), ("base", "stopped")}
    for row in found:
        score = scores[row["system"]][row["metric"]]
        assert [float(row[name]) for name in ("value", "low", "high")] == [score[n] for n in ("value", "low", "high")]


def test_statistics_are_those_of_the_gradient_analysis(full, full_run):
    reference = json.loads((full_run / "gradient_analysis.summary.json").read_text())
    for group in ("attention", "mlp", "total"):
        assert full.summary["raw"]["groups"][group] == pytest.approx(reference[group])
    means = {group: reference[group]["mean"] for group in ("attention", "mlp")}
    assert full.summary["raw"]["attention_mlp_ratio"] == pytest.approx(means["attention"] / means["mlp"])


def test_more_steps_than_a_page_can_show_are_averaged_and_frozen_ones_are_not_counted():
    values = np.arange(20.0).reshape(1, 20)
    values[0, 5:10] = np.nan
    thin = Norms(np.arange(1, 21), [Place(0, "mlp", "up")], values).thinned(4)
    np.testing.assert_allclose(thin.values, [[2.0, np.nan, 12.0, 17.0]])
    assert list(thin.steps) == [5, 10, 15, 20]


@pytest.mark.parametrize("steps", range(1, 7))
def test_smoothing_is_the_mean_of_the_known_neighbours(steps):
    """Also over fewer steps than it takes together."""
    line = np.array([1.0, 2.0, np.nan, 4.0, 9.0, 2.0])[:steps]
    expected = [np.nanmean(line[max(0, at - 2) : at + 3]) if not np.isnan(line[at]) else np.nan for at in range(steps)]
    np.testing.assert_allclose(smoothed(line, SMOOTHING), np.array(expected))


def test_rank_correlation_of_a_slow_reference():
    random = np.random.default_rng(3)
    left, right = random.integers(0, 6, 20).astype(float), random.normal(size=20)

    def ranks(column: np.ndarray) -> list[float]:
        return [
            sum(other < value for other in column) + sum(other == value for other in column) / 2 for value in column
        ]

    found = spearman(left, right)
    assert found.value == pytest.approx(np.corrcoef(ranks(left), ranks(right))[0, 1])
    assert found.low < found.value < found.high
    assert spearman(right, np.exp(right)).value == pytest.approx(1)
    assert spearman(right, np.zeros(20)).value == 0


def test_a_drawing_is_the_same_twice_and_takes_its_colours_from_the_page(full):
    view = figures_of(full)["training_loss"].views["linear"]
    drawn = pictures_of(view, "salt")
    assert drawn == pictures_of(view, "salt")
    first, wide = drawn.svgs["narrow"], drawn.svgs["wide"]
    assert not [colour for colour in LIGHT.values() if colour in first + wide]
    assert "var(--blue)" in first and "var(--ink)" in first
    other = pictures_of(view, "pepper").svgs["narrow"]
    assert not set(_ids(first)) & set(_ids(other) + _ids(wide)), "two drawings in one page must not share definitions"


def _ids(svg: str) -> list[str]:
    return [part.split('"')[0] for part in svg.split(' id="')[1:]]


def test_colours_can_be_told_apart_by_their_names_and_in_both_themes():
    for theme in (0, 1):
        assert len({pair[theme] for pair in PALETTE.values()}) == len(PALETTE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("two\nlines\x00", "two lines "), ("x" * 50, "x" * 39 + "…"), ("$\\alpha$", "$\\alpha$"), (None, "None")],
)
def test_a_label_is_one_short_printable_line(text, expected):
    assert label(text) == expected
