"""`model.chat_template`: a file's template in place of the model's own, from the rows to the merged folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from ghosttune.config.loading import load_config
from ghosttune.config.rendering import plain_yaml
from ghosttune.errors import ConfigError, GhosttuneError, RunError
from ghosttune.inference.pipeline import Pipeline
from ghosttune.models.loading import load_tokenizer
from ghosttune.stages.prepare import prepare
from ghosttune.stages.runs import Run
from ghosttune.workflows.merge import merge
from ghosttune.workflows.train import resume, train

OWN = """\
{%- for message in messages -%}
[{{ message.role | upper }}] {{ message.content }}
{%- if message.role == 'assistant' %}{{ eos_token }}{% endif %}

{% endfor %}
{%- if add_generation_prompt %}[ASSISTANT] {% endif %}
"""
ASKED = [{"role": "user", "content": "Where is Lily?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "In France."}]


def settings(chat_template: Any, rows: str = "builtin:rows", **others: Any) -> dict[str, Any]:
    return {
        "model": {"name": "builtin:tiny", "device": "cpu", "chat_template": chat_template},
        "data": {"train": {"path": rows}, "dev": {"fraction": 0.2}, **others},
        "train": {"max_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 2},
        "measure": {"norms": None, "ledger": None},
        "evaluate": {"limit": 0},
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    rows = [{"messages": [{"role": "user", "content": f"Count to {n}."}, *ANSWERED[1:]]} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.jinja").write_bytes(OWN.replace("\n", "\r\n").encode())
    return folder


@pytest.fixture(scope="module")
def run(world: Path) -> Run:
    """A finished run whose template's file is gone."""
    file = world / "passing.jinja"
    file.write_text(OWN)
    trained = train(load_config(settings(str(file), str(world / "rows.jsonl"))), world / "run")
    file.unlink()
    return trained


def official(messages: list[dict[str, str]], **how: Any) -> str:
    """As Transformers writes them with the same template."""
    from ghosttune.models.builtin import builtin_model_folder

    tokenizer = AutoTokenizer.from_pretrained(builtin_model_folder("builtin:tiny"))
    return tokenizer.apply_chat_template(messages, chat_template=OWN, tokenize=False, **how)


def test_rows_are_written_as_the_file_says_and_the_answer_alone_trains(world: Path) -> None:
    prepared = prepare(load_config(settings(str(world / "own.jinja"), str(world / "rows.jsonl"))))
    assert prepared.config.data.template == "chat"
    tokenizer, row = prepared.encoder.tokenizer, prepared.train.features[0]
    question = prepared.train_records[0].turns[0].content
    asked = official([{"role": "user", "content": question}], add_generation_prompt=True)
    assert asked == f"[USER] {question}\n[ASSISTANT] "
    assert tokenizer.decode(row.input_ids.tolist()) == f"{asked}In France.{tokenizer.eos_token}"
    assert tokenizer.decode(row.input_ids[row.trained].tolist()) == f"In France.{tokenizer.eos_token}"


def test_the_model_keeps_its_own_template_where_none_is_named() -> None:
    own = load_tokenizer(load_config(settings(None)).model).chat_template
    assert "<|" in own and own != OWN
    assert load_tokenizer(load_config(settings(OWN)).model).chat_template == OWN


def test_the_run_has_the_text_and_its_digest(run: Run) -> None:
    assert yaml.safe_load(run.folder.config.read_text())["model"]["chat_template"] == OWN
    assert "  chat_template: |\n    {%- for message in messages -%}\n" in run.folder.config.read_text()
    assert run.record["model"]["chat_template"] == hashlib.sha256(OWN.encode()).hexdigest()
    assert run.record["origins"]["model.chat_template"].endswith("/passing.jinja")


def test_the_run_answers_and_is_merged_when_the_file_is_gone(run: Run, tmp_path: Path) -> None:
    pipeline = Pipeline.from_run(run.folder.path)
    tokenizer = pipeline.encoder.tokenizer
    expected = tokenizer(official(ASKED, add_generation_prompt=True), add_special_tokens=False).input_ids
    assert pipeline.prompt_ids("Where is Lily?") == expected
    merge(run.folder.path, tmp_path / "merged")
    for folder in (run.folder.adapter, run.folder.last, tmp_path / "merged"):
        stored = AutoTokenizer.from_pretrained(folder)
        assert stored.apply_chat_template(ANSWERED, tokenize=False) == official(ANSWERED)
    assert Pipeline.from_model(str(tmp_path / "merged")).prompt_ids("Where is Lily?") == expected


def test_a_changed_file_is_refused_by_name_and_one_that_is_gone_is_not(run: Run) -> None:
    record = json.loads(run.folder.record.read_text())
    file = Path(record["origins"]["model.chat_template"])
    run.folder.record.write_text(json.dumps(record | {"status": "stopped"}))
    try:
        file.write_text(OWN.replace("[USER]", "[PERSON]").replace("upper", "lower"))
        with pytest.raises(RunError, match=r"passing\.jinja changed since .*run was started"):
            resume(run.folder.path)
        file.write_text(OWN)
        assert resume(run.folder.path).record["status"] == "finished"
        run.folder.record.write_text(json.dumps(record | {"status": "stopped"}))
        file.unlink()
        assert resume(run.folder.path).record["status"] == "finished"
    finally:
        file.unlink(missing_ok=True)
        run.folder.record.write_text(json.dumps(record))


def test_the_text_may_stand_in_the_configuration(world: Path) -> None:
    config = load_config(settings(str(world / "own.jinja")))
    (world / "again.yaml").write_text(plain_yaml(config))
    assert config.model.chat_template == OWN, "lines end as Python reads them"
    assert load_config(world / "again.yaml").model.chat_template == OWN
    assert config.origins["model.chat_template"] == str(world / "own.jinja")


def test_a_path_is_that_of_every_other_file_of_the_configuration(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    (world / "run.yaml").write_text("model: {chat_template: own.jinja}\ndata: {train: {path: rows.jsonl}}\n")
    config = load_config("run.yaml")
    assert (config.model.chat_template, config.data.train.path) == (OWN, str(world / "rows.jsonl"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("folder", "Is a directory"),
        (b"\xff\xfe{{ a }}", "not UTF-8"),
        (b"", "no chat template: it has neither"),
        (b"def template(): pass", "no chat template: it has neither"),
        (b"{{ a }}" + b" " * 100_000, "more than 100,000 bytes"),
    ],
)
def test_a_file_that_is_no_template_is_a_problem_of_the_setting(content: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / "x.jinja"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    (tmp_path / "run.yaml").write_text(f"model:\n  chat_template: {file}\n  dtype: float8\n")
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "run.yaml")
    problems = {problem.setting: problem for problem in error.value.problems}
    assert problems.keys() >= {"model.chat_template", "model.dtype"}, "all at once"
    assert said in problems["model.chat_template"].message and str(file) in problems["model.chat_template"].message
    assert problems["model.chat_template"].origin.endswith("run.yaml:2")


@pytest.mark.parametrize("value", ["", "  ", 5, ["a"], "a\0b"])
def test_what_is_neither_a_path_nor_a_template_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.chat_template"):
        load_config(settings(value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% for message in messages %}{{ message.content }", "cannot be used in line 1"),
        ("{% for message in messages %}{{ message.content }}{% endfor %}", "no special token behind an answer"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more than"),
        ("{{ 'a' * 10 ** 9 }}", "makes more text"),
        ("{% include '/etc/passwd' %}", "names another file"),
        ("{{ messages.__class__.__mro__ }}", "chat template"),
        ("{{ raise_exception('only for us') }}", "only for us"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_with_its_file(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.jinja").write_text(text)
    with pytest.raises(ConfigError) as error:
        prepare(load_config(settings(str(tmp_path / "x.jinja"))))
    assert said in str(error.value) and str(tmp_path / "x.jinja") in str(error.value)


def test_a_template_that_nothing_reads_is_refused(world: Path) -> None:
    named = settings(str(world / "own.jinja"), str(world / "rows.jsonl"), template="turns")
    with pytest.raises(ConfigError, match=r"data\.template: turns does not read it"):
        prepare(load_config(named))
    labelled = [{"text": f"word {n}", "label": "ab"[n % 2]} for n in range(12)]
    (world / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    named = settings(str(world / "own.jinja"), str(world / "labelled.jsonl")) | {
        "task": {"type": "sequence_classification"}
    }
    with pytest.raises(ConfigError, match=r"model\.chat_template"):
        prepare(load_config(named))


def test_rows_that_the_template_leaves_out_are_refused(world: Path) -> None:
    """The same proof as of a model's own: what a row holds is written, or the row is named."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    rows = [json.loads(line) | {"tools": tools} for line in (world / "rows.jsonl").read_text().splitlines()]
    (world / "tools.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(GhosttuneError, match="leaves out"):
        prepare(load_config(settings(OWN, str(world / "tools.jsonl"))))
