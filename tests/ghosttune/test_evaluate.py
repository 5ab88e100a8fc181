"""Evaluation end to end: what is asked, what is written, and the same numbers at the end of a run and alone."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from ghosttune import evaluate, load_config, open_run, train
from ghosttune.data.questions import questions_of
from ghosttune.data.records import Record, Turn
from ghosttune.errors import ConfigError, DataError, InputError, RunError
from ghosttune.inference.likelihood import answer_nats, nats, text_blocks
from ghosttune.inference.pipeline import Pipeline
from ghosttune.metrics.judging import labels_of
from ghosttune.stages.prepare import prepare

COLOURS = ["red", "green", "blue"]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def settings(tiny_model, tmp_path_factory):
    """A short run whose dev rows give two prompts several references, and a text that is none of its business."""
    folder = tmp_path_factory.mktemp("judged")
    rows = [
        {
            "prompt": f"Say {COLOURS[n % 3]} {'please ' * (n % 5)}number {n}",
            "completion": COLOURS[n % 3],
            "split": "train",
        }
        for n in range(24)
    ]
    for n in range(7):
        asked = {"prompt": f"Name colour {n // 2}", "split": "dev"}
        rows.append(asked | {"completion": COLOURS[n % 3], "id": f"dev-{n}"})
    (folder / "general.txt").write_text("Once there was a hill.\nNobody lived there, and nobody minded.\n")
    return {
        "model": {"name": str(tiny_model), "device": "cpu"},
        "data": {"train": {"path": str(written(folder / "rows.jsonl", rows))}},
        "train": {"max_steps": 3, "warmup_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 0.02},
        "measure": {"norms": {"every": None, "effective": None}, "ledger": None},
        "evaluate": {
            "metrics": ["exact_match", "bleu", "perplexity", "likelihood_accuracy", "accuracy"],
            "max_new_tokens": 4,
            "general_text": str(folder / "general.txt"),
        },
    }


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    return train(load_config(settings), tmp_path_factory.mktemp("runs") / "run")


def test_a_run_ends_with_numbers_baselines_and_verdicts(run):
    found = run.evaluation["dev"]
    names = ["exact_match", "bleu", "perplexity", "likelihood_accuracy", "accuracy", "stopped"]
    assert list(found["adapter"]) == list(found["base"]) == names
    assert set(found["constant"]) == {"exact_match", "bleu", "likelihood_accuracy", "accuracy"}
    assert found["constant_answer"] == "red" and found["constant"]["exact_match"]["value"] == 0.75
    assert all(found["adapter"][name]["n"] == 4 for name in names)
    assert set(found["comparison"]) == {"base", "constant"}
    assert found["comparison"]["base"]["accuracy"]["verdict"] == "not distinguishable", "four prompts tell nothing"
    assert found["questions"] == 4 and found["left_out"] == 0 and found["generation"]["decoding"] == "greedy"
    assert found["details"]["adapter"]["bleu"]["signature"].startswith("nrefs:var")
    assert found["forgetting"]["change"]["n"] == 2 and found["forgetting"]["tokens"] > 10
    assert set(found["degenerate"]) == {"adapter", "base"}


def test_predictions_hold_all_references_of_a_prompt(run):
    rows = run.predictions
    assert [row["example_id"] for row in rows] == ["dev-0", "dev-2", "dev-4", "dev-6"]
    assert rows[0]["references"] == ["red", "green"] and rows[3]["references"] == ["red"]
    for row in rows:
        assert {"prompt", "output", "scores", "stopped", "tokens", "faults", "base_output", "base_scores"} <= set(row)
        assert row["scores"]["exact_match"] == float(row["output"] in row["references"])
        assert row["stopped"] or "never stops" in row["faults"]


def test_alone_gives_the_same_numbers(run, tmp_path):
    before = run.evaluation
    alone = evaluate(run.path, out=tmp_path / "alone")
    assert alone == before == json.loads((tmp_path / "alone/evaluation.json").read_text())
    assert (tmp_path / "alone/predictions/dev.jsonl").read_bytes() == run.folder.predictions("dev").read_bytes()
    assert evaluate(run.path) == before == open_run(run.path).evaluation


def test_predictions_rescore_to_the_same_metrics(run):
    from ghosttune.metrics.scoring import Corpus, Item
    from ghosttune.registry import METRICS

    items = [Item(row["output"], tuple(row["references"]), stopped=row["stopped"]) for row in run.predictions]
    for name in ("exact_match", "bleu", "stopped"):
        assert METRICS[name].build(Corpus(items)).interval.as_dict() == run.evaluation["dev"]["adapter"][name]


def test_likelihoods_equal_a_plain_forward(run):
    """Perplexity and label likelihoods against the model asked token by token, adapter and base."""
    pipeline = run.pipeline()
    turns = (Turn("user", "Name colour 0"),)
    template = pipeline.encoder.template
    for adapter in (True, False):
        (found,) = answer_nats(pipeline.model, pipeline.encoder, [(turns, "red")], adapter)
        prompt = pipeline.encoder.prompt_ids(turns)
        answer = template.tokenizer("red" + template.stop_token, add_special_tokens=False).input_ids
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            if adapter:
                logits = pipeline.model(input_ids=ids).logits[0]
            else:
                with pipeline.model.disable_adapter():
                    logits = pipeline.model(input_ids=ids).logits[0]
        logs = logits.log_softmax(-1)
        by_hand = -sum(logs[len(prompt) + at - 1, token] for at, token in enumerate(answer))
        assert found == (pytest.approx(float(by_hand), rel=1e-4), len(answer))
    rows = [(question["prompt"], question["references"][0]) for question in run.predictions]
    all_nats = answer_nats(pipeline.model, pipeline.encoder, [((Turn("user", p),), r) for p, r in rows])
    expected = math.exp(sum(nats for nats, _ in all_nats) / sum(tokens for _, tokens in all_nats))
    assert run.evaluation["dev"]["adapter"]["perplexity"]["value"] == pytest.approx(expected, rel=1e-5)


def test_general_text_is_read_in_blocks_up_to_a_number_of_tokens(run):
    pipeline = run.pipeline()
    text = "Once there was a hill and a river and a hill. " * 40
    blocks = text_blocks(pipeline.encoder, [text, text], 700)
    assert (
        sum(len(block) for block in blocks) == 700
        and max(len(block) for block in blocks) <= pipeline.encoder.max_length
    )
    found = nats(pipeline.model, blocks)
    assert found.shape == (len(blocks),) and (found > 0).all()
    assert text_blocks(pipeline.encoder, [""], 10) == []


def test_rows_given_by_hand(run, tmp_path):
    path = written(tmp_path / "new.jsonl", [{"prompt": "Name colour 0", "completion": "red"}] * 2)
    result = evaluate(run.path, path, out=tmp_path / "out", overrides=["evaluate.metrics=[exact_match, perplexity]"])
    assert set(result) == {"data-new"} and result["data-new"]["questions"] == 1
    assert (tmp_path / "out/predictions/data-new.jsonl").is_file()
    limited = evaluate(run.path, split="train", out=tmp_path / "out", overrides=["evaluate.limit=5"])["train"]
    assert (limited["questions"], limited["left_out"]) == (5, 19)
    assert set(json.loads((tmp_path / "out/evaluation.json").read_text())) == {"data-new", "train"}


def test_the_few_shot_base_answers_behind_training_rows(run, tmp_path):
    shots = ["evaluate.shots=2", "evaluate.metrics=[exact_match, perplexity]"]
    found = evaluate(run.path, overrides=shots, out=tmp_path)["dev"]
    assert set(found["comparison"]) == {"base", "few_shot", "constant"}
    assert found["shots"] == {"asked": 2, "fewest": 2, "mean": 2.0}
    pipeline = run.pipeline()
    rows = [json.loads(line) for line in Path(run.config.data.train.path).read_text().splitlines()]
    right = {row["prompt"]: row["completion"] for row in rows if row["split"] == "train"}
    (line, *_) = (json.loads(line) for line in (tmp_path / "predictions/dev.jsonl").read_text().splitlines())
    asked = found_shots(run, 2)
    assert len(asked) == 2
    assert all(right[prompt] == answer for prompt, answer in asked), "what is shown are training rows"
    turns = [Turn(role, text) for pair in asked for role, text in zip(("user", "assistant"), pair, strict=True)]
    (answer,) = pipeline.generate([(*turns, Turn("user", line["prompt"]))], adapter=False)
    assert line["few_shot_output"] == answer.text
    with pytest.raises(InputError, match="a model has none"):
        evaluate(run.config.model.name, run.config.data.train.path, split="dev", overrides=["evaluate.shots=1"])


def found_shots(run, count: int) -> list[tuple[str, str]]:
    """The training rows that a draw by id gives."""
    from ghosttune.data.splitting import sampled

    records = prepare(run.config).train_records
    first = {record.prompt[0].content: record.example_id for record in reversed(records[:])}
    asked = [record for record in records if first[record.prompt[0].content] == record.example_id]
    places = sampled((record.example_id for record in asked), count, run.config.train.seed)
    return [(asked[place].prompt[0].content, asked[place].reference) for place in places]


def test_a_model_is_judged_on_rows_and_against_another(run, tiny_model, tmp_path):
    path = written(tmp_path / "new.jsonl", [{"prompt": f"Name {n}", "completion": "red"} for n in range(3)])
    (found,) = evaluate(tiny_model, path, overrides=["evaluate.max_new_tokens=2"]).values()
    assert set(found["comparison"]) == {"constant"} and found["model"]["exact_match"]["n"] == 3
    assert not (tiny_model / "evaluation.json").exists()
    both = evaluate(run.path, path, baseline=str(tiny_model), out=tmp_path / "out")["data-new"]
    base = evaluate(run.path, path, out=tmp_path / "out")["data-new"]
    assert both["baseline"] == base["base"], "the run's base is that model"
    assert both["forgetting"]["baseline"] == base["forgetting"]["base"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"split": "test"}, RunError, "it has train, dev"),
        ({"data": "nowhere.jsonl"}, DataError, "nowhere"),
        ({"overrides": ["evaluate.limit=0", "evaluate.metrics=auto"]}, InputError, "give --limit"),
        ({"overrides": ["train.max_steps=3"]}, InputError, "only settings of `evaluate`"),
        ({"overrides": ["evaluate.metrics=[blue]"]}, ConfigError, "did you mean bleu"),
        ({"overrides": ["evaluate.metrics=[sql_execution]"]}, ConfigError, r"evaluate\.tables"),
    ],
)
def test_what_cannot_be_evaluated_is_said(run, arguments, error, message):
    with pytest.raises(error, match=message):
        evaluate(run.path, **arguments)


def test_a_model_needs_rows_and_has_no_base(tiny_model, tmp_path):
    with pytest.raises(InputError, match="--data"):
        evaluate(tiny_model)
    path = written(tmp_path / "new.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(InputError, match="no base below it"):
        evaluate(tiny_model, path, baseline="base")
    (tmp_path / "plain.jsonl").write_text('{"text": "nothing to answer"}\n')
    with pytest.raises(DataError, match="no row with an answer"):
        evaluate(tiny_model, tmp_path / "plain.jsonl")


def test_changed_rows_are_refused(run, settings):
    path = Path(settings["data"]["train"]["path"])
    original = path.read_text()
    path.write_text(original + json.dumps({"prompt": "more", "completion": "red", "split": "dev"}) + "\n")
    try:
        with pytest.raises(DataError, match="changed since"):
            evaluate(run.path)
    finally:
        path.write_text(original)


def test_what_metrics_need_is_refused_before_training(settings):
    def prepared(**changes):
        return prepare(load_config(settings | {"evaluate": settings["evaluate"] | changes}))

    with pytest.raises(ConfigError, match="does not exist"):
        prepared(general_text="/nowhere/text.txt")
    with pytest.raises(ConfigError, match="does not exist"):
        prepared(metrics=["meteor"], synonyms="/nowhere")
    with pytest.raises(DataError, match="at most 50 different"):
        labels_of([[str(n)] for n in range(51)], ["accuracy"])


def test_rows_with_one_prompt_are_one_question_with_every_reference():
    def record(name, prompt, answer):
        return Record(name, (Turn("user", prompt), Turn("assistant", answer)), prompt)

    rows = [record("a", "x", "1"), record("b", "y", "2"), record("c", "x", "3"), record("d", "x", "1")]
    pool = [*rows, record("e", "x", "4"), record("f", "z", "5")]
    text = Record("t", (Turn("text", "plain"),), "plain")
    found, left_out = questions_of([*rows, text], pool, None, seed=0)
    assert [(q.example_id, q.references) for q in found] == [("a", ("1", "3", "4")), ("b", ("2",))]
    assert left_out == 0
    assert questions_of(rows, pool, 1, seed=0)[1] == 1
    assert questions_of(rows, pool, 0, seed=0) == ([], 2)
    assert questions_of([text], [text], None, seed=0) == ([], 0)


def commanded(monkeypatch, capsys, *arguments):
    """(exit code, standard output, standard error) of `ghosttune evaluate`."""
    from ghosttune.cli.main import main

    monkeypatch.setattr(sys, "argv", ["ghosttune", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_the_command_prints_what_the_function_returns(run, tmp_path, monkeypatch, capsys):
    given = (run.path, "--out", tmp_path, "--limit", 2)
    code, printed, _ = commanded(monkeypatch, capsys, *given, "--json", "--baseline", "base")
    assert code == 0 and json.loads(printed) == evaluate(run.path, out=tmp_path, overrides=["evaluate.limit=2"])
    code, _, complaint = commanded(monkeypatch, capsys, *given, "--split", "nope")
    assert code == 2 and "no rows of a split 'nope'" in complaint and "Traceback" not in complaint


def test_a_person_reads_every_number(run, capsys):
    from ghosttune.cli.display import Display

    Display().evaluation("dev", run.evaluation["dev"])
    printed = capsys.readouterr().out
    for word in ("exact_match", "bleu", "perplexity", "stopped", "constant", "not distinguishable", "general"):
        assert word in printed


def test_the_pipeline_is_greedy(run):
    prompts = ["Name colour 0", "Say red number 1"]
    answers = Pipeline.from_run(run.path).generate(prompts)
    assert answers == Pipeline.from_run(run.path).generate(prompts)
    pipeline = Pipeline.from_run(run.path)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.text == likeliest(pipeline, prompt)


def likeliest(pipeline: Pipeline, prompt: str) -> str:
    """The answer by one forward for every token."""
    template, ids = pipeline.encoder.template, pipeline.prompt_ids(prompt)
    written: list[int] = []
    while len(written) < pipeline.max_new_tokens:
        with torch.no_grad():
            token = int(pipeline.model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax())
        if token in template.stop_token_ids:
            break
        written.append(token)
    return template.tokenizer.decode(written, skip_special_tokens=True).strip()
