"""Where values come from: profile < preset < file < --set, and that the way they came does not matter."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from ghosttune.config import layers
from ghosttune.config.loading import load_config, value_at, with_values
from ghosttune.config.notation import to_yaml
from ghosttune.config.schema import leaf_fields
from ghosttune.errors import InputError, Problem
from ghosttune.registry import METHODS

ROWS = {"data": {"train": {"path": "builtin:rows"}}}


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Puts presets and profiles of the test's own in place of the shipped ones."""
    monkeypatch.setattr(layers, "SHIPPED", tmp_path / "package")

    def ship(kind: str, name: str, tree: dict) -> None:
        folder = tmp_path / "package" / f"{kind}s"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(to_yaml(tree))

    return ship


def test_the_later_layer_wins_and_each_value_knows_its_origin(write, shipped):
    shipped("profile", "box@1", {"train": {"seed": 1, "max_steps": 100, "adam_beta1": 0.1, "warmup_steps": 1}})
    shipped("preset", "job", {"train": {"seed": 2, "max_steps": 200, "adam_beta1": 0.2}})
    file = write("data: {train: {path: builtin:rows}}\ntrain:\n  seed: 3\n  max_steps: 300\n")
    config = load_config(file, preset="job", profile="box@1", overrides=["train.seed=4"])
    found = {
        name: (getattr(config.train, name), config.origins[f"train.{name}"]) for name in config.train.model_fields_set
    }
    assert found == {
        "seed": (4, "--set"),
        "max_steps": (300, "run.yaml:4"),
        "adam_beta1": (0.2, "preset job"),
        "warmup_steps": (1, "profile box@1"),
        "num_train_epochs": (None, "default"),
    }
    assert config.origins["train.adam_beta2"] == "default"


def test_every_setting_has_an_origin():
    config = load_config(ROWS)
    assert list(config.origins) == [path for path, _ in leaf_fields()]
    assert {path for path, origin in config.origins.items() if origin != "default"} == {"data.train.path"}


def test_origins_of_values_inside_a_setting_and_of_json(write):
    config = load_config(write('{"data": {\n"train": {"path": "x",\n"columns": {"prompt": "q"}}}}', "run.json"))
    assert config.origins["data.train.columns"] == "run.json:3"


def test_a_profile_without_version_is_its_newest(shipped):
    for version in (9, 10):
        shipped("profile", f"box@{version}", {**ROWS, "train": {"seed": version}})
    config = load_config(profile="box")
    assert config.train.seed == 10 and config.origins["train.seed"] == "profile box@10"


@pytest.mark.parametrize("kind", ["preset", "profile"])
def test_an_unknown_preset_or_profile_names_the_nearest(shipped, kind):
    shipped(kind, "small@1", ROWS)
    with pytest.raises(InputError, match=r"no \w+ is called 'smal@1'; did you mean small@1\? \(known: small@1\)"):
        load_config(**{kind: "smal@1"})


@pytest.mark.parametrize("nothing", ["", "{}", "null", "\n  # learning_rate: 1e-3\n"])
def test_a_section_that_says_nothing_takes_nothing_away(write, shipped, nothing):
    shipped("preset", "job", {**ROWS, "train": {"seed": 5}})
    config = load_config(write(f"train: {nothing}\ndata:\n  train: {nothing}\n  dev: {nothing}\n"), preset="job")
    assert config.train.seed == 5 and config.data.train.path == "builtin:rows"


def test_null_is_a_value_where_a_setting_may_be_null(write, shipped):
    shipped("preset", "job", {**ROWS, "evaluate": {"limit": 7}})
    assert load_config(write("evaluate: {limit: null}"), preset="job").evaluate.limit is None


@pytest.mark.parametrize(
    ("earlier", "later", "settings"),
    [
        ("train.max_steps=50", "train.num_train_epochs=2", {"train.max_steps": None, "train.num_train_epochs": 2.0}),
        ("train.num_train_epochs=2", "train.max_steps=50", {"train.max_steps": 50, "train.num_train_epochs": None}),
        ("data.dev.fraction=0.2", "data.dev.split=dev", {"data.dev.fraction": None, "data.dev.split": "dev"}),
        ("data.dev.split=dev", "data.dev.path=builtin:rows", {"data.dev.split": None}),
        ("data.dev.path=builtin:rows", "data.dev.fraction=0.2", {"data.dev.path": None, "data.dev.fraction": 0.2}),
        ("train.max_steps=50", "train.num_train_epochs=null", {"train.max_steps": 50, "train.num_train_epochs": None}),
    ],
)
def test_choosing_an_alternative_drops_the_others_of_earlier_layers(write, earlier, later, settings):
    path, value = earlier.split("=")
    tree: dict = {"data": {"train": {"path": "builtin:rows"}}}
    *groups, last = path.split(".")
    level = tree
    for group in groups:
        level = level.setdefault(group, {})
    level[last] = json.loads(value) if value[0].isdigit() else value
    config = load_config(write(to_yaml(tree)), overrides=[later])
    assert {path: value_at(config, path) for path in settings} == settings


def test_alternatives_in_one_layer_are_a_conflict(problems):
    (found,) = problems(ROWS, overrides=["train.max_steps=50", "train.num_train_epochs=2"])
    assert found.startswith("train.num_train_epochs: excludes train.max_steps")


def test_a_chosen_length_in_epochs_replaces_the_default_length():
    assert load_config(ROWS, overrides=["train.num_train_epochs=2"]).train.max_steps is None


def test_another_method_drops_the_settings_of_the_one_before(second_method, write):
    second_method()
    file = write("data: {train: {path: builtin:rows}}\nmethod: {r: 16, lora_alpha: 8}")
    config = load_config(file, overrides=["method.type=scale", "method.strength=2.0"])
    assert config.method.model_dump() == {"type": "scale", "strength": 2.0}
    assert config.origins["method.strength"] == "--set" and "method.r" not in config.origins
    same = load_config(file, overrides=["method.type=lora"])
    assert same.method.r == 16


def test_settings_of_another_method_are_unknown(second_method, problems):
    second_method()
    (found,) = problems("method: {type: scale, r: 3}")
    assert found.startswith("method.r: no such setting") and "(settings: type, strength)" in found


@pytest.mark.parametrize("text", ["train.seed", "", "=5", "train..seed=5", ".seed=5", "train.=5", "--out"])
def test_set_without_key_and_value_is_a_problem(problems, text):
    (found,) = problems(ROWS, overrides=[text, "train.max_steps=20"])
    assert found.startswith("--set: takes section.key=value (got ")


def test_set_with_broken_yaml_is_a_problem_of_its_setting(problems):
    (found,) = problems(ROWS, overrides=["train.seed=[1"])
    assert found.startswith('train.seed: "[1" is not a YAML value') and found.endswith("[--set]")


def test_set_takes_lists_mappings_and_text_with_equals_signs():
    config = load_config(
        ROWS,
        overrides=[
            "method.target_modules=[q_proj, v_proj]",
            "train={max_steps: 40, seed: 3}",
            "data.train.columns={prompt: a.b}",
            "data.train.columns.completion=c=d",
            "run.root=out #1",
        ],
    )
    assert config.method.target_modules == ["q_proj", "v_proj"]
    assert (config.train.max_steps, config.train.seed) == (40, 3)
    assert config.data.train.columns == {"prompt": "a.b", "completion": "c=d"}
    assert config.run.root == "out #1"


def test_of_two_sets_the_later_holds(problems):
    assert load_config(ROWS, overrides=["train.seed=1", "train.seed=2"]).train.seed == 2
    assert "train: must hold settings" in problems(ROWS, overrides=["train.seed=1", "train=5"])[0]
    assert load_config(ROWS, overrides=["train=5", "train.seed=1"]).train.seed == 1


def test_keys_with_dots_belong_to_set_alone(problems):
    assert problems({**ROWS, "train.seed": 5})[0].startswith("train.seed: no such section")


def test_file_preset_command_line_and_python_give_the_same_object(write, shipped):
    tree = {
        "model": {"name": "builtin:tiny", "dtype": "bfloat16"},
        "method": {"type": "lora", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]},
        "data": {"train": {"path": "builtin:rows", "columns": {"prompt": "q"}}, "dev": {"fraction": 0.2}},
        "train": {"learning_rate": 1e-3, "max_steps": 50},
    }
    shipped("preset", "job", tree)
    flat = [
        "model.name=builtin:tiny",
        "model.dtype=bfloat16",
        "method.r=4",
        "method.lora_alpha=8",
        "method.target_modules=[q_proj]",
        "data.train={path: builtin:rows, columns: {prompt: q}}",
        "data.dev.fraction=0.2",
        "train.learning_rate=1e-3",
        "train.max_steps=50",
    ]
    configs = [
        load_config(write(to_yaml(tree))),
        load_config(write(json.dumps(tree), "run.json")),
        load_config(preset="job"),
        load_config(tree),
        load_config(overrides=flat),
    ]
    assert len(set(configs)) == 1 and len({config.model_dump_json() for config in configs}) == 1
    assert len({json.dumps(config.origins) for config in configs}) == len(configs)
    assert load_config(tree, overrides=["train.seed=1"]) != configs[0]


def test_relative_paths_become_absolute_and_built_in_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "weights").mkdir()
    tree = {
        "model": {"name": "weights"},
        "data": {"train": {"path": "rows.jsonl"}, "dev": {"path": "~/dev.jsonl"}},
        "run": {"root": "../runs"},
    }
    config = load_config(tree)
    assert config.model.name == str(tmp_path / "weights")
    assert config.data.train.path == str(tmp_path / "rows.jsonl")
    assert config.data.dev.path == str(tmp_path / "home" / "dev.jsonl")
    assert config.run.root == "../runs", "only data and models are looked up again when a saved configuration runs"
    assert load_config(tree, overrides=["run.root=~/runs"]).run.root == str(tmp_path / "home" / "runs")
    assert config.origins["run.root"] == "Python" and config.origins["data.dev.limit"] == "default"
    other = load_config({"model": {"name": "org/weights"}, **ROWS})
    assert other.model.name == "org/weights" and other.data.train.path == "builtin:rows"


def test_a_very_long_name_is_no_folder():
    assert load_config({"model": {"name": "x" * 5000}, **ROWS}).model.name == "x" * 5000


def test_configurations_cannot_be_changed_and_share_nothing():
    config, other = load_config(ROWS), load_config(ROWS)
    for section, name in ((config, "train"), (config.train, "seed"), (config.data.train, "path"), (config.method, "r")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, 5)
    config.run.trackers.append("wandb")
    assert other.run.trackers == [] and load_config(ROWS).run.trackers == []


def test_with_values_leaves_the_original_alone_and_records_the_origin():
    config = load_config(ROWS)
    changed = with_values(config, {"train.seed": 7, "data.dev.fraction": 0.3}, "derived")
    assert (changed.train.seed, changed.data.dev.fraction, changed.origins["train.seed"]) == (7, 0.3, "derived")
    assert (config.train.seed, config.data.dev.fraction, config.origins["train.seed"]) == (42, None, "default")
    assert changed != config


def test_problems_name_the_origin_but_not_that_of_a_default(write):
    config = load_config(write("data: {train: {path: builtin:rows}}", "default.yaml"))
    assert config.problem("data.train.path", "is odd") == Problem("data.train.path", "is odd", "default.yaml:1")
    assert config.problem("train.seed", "is odd").origin == ""


CRITICAL = {
    "model.name",
    "model.dtype",
    "model.device",
    "method.type",
    "method.r",
    "method.lora_alpha",
    "method.target_modules",
    "data.train.path",
    "data.max_length",
    "train.max_steps",
    "train.per_device_train_batch_size",
    "train.learning_rate",
    "train.seed",
}


def test_strict_lists_each_critical_default(problems):
    found = problems({"data": {"dev": {"fraction": 0.1}}}, strict=True)
    assert {line.split(":")[0] for line in found} == CRITICAL
    assert len(found) == len(CRITICAL), "a missing path is one problem, not two"
    assert "--strict" in found[-1]


@pytest.mark.parametrize("path", sorted(CRITICAL - {"method.type"}))
def test_strict_is_content_with_what_was_chosen(problems, path):
    chosen = {str(path): value_at(load_config(ROWS), path) for path in CRITICAL - {path}}
    found = problems({}, overrides=[f"{key}={json.dumps(value)}" for key, value in chosen.items()], strict=True)
    assert [line.split(":")[0] for line in found] == [path]


def test_strict_accepts_the_other_answer_to_the_same_question():
    chosen = {path: value_at(load_config(ROWS), path) for path in CRITICAL - {"data.train.path", "train.max_steps"}}
    overrides = [f"{key}={json.dumps(value)}" for key, value in chosen.items()]
    config = load_config(overrides=[*overrides, "data.train.name=e2e_nlg", "train.num_train_epochs=1"], strict=True)
    assert config.data.train.name == "e2e_nlg" and config.train.max_steps is None


def test_registered_methods_are_the_ones_that_can_be_chosen():
    assert "lora" in METHODS.names()


def test_switching_the_ledger_off_drops_what_an_earlier_layer_set_for_it():
    config = load_config(profile="quickstart@1", overrides=["measure.ledger=null"])
    assert config.data.guide.split is None and config.measure.ledger.guide_every is None


def test_guide_rows_beside_a_ledger_that_the_same_layer_switches_off_are_an_error(problems):
    (found,) = problems(overrides=["measure.ledger=null", "data.guide.fraction=0.1"])
    assert found.startswith("data.guide.fraction: does nothing while measure.ledger.guide_every is null")
