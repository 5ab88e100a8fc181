"""Every example runs as it is written, with fewer updates where that changes nothing of what it shows."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml

import ghosttune
from ghosttune.config.sweeps import read_sweep

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def script(capsys, monkeypatch):
    """Runs a script in this process and gives back what it printed."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", ["mlp_values.py", "mlp_sketches.py", "lm_sketches.py"])
def test_the_engine_alone(script, name):
    assert script(f"ghostgrad/{name}").strip(), "it asserts what it shows"


@pytest.mark.parametrize(
    "name",
    [
        "classification.py",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("question_answering.py", "chat.py")),
    ],
)
def test_a_task_from_its_own_rows(script, tmp_path, name):
    assert "'verdict': 'better'" in script(name, tmp_path, 8)


@pytest.mark.parametrize("name", ["generation", "module_study"])
def test_a_configuration(tmp_path, name):
    small = {"train.max_steps": 2, "train.warmup_steps": 1, "data.train.limit": 40, "data.dev.limit": 8}
    small |= {"evaluate.limit": 2, "evaluate.max_new_tokens": 4}
    overrides = [f"{setting}={value}" for setting, value in small.items()]
    run = ghosttune.train(ghosttune.load_config(EXAMPLES / f"{name}.yaml", overrides=overrides), tmp_path / "run")
    assert run.record["status"] == "finished"


def test_the_sweep_is_one():
    trials = read_sweep(EXAMPLES / "phase_study.yaml")
    assert [(trial.arm, trial.seed) for trial in trials] == [
        ("always", 1), ("always", 2), ("phased", 1), ("phased", 2)
    ]  # fmt: skip


@pytest.mark.slow
def test_wrong_answers_are_counted(script, tmp_path):
    printed = script(
        "planted_labels.py", tmp_path, 12
    )  # that more updates find them is tests/promises/test_quickstart.py
    assert re.search(r"of the 40 lowest rows \d+ are planted", printed) and "by their standing: {" in printed


@pytest.mark.slow(seconds=12)
def test_dropping_rows(script, tmp_path):
    printed = script("data_selection.py", tmp_path, 6)
    kept = {by: len((tmp_path / f"{by}.jsonl").read_text().splitlines()) for by in ("value", "random")}
    assert kept == {"value": 43, "random": 43}, "nine tenths of the 48 rows that were seen"
    assert re.findall(r"^(\w+).*planted rows.* dev loss [\d.]+$", printed, re.MULTILINE) == ["value", "random", "all"]


def test_the_list_names_every_example():
    listed = set(re.findall(r"\]\(([\w/.]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    files = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.*") if path.suffix in (".py", ".yaml")}
    assert files <= listed
    assert all(yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8")) for name in files if name.endswith("yaml"))
