"""Metrics of own files: run where the command says so and nowhere else, and scored like every other."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from ghosttune import own_code
from ghosttune.cli.main import app
from ghosttune.config.loading import load_config, read_config
from ghosttune.errors import ConfigError, DataError, InputError
from ghosttune.metrics.judging import judged, scores_of
from ghosttune.metrics.scoring import Corpus, Item
from ghosttune.registry import METRICS

CODE = '''
import math
from pathlib import Path

Path(__file__).with_name("ran").touch()

LIMIT = 5


def words(output):
    """How many words it has."""
    return len(output.split())


def right(output, references):
    return output in references


def far(output, *, metadata):
    return metadata["far"]


def fails(output):
    return 1 / (len(output) - 3)


def speaks(output):
    return "much"


def endless(output):
    return math.inf


def other(output, prompt):
    return 0
'''

ITEMS = [
    Item("a b", ("a b", "c"), {"far": 1.5}),
    Item("c", ("d",), {"far": 2}),
    Item("c c c c", ("c",), {"far": 0}),
    Item("d d", ("d d",), {"far": -1}),
]


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Function -> its name, with consent; the file leaves a trace where it runs."""
    path = tmp_path / "mine.py"
    path.write_text(CODE, encoding="utf-8")
    monkeypatch.setattr(own_code, "_allowed", True)
    return lambda function: f"{path}:{function}"


def test_nothing_runs_without_consent(named, tmp_path, monkeypatch):
    monkeypatch.setattr(own_code, "_allowed", False)
    with pytest.raises(
        InputError, match=r"words is code that would run on this machine: read .*, then give --allow-code"
    ):
        METRICS[named("words")]
    assert not (tmp_path / "ran").exists() and own_code.consent() == []
    own_code.allow_code()
    assert METRICS[named("words")].meaning == "How many words it has." and (tmp_path / "ran").exists()
    assert own_code.consent() == ["--allow-code"]


def test_a_function_of_numbers_is_their_mean_and_one_of_bools_a_share(named):
    names = [named("words"), named("right"), named("far")]
    scores = scores_of(Corpus(ITEMS), names)
    assert [scores[name].value for name in names] == [np.mean([2, 1, 4, 2]), 0.5, np.mean([1.5, 2, 0, -1])]
    assert scores[named("right")].hits.tolist() == [True, False, False, True]
    assert scores[named("words")].rows == [2, 1, 4, 2]
    found = judged({"model": scores}, names)
    digest = hashlib.sha256(CODE.encode()).hexdigest()
    assert found["metrics"][named("words")]["source"] == f"{named('words')}, SHA-256 {digest}"
    assert found["model"][named("words")]["n"] == 4


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("wrods", r"has no function 'wrods'.* did you mean 'words'|has no function 'wrods'"),
        ("LIMIT", r"has no function 'LIMIT'"),
        ("other", r"takes output, prompt; a metric takes any of output, references, metadata"),
    ],
)
def test_what_is_no_metric_is_refused_by_name(named, function, said):
    with pytest.raises(InputError, match=said):
        METRICS[named(function)]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("fails", r"fails on answer 1 \('a b'\): ZeroDivisionError: division by zero \(.*mine.py:24\)"),
        ("speaks", r"says 'much' of answer 1 \('a b'\); it must say a finite number, or a bool"),
        ("endless", r"says inf of answer 1"),
    ],
)
def test_a_fault_names_function_answer_and_line(named, function, said):
    with pytest.raises(DataError, match=said):
        scores_of(Corpus(ITEMS), [named(function)])


@pytest.mark.parametrize(
    ("text", "said"),
    [("import nothing_of_the_kind\n", "No module named"), ("def (:\n", r"SyntaxError.*mine.py:1"), (None, "not there")],
)
def test_a_file_that_cannot_be_imported_is_named(tmp_path, monkeypatch, text, said):
    monkeypatch.setattr(own_code, "_allowed", True)
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=said):
        METRICS[f"{path}:words"]


def test_a_configuration_is_read_without_running_it_and_names_the_file_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(
        {"evaluate": {"metrics": ["chrf", "mine.py:words"]}, "data": {"train": {"path": "builtin:rows"}}}
    )
    assert config.evaluate.metrics == ["chrf", f"{tmp_path}/mine.py:words"]
    _, problems = read_config({"evaluate": {"metrics": ["mine.py:a b"]}, "data": {"train": {"path": "builtin:rows"}}})
    assert any("no metric is called" in str(problem) for problem in problems)


SETTINGS = {
    "data": {"train": {"path": "builtin:rows", "limit": 24}},
    "train": {"max_steps": 1, "per_device_train_batch_size": 2, "warmup_steps": 0},
    "measure": {"norms": None, "ledger": None},
    "evaluate": {"limit": 2, "max_new_tokens": 2},
}


def test_a_run_is_refused_without_consent_and_judged_with_it(named, tmp_path, monkeypatch):
    """Before anything is written; the numbers are the function's own of the answers that stand in predictions/."""
    monkeypatch.setattr(own_code, "_allowed", False)
    evaluated = SETTINGS["evaluate"] | {"metrics": [named("words"), named("fails")]}
    (tmp_path / "own.json").write_text(json.dumps(SETTINGS | {"evaluate": evaluated}))
    command = ["train", str(tmp_path / "own.json"), "--out", str(tmp_path / "run")]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, ConfigError) and str(refused.exception).count("then give --allow-code") == 2
    assert not (tmp_path / "run").exists() and not (tmp_path / "ran").exists()
    only = json.dumps([named("words")])
    done = CliRunner().invoke(app, [*command, "--set", f"evaluate.metrics={only}", "--allow-code"])
    assert done.exit_code == 0, done.output
    dev = json.loads((tmp_path / "run" / "evaluation.json").read_text())["dev"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "dev.jsonl").read_text().splitlines()]
    assert dev["adapter"][named("words")]["value"] == np.mean([len(row["output"].split()) for row in rows])
    assert "mine.py:words " in done.output and f"{tmp_path}/mine.py:words" not in done.output
