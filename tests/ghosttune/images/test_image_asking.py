"""A model that sees, asked by every command that asks: the answers are those of `model.generate` on the same image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from seeing import picture, write_album
from transformers import AutoProcessor
from typer.testing import CliRunner

from ghosttune.cli.main import app
from ghosttune.data.turns import Turn
from ghosttune.errors import DataError, InputError
from ghosttune.inference.chatting import Conversation
from ghosttune.inference.pipeline import Pipeline
from ghosttune.stages.prepare import prepare
from ghosttune.workflows.infer import infer
from ghosttune.workflows.train import train

NEW = 8
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


@pytest.fixture(scope="module")
def run(image_config, tmp_path_factory) -> Any:
    """A run whose end answers its dev rows."""
    rows = write_album(tmp_path_factory.mktemp("album"), 24, texts=4)
    config = image_config(rows, evaluate__limit=3, evaluate__max_new_tokens=NEW)
    return train(config, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def pipeline(run) -> Pipeline:
    return Pipeline.open(run.path, "cpu")


@pytest.fixture
def album(tmp_path) -> Path:
    for name, colour, size in (("a", "red", (12, 9)), ("b", "blue", (30, 20))):
        picture(tmp_path / f"{name}.png", colour, size)
    return tmp_path


def by_transformers(pipeline: Pipeline, turns: tuple[Turn, ...]) -> str:
    """The greedy answer by the processor and `model.generate` alone."""
    processor = AutoProcessor.from_pretrained(pipeline.settings.name)  # type: ignore[union-attr]
    template = pipeline.encoder_of(turns).template
    text = "".join(part.text for part in template.prompt(turns))
    images = [Image.open(image).convert("RGB") for turn in turns for image in turn.images]
    inputs = processor(text=text, images=images or None, add_special_tokens=False, return_tensors="pt")
    stops = template.stop_token_ids
    with torch.no_grad():
        ids = pipeline.model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=stops, pad_token_id=0
        )[0, inputs["input_ids"].shape[1] :].tolist()
    if ids and ids[-1] in stops:
        ids.pop()
    return processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def asked(question: str, *images: Path) -> tuple[Turn, ...]:
    return (Turn("user", "<image>\n" * len(images) + question, images=tuple(map(str, images))),)


def test_a_run_is_judged_by_its_answers(run, pipeline):
    rows = [json.loads(line) for line in (run.path / "predictions" / "dev.jsonl").read_text().splitlines()]
    assert rows and any(row.get("images") for row in rows)
    questions = {row["example_id"]: row for row in rows}
    seen = 0
    for record in prepare(run.config).dev_records:
        if (row := questions.get(record.example_id)) is not None:
            assert row["output"] == by_transformers(pipeline, record.turns[:-1])
            seen += 1
    assert seen == len(rows) and run.evaluation


def test_rows_of_a_file_are_answered_and_faults_cost_no_other(run, pipeline, album):
    (album / "cut.png").write_bytes((album / "a.png").read_bytes()[:40])
    rows = [
        {"id": "one", "prompt": "<image>\nWhich colour?", "image": "a.png"},
        {"id": "two", "prompt": "<image> and <image>?", "images": ["a.png", "b.png"]},
        {"id": "words", "prompt": "Only words"},
        {"id": "gone", "prompt": "<image>\nWhich?", "image": "missing.png"},
        {"id": "cut", "prompt": "<image>\nWhich?", "image": "cut.png"},
        {"id": "unsaid", "prompt": "<image> <image>", "image": "a.png"},
    ]
    source = album / "asked.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    infer(str(run.path), source, album / "out.jsonl", max_new_tokens=NEW, device="cpu")
    found = {row["example_id"]: row for row in map(json.loads, (album / "out.jsonl").read_text().splitlines())}
    a, b = album / "a.png", album / "b.png"
    assert found["one"]["output"] == by_transformers(pipeline, asked("Which colour?", a))
    two = (Turn("user", "<image> and <image>?", images=(str(a), str(b))),)
    assert found["two"]["output"] == by_transformers(pipeline, two)
    assert found["words"]["output"] == by_transformers(pipeline, asked("Only words"))
    assert "missing.png" in found["gone"]["error"] and "cut.png" in found["cut"]["error"]
    assert found["unsaid"]["error"] and not any("output" in found[name] for name in ("gone", "cut", "unsaid"))
    (album / "asked.csv").write_text("id,prompt,image\none,<image> Which colour?,a.png\nwords,Only words,\n")
    infer(str(run.path), album / "asked.csv", album / "table.jsonl", max_new_tokens=NEW, device="cpu")
    first, second = map(json.loads, (album / "table.jsonl").read_text().splitlines())
    assert first["output"] == by_transformers(pipeline, (Turn("user", "<image> Which colour?", images=(str(a),)),))
    assert second["output"] == found["words"]["output"]


def test_a_conversation_shows_an_image_and_remembers_it(pipeline, album, tmp_path):
    talk = Conversation(max_new_tokens=NEW).with_image(album / "a.png")
    question = talk.asking("Which colour?")
    answer = pipeline.generate([question], max_new_tokens=NEW)[0].text
    assert answer == by_transformers(pipeline, asked("Which colour?", album / "a.png"))
    further = talk.answered("Which colour?", answer)
    assert further.showing == () and further.last_question == "Which colour?"
    turns = further.asking("And now?")
    assert pipeline.generate([turns], max_new_tokens=NEW)[0].text == by_transformers(pipeline, turns)
    further.save(tmp_path / "talk.json")
    assert Conversation.load(tmp_path / "talk.json").asking("And now?") == turns
    assert further.without_last().asking("Which colour?") == question
    with pytest.raises(DataError, match=r"no\.png"):
        talk.with_image(album / "no.png")


def test_chat_shows_the_image_that_it_is_given(run, pipeline, album):
    command = ["chat", str(run.path), "--device", "cpu", "--max-new-tokens", str(NEW), "--prompt", "Which colour?"]
    told = CliRunner().invoke(app, [*command, "--image", str(album / "b.png")])
    assert told.exit_code == 0, told.output
    written = told.output.strip().encode().decode("unicode_escape")  # a terminal is shown what it would obey
    assert written == by_transformers(pipeline, asked("Which colour?", album / "b.png"))


def test_a_model_of_text_alone_says_so(album):
    told = CliRunner().invoke(
        app, ["chat", "builtin:tiny", "--device", "cpu", "--prompt", "Which?", "--image", str(album / "a.png")]
    )
    assert isinstance(told.exception, InputError), (told.exception, told.output)
    assert "builtin:tiny does not see" in str(told.exception)
