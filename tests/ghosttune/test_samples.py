"""Answers to the same dev prompts at every evaluation: what is recorded and shown, and that training is the same."""

from __future__ import annotations

import json

import pytest
from test_evaluate import likeliest

from ghosttune import report, train
from ghosttune.choosing.opened import OpenedRun
from ghosttune.errors import ConfigError
from ghosttune.judging.sampled import samples_of
from ghosttune.reports.markup import Markup
from ghosttune.run.directory import RunDir
from ghosttune.stages.prepare import prepare

SHORT = {
    "train__max_steps": 3,
    "train__eval_steps": 1,
    "train__save_steps": 1,
    "train__save_total_limit": 3,
    "train__learning_rate": 0.05,
    "train__warmup_steps": 0,
    "evaluate__max_new_tokens": 6,
}


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """Three updates, an evaluation after each, two prompts answered at every one."""
    from ghosttune.proving.specimens import short_run, write_rows

    folder = tmp_path_factory.mktemp("sampled")
    config = short_run(tiny_model, write_rows(folder / "rows.jsonl"), evaluate__samples=2, **SHORT)
    return train(config, folder / "run")


def sampled(folder: RunDir) -> list[dict]:
    return [event for event in folder.events() if event["event"] == "samples"]


def test_every_evaluation_has_the_answers_of_the_weights_it_judged(run):
    events = sampled(run.folder)
    assert [event["step"] for event in events] == [0, 1, 2, 3]
    asked = events[0]["asked"]
    assert len(asked) == 2 and all("asked" not in event for event in events[1:])
    opened, pipeline = OpenedRun(run.path), run.pipeline()
    for event in events[1:]:
        pipeline.model = opened.at(event["step"]).eval()
        expected = [likeliest(pipeline, one["prompt"]) for one in asked]
        assert [answer["output"] for answer in event["answers"]] == expected
        assert [answer["example_id"] for answer in event["answers"]] == [one["example_id"] for one in asked]
    with pipeline.model.disable_adapter():
        assert [answer["output"] for answer in events[0]["answers"]] == [
            likeliest(pipeline, one["prompt"]) for one in asked
        ]
    texts = {json.dumps([answer["output"] for answer in event["answers"]]) for event in events}
    assert len(texts) > 1, "the weights moved, and so did the answers"


def test_they_are_among_the_prompts_of_the_last_evaluation(run):
    answered = {row["example_id"]: row["base_output"] for row in run.predictions}
    first = {answer["example_id"]: answer["output"] for answer in sampled(run.folder)[0]["answers"]}
    assert first.items() <= answered.items()


def test_training_is_the_same_without_them(run, tmp_path):
    config = run.config
    other = train(
        config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"samples": 0})}), tmp_path / "r"
    )
    names = "adapter/adapter_model.safetensors", "last/adapter_model.safetensors"
    assert all((run.path / name).read_bytes() == (other.path / name).read_bytes() for name in names)
    assert sampled(other.folder) == []
    assert [e for e in run.folder.events() if e["event"] != "samples"] == other.folder.events()


def test_the_report_shows_how_they_changed(run):
    page = report(run.path).read_text(encoding="utf-8")
    section = page.partition('id="samples"')[2].partition("</section>")[0]
    assert "How the answers changed" in section
    for event in sampled(run.folder):
        for one in event.get("asked", []):
            assert Markup(one["example_id"]) in section
    assert section.count("<tr>") == 2 * (1 + 4), "two prompts, four evaluations, and their heads"


def test_tensorboard_reads_them_back(make_config, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(make_config(evaluate__samples=1, run__trackers=["tensorboard"], **SHORT), tmp_path / "run")
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
    board = EventAccumulator(str(folder))
    board.Reload()
    (tag,) = [tag for tag in board.Tags()["tensors"] if tag.startswith("samples/")]
    shown = {event.step: event.tensor_proto.string_val[0].decode() for event in board.Tensors(tag)}
    for event in sampled(run.folder):
        assert all(line in shown[event["step"]] for line in event["answers"][0]["output"].splitlines())


def test_tasks_that_predict_are_sampled_too(make_config, tmp_path):
    rows = tmp_path / "labelled.jsonl"
    rows.write_text(
        "".join(json.dumps({"id": f"r{n}", "text": f"row {n}", "label": "ab"[n % 2]}) + "\n" for n in range(20))
    )
    config = make_config(
        task__type="sequence_classification", data__train__path=str(rows), evaluate__samples=2, **SHORT
    )
    events = sampled(train(config, tmp_path / "run").folder)
    assert all(answer["output"] in ("a", "b") for event in events for answer in event["answers"])
    assert len(events) == 4 and len(events[0]["asked"]) == 2
    assert all(one["prompt"] == f"row {one['example_id'][1:]}" for one in events[0]["asked"])


def test_rows_that_ask_nothing_are_refused(make_config, tmp_path):
    path = tmp_path / "plain.txt"
    path.write_text("\n\n".join(f"A text about nothing, number {n}." for n in range(40)))
    prepared = prepare(make_config(data__train__path=str(path), data__loss_on="all", evaluate__samples=2))
    with pytest.raises(ConfigError, match=r"evaluate\.samples: needs dev rows with an answer"):
        samples_of(prepared, None)
