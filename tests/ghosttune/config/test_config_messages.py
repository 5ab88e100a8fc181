"""Each kind of mistake in a configuration: what the message says, and that all of them are told at once."""

from __future__ import annotations

import pytest

from ghosttune.config.loading import load_config
from ghosttune.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "start", "meant"),
    [
        ("trian: {seed: 1}", "trian: no such section", "train"),
        ("train: {max_stepz: 1}", "train.max_stepz: no such setting", "max_steps"),
        ("model: {nam: x}", "model.nam: no such setting", "name"),
        ("method: {lora_alhpa: 1}", "method.lora_alhpa: no such setting", "lora_alpha"),
        ("task: {tipe: causal_lm}", "task.tipe: no such setting", "type"),
        ("run: {rot: x}", "run.rot: no such setting", "root"),
        ("evaluate: {max_tokens: 3}", "evaluate.max_tokens: no such setting", "max_new_tokens"),
    ],
)
def test_an_unknown_key_is_named_with_its_nearest(problems, text, start, meant):
    (found,) = problems(text)
    assert found.startswith(start) and f"did you mean {meant}?" in found and found.endswith("[run.yaml:2]")


@pytest.mark.parametrize(
    ("data", "start", "meant"),
    [
        ("{train: {pth: builtin:rows, path: x}}", "data.train.pth: no such setting", "path"),
        ("{train: {path: x}, dev: {fractoin: 0.1}}", "data.dev.fractoin: no such setting", "fraction"),
        ("{train: {path: x}, max_lenght: 5}", "data.max_lenght: no such setting", "max_length"),
        ("{trian: {limit: 3}, train: {path: x}}", "data.trian: no such setting", "train"),
    ],
)
def test_an_unknown_key_below_data(write, data, start, meant):
    with pytest.raises(ConfigError) as caught:
        load_config(write(f"data: {data}"))
    (found,) = map(str, caught.value.problems)
    assert found.startswith(start) and f"did you mean {meant}?" in found and found.endswith("[run.yaml:1]")


def test_an_unknown_group_is_one_problem_however_much_it_holds(problems):
    assert len(problems("optimizer: {lr: 1, betas: {one: 1, two: 2}}")) == 1
    assert len(problems("train: {optimizer: {lr: 1, betas: {one: 1, two: 2}}}")) == 1


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("train.max_steps", "many", 'must be a whole number (got "many")'),
        ("train.max_steps", "'10'", 'must be a whole number (got "10"); write it without quotes'),
        ("train.max_steps", "1e3", "must be a whole number (got 1000.0); write 1000"),
        ("train.max_steps", "2.5", "must be a whole number (got 2.5)"),
        ("train.max_steps", "true", "must be a whole number (got true)"),
        ("train.max_steps", "[1]", "must be a whole number (got [1])"),
        ("train.max_steps", "{}", "must be a whole number (got {})"),
        ("train.max_steps", "0", "must be at least 1 (got 0)"),
        ("train.seed", "-1", "must be at least 0 (got -1)"),
        ("train.seed", "4294967296", "must be less than 4294967296 (got 4294967296)"),
        ("train.learning_rate", "'1e-4'", 'must be a number (got "1e-4"); write it without quotes'),
        ("train.learning_rate", "fast", 'must be a number (got "fast")'),
        ("train.learning_rate", "0", "must be more than 0 (got 0)"),
        ("train.learning_rate", "1", "must be less than 1 (got 1)"),
        ("train.learning_rate", ".nan", "must be a finite number (got .nan)"),
        ("train.num_train_epochs", ".inf", "must be a finite number (got .inf)"),
        ("train.learning_rate", "null", "must be a number (got null); leave the line out for its default, 0.0002"),
        ("train.activation_checkpointing", "yes", 'must be true or false (got "yes")'),
        ("train.activation_checkpointing", "1", "must be true or false (got 1)"),
        ("train.activation_checkpointing", "'true'", 'must be true or false (got "true"); write it without quotes'),
        (
            "train.lr_scheduler_type",
            "cosin",
            'must be one of cosine, linear, constant, constant_with_warmup (got "cosin")',
        ),
        ("model.name", "5", "must be text (got 5)"),
        ("model.name", "''", 'must be text that is not empty, without line breaks and control characters (got "")'),
        ("model.device", "gpu", 'must be auto, cpu, cuda or cuda:N (got "gpu")'),
        ("model.dtype", "float", 'must be one of float32, bfloat16 (got "float"); did you mean float32?'),
        ("method.target_modules", "[]", "must be a list with at least 1 entry (got [])"),
        ("method.target_modules", "[1]", "must be text (got 1)"),
        ("run.trackers", "wandb", 'must be a list (got "wandb")'),
        (
            "run.trackers",
            "[wandbb]",
            'must be one of tensorboard, wandb, trackio, mlflow, swanlab, comet_ml (got "wandbb"); did you mean wandb?',
        ),
        ("run.name", "../elsewhere", "must be a name without slashes"),
        ("run.name", "'..'", "must be a name without slashes"),
        ("evaluate.limit", "-1", "must be at least 0 (got -1)"),
        ("method.type", "lorra", "no method is called 'lorra'; did you mean lora? (known: adalora, bitfit"),
        ("method.type", "[lora]", "no method is called"),
        ("method.type", "null", "no method is called"),
        ("task.type", "causal", "no task is called 'causal'; did you mean causal_lm?"),
    ],
)
def test_a_wrong_value_is_shown_with_what_would_be_accepted(problems, setting, value, message):
    section, name = setting.split(".")
    (found,) = problems(f"{section}:\n  {name}: {value}")
    assert found.startswith(f"{setting}: {message}") and found.endswith("[run.yaml:3]")


@pytest.mark.parametrize("value", ["q_proj", "all-linear", "5", "null"])
def test_a_wrong_target_is_one_problem_that_names_groups_and_lists(problems, value):
    (found,) = problems(f"method: {{target_modules: {value}}}")
    assert "one of attention_qv, attention, mlp, all_linear, or a list of names" in found
    assert ("did you mean all_linear?" in found) == (value == "all-linear")


@pytest.mark.parametrize("value", ["5", "text", "[1, 2]", "true"])
def test_a_section_that_holds_something_else_is_told_what_it_holds(problems, value):
    (found,) = problems(f"train: {value}")
    assert found.startswith("train: must hold settings (max_steps, num_train_epochs, ") and "[run.yaml:2]" in found


def test_a_group_within_a_section_likewise(write):
    with pytest.raises(ConfigError) as caught:
        load_config(write("data:\n  train: rows.jsonl\n"))
    (found,) = map(str, caught.value.problems)
    assert found.startswith(
        "data.train: must hold settings (name, path, format, columns, limit, keep, patch, sources, temperature, "
    )


def test_a_number_too_large_for_a_float_is_refused(problems):
    assert "must be a number" in problems({**ROWS, "train": {"learning_rate": 10**400}})[0]


def test_half_a_surrogate_pair_cannot_be_written_and_is_refused(write):
    with pytest.raises(ConfigError, match="surrogate"):
        load_config(write('{"data": {"train": {"path": "\\ud800"}}}', "run.json"))


def test_python_objects_are_shown(problems):
    assert "object object" in problems({**ROWS, "train": {"seed": object()}})[0]


def test_long_values_are_shortened(problems):
    assert len(problems({**ROWS, "train": {"seed": "x" * 5000}})[0]) < 200


def test_everything_is_told_at_once_in_the_order_of_the_schema(problems):
    found = problems(
        """
        trian: {seed: 1}
        run: {root: 5}
        train:
          max_steps: 20
          seed: 1
          seed: 2
          learning_rate: '0.1'
          warmup_steps: 25
          sed: 3
        model: {device: gpu}
        """,
        overrides=["oops", "method.r=0", "data.train.format=[x"],
        strict=True,
    )
    kinds = [line.split(":")[0] for line in found]
    assert kinds[:4] == ["train.seed", "--set", "data.train.format", "trian"]
    assert kinds[4:10] == [
        "model.device",
        "method.r",
        "train.learning_rate",
        "train.sed",
        "run.root",
        "train.warmup_steps",
    ]
    assert "model.name" in kinds[10:], "what --strict asks for comes last"
    assert any(line.endswith("[run.yaml:8]") for line in found) and any(line.endswith("[--set]") for line in found)


def test_the_title_counts_and_names_the_file(write):
    path = write("train: {sed: 1, max_stepz: 2}")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"3 problems in {path}:\n  train.sed: ")
    assert caught.value.exit_code == 2


def test_a_wrong_value_causes_no_second_problem_that_follows_from_it(problems):
    assert [line.split(":")[0] for line in problems("train: {max_steps: -5, warmup_steps: 400}")] == ["train.max_steps"]
    assert [line.split(":")[0] for line in problems({"data": {"train": {"path": 5}}})] == ["data.train.path"]
    assert [line.split(":")[0] for line in problems({"data": {"train": 5}})] == ["data.train"]


ROWS = {"data": {"train": {"path": "builtin:rows"}}}
