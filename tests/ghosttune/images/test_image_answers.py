"""Answers to images: token for token those of Transformers, whatever stands beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, saved
from seeing import COLOURS, picture

from ghosttune.config.loading import load_config
from ghosttune.data.encoding import Encoder
from ghosttune.data.images import ImageEncoder, ImageReader, opened
from ghosttune.data.templates import Template
from ghosttune.data.turns import Turn
from ghosttune.inference.batching import RunningBatch, why_alone
from ghosttune.inference.generating import write
from ghosttune.inference.sampling import GREEDY
from ghosttune.models.loading import load_model, load_processor

NEW = 12
SIZES = ((12, 9), (40, 20), (9, 30), (64, 64))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> list[tuple[Turn, ...]]:
    """None, one, two and four images, of different sizes, in one turn or two."""
    folder = tmp_path_factory.mktemp("pictures")
    images = [str(folder / f"{colour}.png") for colour in COLOURS]
    for path, size in zip(images, SIZES, strict=True):
        picture(Path(path), Path(path).stem, size)
    first, second, third, fourth = images
    return [
        (Turn("user", "<image>\nWhich colour is it?", images=(first,)),),
        (Turn("user", "<image>\nWhich colour is it?", images=(second,)),),
        (Turn("user", "Compare <image> with <image> please", images=(second, third)),),
        (Turn("user", "No picture here, only words"),),
        (
            Turn("user", "Three: <image><image>\n<image>", images=(fourth, second, first)),
            Turn("assistant", "nice"),
            Turn("user", "and <image>?", images=(third,)),
        ),
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def seeing(request, tmp_path_factory) -> tuple[Any, Any]:
    """(a model of the family, its processor), loaded as a run does."""
    folder = saved(request.param, tmp_path_factory.mktemp(request.param))
    settings = load_config({"model": {"name": str(folder)}, "data": {"train": {"path": "builtin:rows"}}}).model
    return load_model(settings, 0).eval(), load_processor(settings)


def encoder_of(processor: Any, kind: str = "chat") -> ImageEncoder:
    return ImageEncoder(Encoder(Template(kind, processor.tokenizer), 600, "completion"), ImageReader(processor))


def answered_by_transformers(model: Any, processor: Any, encoder: ImageEncoder, turns: tuple[Turn, ...]) -> list[Any]:
    """(token ids of the prompt, those of its greedy answer) by the processor and `model.generate` alone."""
    text = "".join(part.text for part in encoder.template.prompt(turns))
    images = [opened(image) for turn in turns for image in turn.images]
    shown = {"images": [images]} if images else {}
    inputs = processor(text=[text], add_special_tokens=False, return_tensors="pt", **shown)
    inputs.pop("text_replacement_offsets", None)
    stops = {"eos_token_id": encoder.template.stop_token_ids, "pad_token_id": 0}
    ids = inputs["input_ids"][0].tolist()
    return [ids, model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **stops)[0, len(ids) :].tolist()]


def test_answers_are_those_of_transformers_alone_and_beside_others(seeing, prompts):
    model, processor = seeing
    encoder = encoder_of(processor)
    encoder.images.require_seen_by(model)
    ids = [encoder.prompt_ids(prompt) for prompt in prompts]
    expected = [answered_by_transformers(model, processor, encoder, prompt) for prompt in prompts]
    assert [[*one] for one in ids] == [prompt for prompt, _ in expected]
    answers = [answer for _, answer in expected]
    assert len({tuple(answer) for answer in answers}) > 2 and answers[0] != answers[1], "the model must look"
    stops = encoder.template.stop_token_ids
    assert write(model, ids, stops, NEW, GREEDY) == answers
    assert [write(model, [one], stops, NEW, GREEDY)[0] for one in ids] == answers


class Noting:
    """An answer that notes its greedy tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def choose(self, logits: torch.Tensor) -> int:
        return int(logits.argmax())

    def add(self, token: int) -> bool:
        self.tokens.append(token)
        return len(self.tokens) == NEW


def test_answers_join_and_leave_a_running_batch(seeing, prompts):
    model, processor = seeing
    encoder = encoder_of(processor)
    assert why_alone(model) is None
    ids = [encoder.prompt_ids(prompt) for prompt in prompts]
    batch, rows = RunningBatch(model), [Noting() for _ in ids]
    for prompt, row in zip(ids, rows, strict=True):
        batch.join(prompt, [row])
        batch.step()
    while batch.rows:
        batch.step()
    for row, prompt in zip(rows, ids, strict=True):
        (alone,) = write(model, [prompt], [model.config.get_text_config().vocab_size], NEW, GREEDY)
        assert row.tokens == alone
