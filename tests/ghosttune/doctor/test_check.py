"""`check` on whole runs: what training would refuse, everything together, and nothing where nothing is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from doctor_cases import usable
from small_llama import small_llama

from ghosttune import train
from ghosttune.data.sources import builtin_rows
from ghosttune.run.directory import RunDir
from ghosttune.run.versions import changed_versions, unmet_requirements
from ghosttune.workflows import check as module
from ghosttune.workflows.check import check

ROWS = usable()
LONG = {"prompt": "far " * 60 + "\nSay it.", "completion": "it"}
TALK = [
    {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": str(n)}]} for n in range(70)
]

REFUSED: dict[str, list[tuple[Any, dict[str, Any], Any, dict[str, Any], str]]] = {
    "unknown key": [
        (None, {"train__max_stepz": 3}, None, {}, "train.max_stepz: no such setting; did you mean max_steps?"),
    ],
    "number as text": [
        (None, {"train__learning_rate": "2e-4"}, None, {}, 'must be a number (got "2e-4"); write it without quotes'),
    ],
    "no supervised labels": [
        ([{"text": f"Row {n}"} for n in range(70)], {}, TALK, {}, "data.loss_on: must be all for rows of plain text"),
    ],
    "truncation": [
        (
            [*ROWS, LONG],
            {},
            [*ROWS, LONG],
            {"data__truncated_share": 0.1},
            "would lose",
        ),
        (
            [*ROWS, {"prompt": "Say it.", "completion": "it " * 80}],
            {},
            [*ROWS, {"prompt": "Say it.", "completion": "it " * 10}],
            {},
            "answers are never cut",
        ),
    ],
    "template missing": [
        (None, {"data__template": "chat", "model__name": "bare"}, None, {"data__template": "chat"}, "no chat template"),
    ],
    "stop token never learned": [
        (
            None,
            {"model__name": "twins", "data__template": "plain"},
            None,
            {"model__name": "bare", "data__template": "plain"},
            "the base never learned the stop token",
        ),
    ],
    "column confusion": [
        (
            [{"question": row["prompt"], "answer": row["completion"]} for row in ROWS],
            {},
            [{"question": row["prompt"], "answer": row["completion"]} for row in ROWS],
            {"data__train__columns": {"prompt": "question", "completion": "answer"}},
            "columns answer, question (first row, rows.jsonl:1) fit no format; needed are",
        ),
    ],
    "empty rows": [
        ([*ROWS, {"prompt": "Say it.", "completion": " "}], {}, ROWS, {}, "rows.jsonl:71: completion is empty"),
        ([], {}, ROWS, {}, "holds no rows"),
    ],
    "overlapping splits": [
        (
            [{**row, "split": "train" if n < 60 else "dev"} for n, row in enumerate([*ROWS, ROWS[0]])],
            {},
            [{**row, "split": "train" if n < 60 else "dev"} for n, row in enumerate(ROWS)],
            {},
            "1 training rows ask the same as a dev row",
        ),
        (
            [{**row, "split": "train" if n < 60 else "guide"} for n, row in enumerate([*ROWS, ROWS[0]])],
            {"measure__ledger__guide_every": 5},
            [{**row, "split": "train" if n < 60 else "guide"} for n, row in enumerate(ROWS)],
            {"measure__ledger__guide_every": 5},
            "1 training rows ask the same as a guide row",
        ),
    ],
    "target modules": [
        (
            None,
            {"method__target_modules": ["q_prj"]},
            None,
            {"method__target_modules": ["q_proj"]},
            "'q_prj' matches no linear layer; did you mean q_proj?",
        ),
    ],
    "patterns out of range": [
        (
            None,
            {"method__target_modules": ["*.layers.99.*"]},
            None,
            {"method__target_modules": ["*.layers.1.*"]},
            "in layers 0 to ",
        ),
        (
            None,
            {"method__trainable_token_indices": [1536]},
            None,
            {"method__trainable_token_indices": [1535]},
            "holds 1536, and the model's tokens are 0 to 1535",
        ),
    ],
    "phases": [
        (None, {"phases": "both@0-10"}, None, {"phases": "both@0-20"}, "nothing trains in updates 11 to 20"),
        (
            None,
            {"phases": "layers 77-80@0-"},
            None,
            {"phases": "layers 0-1@0-"},
            "layers 77-80: the model has layers 0 to 3",
        ),
    ],
    "quantization and method": [
        (
            None,
            {"model__quantization": "nf4", "method__type": "full", "train__learning_rate": 1e-4},
            None,
            {"method__type": "full", "train__learning_rate": 1e-4},
            "full needs the weights themselves",
        ),
    ],
    "precision": [
        (None, {"model__dtype": "float16"}, None, {"model__dtype": "bfloat16"}, "must be one of float32, bfloat16"),
    ],
    "early stopping": [
        (
            None,
            {"train__early_stopping_patience": 9, "train__eval_steps": 5},
            None,
            {"train__early_stopping_patience": 2, "train__eval_steps": 5},
            "can never act: the run has 4 evaluations",
        ),
    ],
    "evaluation and saving": [
        (None, {"train__eval_steps": 21}, None, {"train__eval_steps": 10}, "must be at most the run's 20 steps"),
        (None, {"train__save_steps": 21}, None, {"train__save_steps": 10}, "must be at most the run's 20 steps"),
    ],
    "warm-up": [
        (None, {"train__warmup_steps": 20}, None, {"train__warmup_steps": 10}, "must be fewer than the run's 20 steps"),
    ],
    "device": [
        (None, {"model__device": "cuda:99"}, None, {}, "model.device: cuda:99 was asked for and torch sees"),
    ],
}
"""What training would refuse -> (rows, settings, rows and settings that are right, what the error says)."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`bare`: a model whose tokenizer has no chat template; `twins`: its stop token is a token nobody ever learned."""
    from doctor_cases import tokenizer

    folders = {}
    for name in ("bare", "twins"):
        torch.manual_seed(0)
        model = small_llama(len(tokenizer()), max_position_embeddings=512)
        if name == "twins":
            with torch.no_grad():
                model.lm_head.weight[7] = model.lm_head.weight[tokenizer().eos_token_id]
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
        tokenizer().save_pretrained(folders[name])
        for file in folders[name].glob("chat_template*"):
            file.unlink()
        settings = json.loads((folders[name] / "tokenizer_config.json").read_text())
        settings.pop("chat_template", None)
        (folders[name] / "tokenizer_config.json").write_text(json.dumps(settings))
    return folders


@pytest.fixture
def seen(checked, models):
    """The report on a run whose `model.name` may be one of `models`."""

    def run(rows, settings):
        name = settings.get("model__name")
        return checked(rows, **settings | ({"model__name": str(models[name])} if name else {}))

    return run


@pytest.mark.parametrize(("name", "place"), [(name, n) for name, cases in REFUSED.items() for n in range(len(cases))])
def test_what_training_would_refuse_is_an_error_and_the_remedy_is_none(name, place, seen):
    rows, settings, good_rows, good_settings, message = REFUSED[name][place]
    report = seen(rows, settings)
    assert report.exit_code == 2 and report.plan == {}
    assert any(message in error for error in report.errors), report.errors
    report = seen(good_rows, good_settings)
    assert report.errors == [] and report.plan


def test_there_is_nothing_to_complain_about_a_good_run(checked):
    report = checked()
    assert (report.errors, report.findings, report.not_checked, report.exit_code) == ([], [], [], 0)
    assert report.plan["rows"]["train"] == 63
    assert set(report.plan["memory"]) >= {"needed", "weights", "Python and libraries", "free"}
    assert report.plan["packages"]["torch"] == torch.__version__


def test_the_plan_says_how_far_values_are_to_be_trusted_where_there_are_any(checked):
    assert "values" not in checked().plan
    plan = checked(**{"measure__ledger": {"guide_every": 5}, "train__learning_rate": 2e-3}).plan
    assert "r 0.9 or more: learning rate x updates between guide passes is 0.01" in plan["values"]


def test_truncation_tells_shares_tokens_and_rows(checked):
    report = checked([*ROWS, LONG], data__dev__fraction=0.2)
    (error,) = report.errors
    assert "1 of " in error and "%)" in error and "would lose" in error and "tokens of context: rows-000070-" in error
    longest = int(error.partition("Raise data.max_length to ")[2].partition(",")[0])
    report = checked([*ROWS, LONG], data__dev__fraction=0.2, data__max_length=longest)
    assert report.errors == [], "the length it names is enough"
    share = float(error.partition("data.truncated_share: ")[2].rstrip("."))
    report = checked([*ROWS, LONG], data__dev__fraction=0.2, data__truncated_share=share)
    assert report.errors == [] and report.plan["cut"]["rows"] == 1 and report.plan["cut"]["tokens"] > 0


BROKEN = [
    *ROWS,
    '{"prompt": "a"',
    "[1]",
    {"prompt": "Say nothing.", "completion": ""},
    {"prompt": "Say much.", "completion": "much " * 80},
    {"prompt": "Say it.", "text": "it"},
    ROWS[3],
    {"prompt": "<|im_start|>Say it.", "completion": "it"},
]
"""Five lines that cannot be used (71 to 75), one that repeats another (76), and one with markup of its own (77)."""


def test_everything_is_said_at_once(checked):
    wrong = {"train__max_stepz": 3, "train__warmup_steps": 30, "method__target_modules": ["q_prj"]}
    report = checked(BROKEN, **wrong, train__learning_rate=0.1)
    said = "\n".join(report.errors)
    for part in (
        "train.max_stepz: no such setting",
        "train.warmup_steps: must be fewer than the run's 20 steps",
        "rows.jsonl:71: not valid JSON",
        "rows.jsonl:72: must be an object",
        "rows.jsonl:73: completion is empty",
        "rows.jsonl:74: answer and cue need",
        "rows.jsonl:75: has prompt, text",
        "'q_prj' matches no linear layer",
    ):
        assert said.count(part) == 1, (part, said)
    assert {finding.check for finding in report.findings} == {"duplicate rows", "rows rendered already"}
    assert json.loads(json.dumps(report.as_dict()))["findings"][0]["rows"]


def test_a_misspelt_name_is_not_followed_by_complaints_about_defaults(checked):
    report = checked(model__name=..., model__nmae="org/model")
    assert len(report.errors) == 1 and report.not_checked == ["rows and model, because model.name is not known"]
    report = checked(data__train__path=..., data__train__pth="rows.jsonl")
    assert len(report.errors) == 2 and report.not_checked == ["rows, because it is not known which (data.train)"]


def test_rows_that_can_be_used_are_written_and_the_others_with_reasons(read, checked, tmp_path):
    out = tmp_path / "fixed.jsonl"
    report = check(*read(BROKEN), fix=out)
    assert report.exit_code == 2 and report.fixed["rows"] == 71 and report.fixed["left_out"] == 6
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert kept == [*ROWS, BROKEN[-1]]
    others = [json.loads(line) for line in (tmp_path / "fixed.left-out.jsonl").read_text().splitlines()]
    assert {row["place"] for row in others} == {f"rows.jsonl:{line}" for line in range(71, 77)}
    reasons = {row["place"]: row["reason"] for row in others}
    assert reasons["rows.jsonl:73"] == "completion is empty" and reasons["rows.jsonl:76"] == "repeats an earlier row"
    assert [row.get("row") for row in others if row["place"] == "rows.jsonl:74"] == [BROKEN[73]]
    again = checked(kept)
    assert again.errors == [] and {finding.check for finding in again.findings} == {"rows rendered already"}


def test_dev_rows_of_a_file_of_their_own_are_looked_at_too(read, tmp_path):
    for name in ("dev.jsonl", "more/rows.jsonl"):  # the second is called as the training file is
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            "".join(json.dumps(row) + "\n" for row in [{"prompt": "", "completion": "x"}, *usable(99)[80:]])
        )
    report = check(*read(data__dev__path=str(tmp_path / "dev.jsonl"), method__target_modules=["q_prj"]))
    assert len(report.errors) == 2 and "data.dev.path: 1 of 20 rows" in report.errors[0]
    assert report.unusable == {"dev.jsonl:1": "prompt is empty"}
    report = check(*read(data__dev__path=str(tmp_path / "more" / "rows.jsonl")))
    assert len(report.errors) == 1 and report.unusable == {}


def test_a_folder_becomes_one_file_with_splits(read, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, rows in (("train", [*ROWS[:60], ROWS[0]]), ("dev", ROWS[60:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check(*read(data__train__path=str(folder)), fix=tmp_path / "one.jsonl")
    written = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert report.fixed["left_out"] == 1 and len(written) == 70
    assert [row.pop("split") for row in written] == ["dev"] * 10 + ["train"] * 60
    report = check(*read(data__train__path=str(tmp_path / "one.jsonl")))
    assert report.errors == report.findings == [] and report.plan["rows"]["dev"] == 10


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ({"data__train__path": "builtin:rows"}, "out.jsonl", "sorts rows of your own"),
        ({}, "out.csv", "call the file .jsonl"),
        ({}, "rows.jsonl", "exists; give --fix the name of a new file"),
    ],
)
def test_fix_refuses_what_it_cannot_write(read, tmp_path, settings, name, message):
    with pytest.raises(module.InputError, match=message):
        check(*read(**settings), fix=tmp_path / name)


def test_an_unfinished_run_is_looked_at_before_it_goes_on(read, tmp_path):
    out = RunDir(tmp_path / "run")
    config, _ = read(train__max_steps=4, train__warmup_steps=1, train__eval_steps=2, evaluate__limit=0)
    train(config, out.path)
    report = check(config, out=out.path)
    assert "already holds a run" in report.errors[0], "a new run there"
    report = check(config, out=tmp_path / "other")
    assert report.errors == []

    from ghosttune.config.loading import read_config

    def resumed():
        report = check(*read_config(out.config), out=out.path, resume=True)
        return report.errors, [finding.check for finding in report.findings]

    assert resumed() == ([], ["run finished already"])
    record = out.read_record()
    out.write_record(record | {"status": "stopped"})
    assert resumed() == ([], [])
    packages = record["environment"]["packages"] | {"torch": "1.0"}
    out.write_record(record | {"status": "stopped", "environment": record["environment"] | {"packages": packages}})
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace("white", "black"))
    out.config.write_text(out.config.read_text().replace("max_steps: 4", "max_steps: 6"))
    weights = next(out.checkpoint(4).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    errors, findings = resumed()
    assert findings == ["versions changed since the start"]
    assert any("was edited since the run was started" in error for error in errors)
    assert any("changed since" in error and "rows.jsonl" in error for error in errors)
    assert len(errors) == 3 and "checkpoint" in errors[2]


def test_packages_of_other_versions_are_found(monkeypatch):
    assert unmet_requirements() == [], "those of this environment"
    wrong = ["torch>=99", "nothing-of-the-kind>=2", 'pytest<1; extra == "dev"', 'absent>1; extra == "serve"', "numpy"]
    assert unmet_requirements(wrong) == [
        f"torch is {torch.__version__}, and ghosttune needs >=99",
        "nothing-of-the-kind is not installed, and ghosttune needs >=2",
    ]
    assert changed_versions({"a": "1", "b": "1"}, {"a": "2", "c": "1"}) == ["a 1 -> 2", "b 1 -> None", "c None -> 1"]
    monkeypatch.setattr(module, "unmet_requirements", lambda: ["torch is 1, and ghosttune needs >=2.6"])
    (found,) = module.ENVIRONMENT.findings(None)
    assert found.check == "package versions" and found.message.startswith("torch is 1")


def test_the_shipped_rows_are_as_they_should_be(checked):
    report = checked(data__train__path=str(builtin_rows()), data__max_length=256)
    assert report.errors == report.findings == []
