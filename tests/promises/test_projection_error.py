"""The study of projections measures what it says: errors as theory has them, nothing where nothing is lost."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ghosttune import train
from ghosttune.choosing.opened import OpenedRun
from ghosttune.errors import InputError, RunError
from ghosttune.proving.specimens import short_run, write_model, write_rows
from ghosttune.reports.plots import plot_projection_error

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("projection_error", REPOSITORY / "benchmarks" / "projection_error.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def low_rank(rows: int, shape: tuple[int, int], rank: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(rows, size, rank, generator=draw) for size in shape)
    return left @ right.mT + left.mean(0) @ right.mean(0).mT


def test_one_side_falls_as_one_over_the_root_of_its_numbers(script):
    gradients = {"vector": torch.randn(10, 1, 2000, generator=torch.Generator().manual_seed(1))}
    options = replace(script.OPTIONS, side=1)
    exact = script.exact_products(gradients)
    norms, above = exact.diagonal(), torch.triu(torch.ones_like(exact, dtype=torch.bool), 1)
    for size in (16, 64, 256, 1024):
        numbers, found = script.estimates(gradients, replace(options, size=size), range(12))
        expected = ((norms.unsqueeze(0) * norms.unsqueeze(1) + exact.square()) / size)[above].mean().sqrt()
        assert numbers == size
        assert script.errors(exact, found)["rmse"] == pytest.approx(float(expected), rel=0.12)


@pytest.mark.parametrize(("shape", "rank"), [((40, 24), 1), ((24, 40), 3), ((12, 400), 12)])
def test_the_prediction_is_the_error_of_many_draws(script, shape, rank):
    """Both sides are projected, so that the error of gradients of low rank falls slower."""
    gradients = {"a": low_rank(8, shape, rank), "b": low_rank(8, (1, 50), 1)}
    exact = script.exact_products(gradients)
    for size in (16, 144):
        options = replace(script.OPTIONS, size=size, side=script.SIDE)
        found = script.estimates(gradients, options, range(300))[1]
        assert script.errors(exact, found)["rmse"] == pytest.approx(script.predicted(gradients, options), rel=0.1)


@pytest.mark.parametrize("kind", ["gaussian", "rademacher", "orthonormal"])
def test_no_kind_is_biased_and_the_full_size_is_exact(script, kind):
    gradients = {"a": low_rank(6, (16, 20), 2)}
    exact = script.exact_products(gradients)
    options = replace(script.OPTIONS, kind=kind, side=4, size=64)
    found = script.estimates(gradients, options, range(400))[1]
    assert script.errors(exact, found)["bias"] == pytest.approx(0, abs=0.06)
    whole = script.estimates(gradients, replace(options, size=320), range(2))[1]
    assert script.errors(exact, whole)["rmse"] < 1e-4 * float(exact.diagonal().mean())
    assert script.predicted(gradients, replace(options, size=320)) == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("projections")
    changes = {"train__max_steps": 2, "train__warmup_steps": 0, "evaluate__limit": 0}
    return train(
        short_run(write_model(folder / "m"), write_rows(folder / "rows.jsonl"), **changes), folder / "run"
    ).path


def test_whole_gradients_are_those_of_one_backward_per_row(script, run):
    found = script.whole_gradients(run, "last", 5, seed=0)
    opened = OpenedRun(run, "cpu")
    model = opened.at(opened.steps(["last"])[0]).eval()
    drawn = set(script.drawn(opened.train.ids, 5, 0))
    rows = sorted((row for row in opened.train.features if row.example_id in drawn), key=len)
    assert len(rows) == 5
    for place, row in enumerate(rows):
        loss = opened.task.example_loss(model, opened.prepared.collator([row])).sum()
        expected = torch.autograd.grad(loss, list(opened.parameters.values()))
        for name, gradient in zip(opened.parameters, expected, strict=True):
            torch.testing.assert_close(found[name][place], gradient.view(found[name].shape[1:]), rtol=1e-4, atol=1e-6)


def test_from_a_run_to_its_figures(script, run, tmp_path, monkeypatch):
    """With sizes of one's own: none is built in."""
    out = tmp_path / "out" / "errors.json"
    arguments = [str(run), "--out", str(out), "--rows", "4", "--seeds", "2", "--sizes", "20", "48"]
    monkeypatch.setattr("sys.argv", ["projection_error.py", *arguments])
    script.main()
    lines = json.loads(out.read_text())
    assert len(lines) == 2 * 3 * 2 and {line["size"] for line in lines} == {20, 48}
    assert len(list(out.parent.glob("*.pdf"))) == 3
    drawing = plot_projection_error(out, view="rmse")
    drawn = [list(line.get_ydata()) for line in drawing.axes[0].lines if line.get_marker() == "o"]
    wanted = [
        [
            line["rmse"]
            for line in sorted(lines, key=lambda line: line["numbers"])
            if (line["kind"], line["split"]) == of
        ]
        for of in dict.fromkeys((line["kind"], line["split"]) for line in lines)
    ]
    assert sorted(drawn) == sorted(wanted)


def test_what_cannot_be_drawn_is_refused(tmp_path):
    path = tmp_path / "errors.json"
    for text in ("", "[]", "{}", '[{"kind": "gaussian"}]', "[1]"):
        path.write_text(text)
        with pytest.raises(RunError, match=r"errors\.json (holds no errors|cannot be read)"):
            plot_projection_error(path)
    with pytest.raises(RunError, match="cannot be read"):
        plot_projection_error(tmp_path / "nothing.json")
    kept = REPOSITORY / "benchmarks" / "projection_error.json"
    with pytest.raises(InputError, match='view "size" is not one of relative, rmse, cosine'):
        plot_projection_error(kept, view="size")


def test_an_error_of_nothing_is_left_out_of_the_figure(tmp_path):
    line = {"run": "é" * 60, "kind": "other", "split": "own", "size": 16, "numbers": 16, "relative": 0, "rmse": 0}
    path = tmp_path / "errors.json"
    path.write_text(json.dumps([line | {"cosine": 0.1}]))
    assert not plot_projection_error(path).axes[0].lines
    assert plot_projection_error(path, tmp_path / "cosine.svg", view="cosine").axes[0].lines


def test_the_page_cites_what_was_measured():
    """Every figure of the tables stands in the JSON beside the page."""
    lines = json.loads((REPOSITORY / "benchmarks" / "projection_error.json").read_text())
    page = (REPOSITORY / "benchmarks" / "projection_error.md").read_text()
    rows = [row.strip("|").split("|") for row in page.splitlines() if row.startswith("| 1") or row.startswith("| 6")]
    found = {(line["run"], line["kind"], line["split"], line["size"]): line for line in lines}
    assert len(found) == len(lines) and rows
    known = {f"{line[name]:.2f}" for line in lines for name in ("relative", "cosine")}
    known |= {f"{line['predicted'] * line['relative'] / line['rmse']:.2f}" for line in lines if "predicted" in line}
    cited = [cell.strip() for row in rows for cell in row[1:] if "." in cell]
    assert len(cited) > 30 and not [cell for cell in cited if cell not in known]
    assert not any(math.isnan(line["relative"]) for line in lines)
