"""What follows from a configuration and the facts of a machine, a tokenizer and a data set."""

from __future__ import annotations

import pytest

from ghosttune.config.checking import conflicts
from ghosttune.config.loading import load_config
from ghosttune.config.resolve import (
    DEV_FRACTION,
    GUIDE_FRACTION,
    Facts,
    resolve_sources,
    resolve_steps,
    steps_per_epoch,
)
from ghosttune.errors import ConfigError


def config_of(**settings):
    overrides = {"data.train.path": "builtin:rows"} | {
        path.replace("__", "."): value for path, value in settings.items()
    }
    return load_config(overrides=[f"{path}={value}" for path, value in overrides.items() if value is not None])


def refusal(resolve, *arguments) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve(*arguments)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("asked", "devices", "got"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda"), ("cuda:1", 2, "cuda:1")],
)
def test_the_device_is_decided_once(asked, devices, got):
    config = resolve_sources(config_of(model__device=asked), Facts(devices))
    assert config.model.device == got
    assert (config.origins["model.device"] == "derived") == (asked == "auto")


@pytest.mark.parametrize(
    ("asked", "devices", "words"),
    [("cuda", 0, "no CUDA devices; use cpu"), ("cuda:1", 1, "1 CUDA device;"), ("cuda:5", 2, "2 CUDA devices;")],
)
def test_a_device_that_is_not_there_is_refused(asked, devices, words):
    (found,) = refusal(resolve_sources, config_of(model__device=asked), Facts(devices))
    assert found.startswith(f"model.device: {asked} was asked for") and words in found and "[--set]" in found


@pytest.mark.parametrize(
    ("facts", "template"),
    [
        (Facts(has_chat_template=True), "chat"),
        (Facts(row_format="messages", has_chat_template=True), "chat"),
        (Facts(row_format="messages"), "turns"),
        (Facts(row_format="prompt_completion"), "plain"),
        (Facts(row_format="alpaca"), "plain"),
        (Facts(row_format="text", holds_conversations=True), "turns"),
    ],
)
def test_the_template_follows_tokenizer_and_rows(facts, template):
    config = resolve_sources(config_of(), facts)
    assert config.data.template == template and config.origins["data.template"] == "derived"


def test_a_chosen_template_stays():
    assert resolve_sources(config_of(data__template="plain"), Facts(has_chat_template=True)).data.template == "plain"


def test_chat_without_a_chat_template_is_refused():
    (found,) = refusal(resolve_sources, config_of(data__template="chat"), Facts())
    assert found.startswith("data.template: is chat, and the tokenizer of builtin:tiny has no chat template")


def test_the_format_on_record_is_the_one_the_rows_are_written_in():
    facts = Facts(row_format="text", holds_conversations=True)
    assert resolve_sources(config_of(), facts).data.train.format == "text"
    known = resolve_sources(config_of(data__train__name="e2e_nlg"), Facts())
    assert known.data.train.format == "auto" and conflicts(known) == []


def test_plain_text_is_trained_whole_or_refused():
    (found,) = refusal(resolve_sources, config_of(), Facts(row_format="text"))
    assert found.startswith("data.loss_on: must be all for rows of plain text")
    resolve_sources(config_of(data__loss_on="all"), Facts(row_format="text"))


@pytest.mark.parametrize(
    ("settings", "splits", "dev"),
    [
        ({}, (), (DEV_FRACTION, None, None)),
        ({}, ("train",), (DEV_FRACTION, None, None)),
        ({}, ("train", "dev", "test"), (None, "dev", None)),
        ({"data__dev__fraction": 0.3}, ("train", "dev"), (0.3, None, None)),
        ({"data__dev__split": "test"}, ("train", "test"), (None, "test", None)),
        ({"data__dev__path": "builtin:rows"}, ("train", "dev"), (None, None, "builtin:rows")),
    ],
)
def test_dev_rows_come_from_where_was_asked_or_where_there_are_some(settings, splits, dev):
    found = resolve_sources(config_of(**settings), Facts(source_splits=splits)).data.dev
    assert (found.fraction, found.split, found.path) == dev


@pytest.mark.parametrize(
    ("settings", "splits", "guide"),
    [
        ({}, (), (GUIDE_FRACTION, None)),
        ({}, ("train", "dev", "guide"), (None, "guide")),
        ({"data__dev__split": "guide"}, ("train", "guide"), (GUIDE_FRACTION, None)),
        ({"data__guide__fraction": 0.3}, ("train", "guide"), (0.3, None)),
        ({"data__guide__split": "spare"}, ("train", "spare", "guide"), (None, "spare")),
        ({"measure__ledger": "null"}, ("train", "guide"), (None, None)),
    ],
)
def test_guide_rows_come_from_where_was_asked_or_where_dev_rows_do_not(settings, splits, guide):
    found = resolve_sources(config_of(**settings), Facts(source_splits=splits)).data.guide
    assert (found.fraction, found.split) == guide


def test_a_guide_split_that_turns_out_to_be_the_dev_split_is_refused():
    config = config_of(data__guide__split="dev")
    (found,) = refusal(resolve_sources, config, Facts(source_splits=("train", "dev")))
    assert found.startswith("data.guide.split") and "chooses checkpoints" in found


def test_a_split_that_is_not_there_is_refused():
    (found,) = refusal(resolve_sources, config_of(data__dev__split="dev"), Facts(source_splits=("train", "test")))
    assert "'dev' is not a split of the training source, which has train, test" in found
    (found,) = refusal(resolve_sources, config_of(data__dev__split="dev"), Facts())
    assert "no splits of its own" in found


def test_problems_of_several_kinds_come_together():
    config = config_of(model__device="cuda", data__template="chat", data__dev__split="dev")
    assert [line.split(":")[0] for line in refusal(resolve_sources, config, Facts())] == [
        "model.device",
        "data.template",
        "data.dev.split",
    ]


def test_sources_resolve_to_themselves():
    facts = Facts(0, ("train", "dev"), "messages", True)
    config = resolve_sources(config_of(), facts)
    assert resolve_sources(config, facts) == config


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "processes", "steps"),
    [(100, 8, 1, 1, 13), (100, 8, 4, 1, 4), (96, 8, 1, 1, 12), (100, 8, 1, 4, 4), (3, 8, 4, 1, 1), (1, 1, 1, 1, 1)],
)
def test_steps_of_an_epoch(rows, batch, accumulation, processes, steps):
    config = config_of(train__per_device_train_batch_size=batch, train__gradient_accumulation_steps=accumulation)
    assert steps_per_epoch(config, rows, processes) == steps


def test_steps_of_an_epoch_of_candidates():
    settings = {"train__per_device_train_batch_size": 4, "train__gradient_accumulation_steps": 2}
    selection = {"data__online_selection__by": "loss", "data__online_selection__candidates": 3}
    assert steps_per_epoch(config_of(**settings, **selection), 100) == 5


@pytest.mark.parametrize(("epochs", "steps"), [(1, 13), (2, 26), (0.5, 7), (0.001, 1), (3.0, 39)])
def test_epochs_become_steps(epochs, steps):
    config = resolve_steps(config_of(train__num_train_epochs=epochs, train__warmup_steps=0), 100)
    assert (config.train.max_steps, config.train.num_train_epochs) == (steps, None)
    assert config.origins["train.max_steps"] == "derived"


@pytest.mark.parametrize(
    ("steps", "logging", "evaluation", "saving"), [(300, 6, 30, 30), (10, 1, 1, 1), (1, 1, 1, 1), (1000, 20, 100, 100)]
)
def test_intervals_follow_from_the_length(steps, logging, evaluation, saving):
    train = resolve_steps(config_of(train__max_steps=steps, train__warmup_steps=0), 100).train
    assert (train.logging_steps, train.eval_steps, train.save_steps) == (logging, evaluation, saving)


def test_saving_follows_a_chosen_evaluation_interval_and_chosen_intervals_stay():
    train = resolve_steps(config_of(train__eval_steps=50, train__logging_steps=7), 100).train
    assert (train.logging_steps, train.eval_steps, train.save_steps) == (7, 50, 50)


def test_any_length_from_ten_steps_is_valid_with_a_warmup_of_five():
    for steps in range(10, 200):
        train = resolve_steps(config_of(train__max_steps=steps, train__warmup_steps=5), 100).train
        assert (train.max_steps, train.warmup_steps) == (steps, 5)


def test_a_warmup_longer_than_the_epochs_is_refused_when_the_rows_are_known():
    config = config_of(train__num_train_epochs=3, train__warmup_steps=100, train__per_device_train_batch_size=1)
    (found,) = refusal(resolve_steps, config, 4)
    assert "the run's 12 steps (got 100)" in found
    assert resolve_steps(config, 40).train.max_steps == 120


def test_patience_is_checked_against_the_intervals_that_follow():
    (found,) = refusal(resolve_steps, config_of(train__early_stopping_patience=9), 100)
    assert "the run has 10 evaluations (got 9); at most 8 can act" in found
    resolve_steps(config_of(train__early_stopping_patience=8), 100)


def test_steps_resolve_to_themselves():
    config = resolve_steps(config_of(train__num_train_epochs=5), 100)
    assert resolve_steps(config, 100) == config and load_config(config.model_dump()) == config
