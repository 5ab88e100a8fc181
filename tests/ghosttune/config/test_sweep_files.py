"""What a sweep file asks for, and everything that is wrong with it at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ghosttune.config.sweeps import read_sweep
from ghosttune.errors import ConfigError, InputError


def write(folder: Path, **keys: object) -> Path:
    (folder / "base.yaml").write_text("data: {train: {path: builtin:rows}}\ntrain: {max_steps: 20, warmup_steps: 2}\n")
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"config": "base.yaml", **keys}))
    return path


def test_every_combination_under_every_seed(tmp_path):
    axes = {"method.r": [2, 4], "method.target_modules": ["attention", ["q_proj", "v_proj"]]}
    trials = read_sweep(write(tmp_path, axes=axes, seeds=[1, 2]))
    assert len(trials) == 8 and len({trial.name for trial in trials}) == 8
    assert [trial.seed for trial in trials[:2]] == [1, 2] and trials[0].config.train.seed == 1
    assert trials[0].name == "r-2_target_modules-attention/seed-1"
    assert trials[2].arm == "r-2_target_modules-q_proj--v_proj"
    assert trials[-1].config.method.target_modules == ["q_proj", "v_proj"] and trials[-1].config.train.max_steps == 20


def test_named_arms_settings_in_place_and_the_configurations_own_seed(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "profile: quickstart@1\nconfig: {train: {max_steps: 30}}\n"
        "arms:\n  always: {phases: null}\n  phased: {phases: both@0-10 > mlp@10-, train.learning_rate: 1e-4}\n"
    )
    always, phased = read_sweep(tmp_path / "own.yaml")
    assert (always.name, always.seed) == ("always/seed-42", 42) and always.config.train.max_steps == 30
    assert always.config.phases.strategy == "none" and phased.config.phases.strategy == "plan"
    assert phased.config.train.learning_rate == 1e-4


def test_values_whose_short_names_are_alike_are_told_apart(tmp_path):
    long = "layers." + "x" * 60
    trials = read_sweep(write(tmp_path, axes={"method.target_modules": [[long + "a"], [long + "b"]]}))
    assert len({trial.name for trial in trials}) == 2


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"axis": {}, "axes": {"method.r": [1]}}, "axis: no such key of a sweep; did you mean axes"),
        ({}, "`arms` must say what is varied"),
        ({"axes": {"method.r": 4}}, "settings with a list of different values each"),
        ({"axes": {"method.r": [4, 4]}}, "different values"),
        ({"axes": {"method.r": []}}, "list of different values"),
        ({"arms": {"a/b": {}}}, "takes names with settings each"),
        ({"arms": {"..": {}}}, "takes names with settings each"),
        ({"arms": {"a": 3}}, "takes names with settings each"),
        ({"axes": {"method.r": [1]}, "seeds": [1, 1]}, "different whole numbers"),
        ({"axes": {"method.r": [1]}, "seeds": 3}, "different whole numbers"),
        ({"axes": {"method.r": [1]}, "seeds": [True]}, "different whole numbers"),
        ({"axes": {"train.seed": [1]}}, "is given by `seeds`"),
        ({"axes": {"run.root": ["x"]}}, "has no meaning here"),
        ({"axes": {"method.r": [2]}, "arms": {"r-2": {}}}, "is a combination of the axes too"),
        ({"preset": 3, "axes": {"method.r": [1]}}, "preset: takes a name"),
        ({"axes": {"method.rr": [1]}}, r"arm rr-1: method.rr: .*did you mean"),
        ({"arms": {"a": {"method.r": 0}, "b": {"train.max_steps": -1}}}, r"2 problems(.|\n)*arm a: (.|\n)*arm b: "),
    ],
)
def test_what_is_wrong_is_said_with_the_arm(tmp_path, keys, said):
    with pytest.raises(ConfigError, match=said):
        read_sweep(write(tmp_path, **keys))


@pytest.mark.parametrize("text", ["", "- 1", "axes: [", "3"])
def test_files_that_are_no_sweep(tmp_path, text):
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(InputError, match=r"sweep\.yaml"):
        read_sweep(tmp_path / "sweep.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_sweep(tmp_path / "nowhere.yaml")
