"""The sweeps that ship with the documents can be read, and train what they say they train."""

from __future__ import annotations

from pathlib import Path

from ghosttune.config.sweeps import read_sweep

STUDIES = Path(__file__).parents[3] / "docs" / "studies"


def test_the_arms_of_the_module_study_have_one_budget():
    trials = read_sweep(STUDIES / "modules.yaml")
    assert {trial.config.method.parameter_budget for trial in trials} == {60000}  # type: ignore[attr-defined]
    assert len({trial.arm for trial in trials}) == 4 and len(trials) == 12


def test_the_arms_of_the_phase_study_differ_in_phases_alone():
    trials = read_sweep(STUDIES / "phases.yaml")
    others = [{**trial.config.model_dump(), "phases": None} for trial in trials if trial.seed == 1]
    assert len(others) == 5 and all(other == others[0] for other in others)
