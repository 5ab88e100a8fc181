"""Rows with images: read or refused by name, encoded as LLaVA's own processor does, loaded when a batch needs them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from seeing import COLOURS, TOKENS, llava, looked_at, picture, told, write_album, write_rows
from transformers import AutoProcessor

from ghosttune.config.sections.data import SourceSettings
from ghosttune.data.columns import RowFault
from ghosttune.data.content import content
from ghosttune.data.encoding import Encoder
from ghosttune.data.images import ImageEncoder, ImageReader
from ghosttune.data.sources import Source, open_source
from ghosttune.data.templates import Template
from ghosttune.data.turns import images_of
from ghosttune.errors import DataError, ModelError
from ghosttune.models.loading import load_processor
from ghosttune.workflows.infer import prompt_of
from ghosttune.workflows.show import show

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def opened(path: Path) -> Source:
    return open_source(SourceSettings(name="image_text", path=str(path)))


@pytest.fixture(scope="module")
def processor(seeing_model) -> Any:
    return AutoProcessor.from_pretrained(seeing_model)


@pytest.fixture
def encoder_for(processor):
    """(kind of template, longest row, what is trained) -> encoder of rows with images."""

    def make(kind: str = "turns", max_length: int = 256, loss_on: str = "completion") -> ImageEncoder:
        tokenizer = processor.tokenizer
        tokenizer.chat_template = CHAT if kind == "chat" else None
        return ImageEncoder(Encoder(Template(kind, tokenizer), max_length, loss_on), ImageReader(processor))

    return make


def test_rows_are_read_with_their_images_and_stay_with_them(tmp_path):
    path = write_album(tmp_path, 4, texts=2)
    twice = [*json.loads(path.read_text()), {**looked_at("blue", 1), "image": "images/../1.png"}]
    source = opened(write_rows(tmp_path, twice))
    images = [images_of(record.turns) for record in source.records]
    assert images == [
        (str(tmp_path / "images" / f"{n}.png"),) if n is not None else () for n in (0, 1, None, None, 2, 3, 1)
    ]
    assert [record.example_id for record in source.records] == [
        *("row0", "row1-1", "text0", "text1", "row2", "row3", "row1-2")
    ]
    groups = [record.group for record in source.records]
    assert groups[1] == groups[6] and len(set(groups)) == 6
    assert source.records.have_images and source.row_format == "messages" and source.dropped == {}
    assert len(source.fingerprints) == 2
    picture(tmp_path / "images" / "3.png", "white", (40, 50))
    changed = opened(path).fingerprints
    assert {name for name in changed if changed[name] != source.fingerprints[name]} == {f"{path} images"}


def test_images_may_lie_beside_the_file_and_rows_in_splits(tmp_path):
    for name in ("a/1.png", "a/2.png", "3.png"):
        picture(tmp_path / name, "red")
    rows = {name: {**looked_at("red", n), "image": name} for n, name in enumerate(("a/1.png", "a/2.png", "3.png"))}
    write_rows(tmp_path, [rows["a/1.png"], rows["a/2.png"], told(1)], "train.json")
    write_rows(tmp_path, [rows["3.png"] | {"id": "other"}, rows["a/2.png"] | {"id": "same"}], "dev.json")
    source = opened(tmp_path)
    assert source.splits == ("dev", "train") or source.splits == ("train", "dev")
    assert {record.example_id: record.split for record in source.records} == {
        **{"row0": "train", "text1": "train", "other": "dev", "same": "dev"}
    }
    assert source.dropped == {"train rows that ask the same as a dev row": 1}, "one image, in two splits"


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "not shown": ({"conversations": told(1)["conversations"]}, "says <image> 0 times; it must once for each"),
    "not named": ({"image": None}, "says <image> and names no image"),
    "shown twice": ({"conversations": [{"from": "human", "value": "<image> <image>"}]}, "says <image> 2 times"),
    "several": ({"image": ["a.png", "b.png"]}, "names 2 images and says <image> 1 times"),
    "no path": ({"image": {"bytes": ""}}, "image must be the path of an image, or a list of paths"),
    "empty": ({"image": " "}, "image must be the path of an image, or a list of paths"),
    "two columns": ({"images": ["0.png"]}, "has the columns image and images"),
    "the model shows it": (
        {"conversations": [{"from": "human", "value": "Draw"}, {"from": "gpt", "value": "<image>"}]},
        "only the user shows images",
    ),
    "no answer": ({"conversations": looked_at("red")["conversations"][:1]}, "must be the assistant's answer"),
    "no text": ({"conversations": None, "image": None}, "conversations must be a list of messages"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_rows_that_do_not_show_what_they_name_are_listed(tmp_path, fault):
    changed, message = FAULTS[fault]
    picture(tmp_path / "0.png", "red")
    path = write_rows(tmp_path, [looked_at("red"), {**looked_at("red"), "id": "wrong", **changed}])
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        opened(path)
    assert list(caught.value.rows) == ["rows.json[1]"]


def test_missing_images_are_counted_and_named(tmp_path):
    path = write_album(tmp_path, 5)
    rows = [*json.loads(path.read_text()), {**looked_at("red", 1), "id": "again"}]
    for name in ("1.png", "3.png"):
        (tmp_path / "images" / name).unlink()
    with pytest.raises(DataError, match=r"2 of 5 images, which 3 rows show, are not below .*images") as caught:
        opened(write_rows(tmp_path, rows))
    assert list(caught.value.rows.values()) == ["1.png is not there", "3.png is not there", "1.png is not there"]
    with pytest.raises(DataError, match=r"needs data\.train\.path"):
        open_source(SourceSettings(name="image_text"))


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_an_image_that_cannot_be_opened_is_named_by_the_batch_that_needs_it(tmp_path, encoder_for, damage):
    source, encoder = opened(write_album(tmp_path, 2)), encoder_for()
    file = tmp_path / "images" / "1.png"
    whole = file.read_bytes()
    file.write_bytes({"empty": b"", "text": b"no image", "cut": whole[: len(whole) // 2]}[damage])
    rows = encoder.encode(source.records).features
    collate = encoder.collator()
    assert "shown.pixel_values" in collate(rows[:1])
    with pytest.raises(DataError, match=re.escape(f"the image {file} cannot be opened")):
        collate(rows)


@pytest.mark.parametrize("kind", ["turns", "plain", "chat"])
def test_a_row_is_what_the_processor_makes_of_its_text_and_image(tmp_path, encoder_for, processor, kind):
    source, encoder = opened(write_album(tmp_path, 4, texts=1)), encoder_for(kind)
    for record, row in zip(source.records, encoder.encode(source.records).features, strict=True):
        text = "".join(part.text for part in encoder.template.render(record.turns))
        own = {"text": text, "add_special_tokens": False, "return_tensors": "pt"}
        images = images_of(record.turns)
        expected = processor(**own, images=[Image.open(one) for one in images]) if images else processor(**own)
        assert row.input_ids.tolist() == expected["input_ids"][0].tolist()
        batch = encoder.collator()([row])
        assert ("shown.pixel_values" in batch) == ("pixel_values" in expected) == bool(images)
        if images:
            assert torch.equal(batch["shown.pixel_values"], expected["pixel_values"])
            assert (row.input_ids == processor.image_token_id).sum() == TOKENS


@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_answers_and_their_stops_are_trained_and_images_never(tmp_path, encoder_for, processor, loss_on):
    source, encoder = opened(write_album(tmp_path, 2, texts=1)), encoder_for(loss_on=loss_on)
    stop = processor.tokenizer.eos_token
    for record, row in zip(source.records, encoder.encode(source.records).features, strict=True):
        batch = encoder.collator()([row])
        trained = batch["labels"] != -100
        assert not (trained & (batch["input_ids"] == processor.image_token_id)).any()
        words = processor.tokenizer.decode(batch["input_ids"][trained])
        if loss_on == "completion":
            answers = [turn.content for turn in record.turns if turn.role == "assistant"]
            assert words.split() == "".join(f" {answer}{stop}" for answer in answers).split()
        else:
            assert row.targets == len(row) - 1 - TOKENS * len(images_of(record.turns))


def test_a_batch_holds_the_pixels_of_the_rows_that_show_some_in_order(tmp_path, encoder_for):
    source, encoder = opened(write_album(tmp_path, 4, texts=2)), encoder_for()
    rows, collate = encoder.encode(source.records).features, encoder.collator()
    alone = [collate([row]).get("shown.pixel_values") for row in rows]
    assert [one is None for one in alone] == [False, False, True, True, False, False]
    order = [5, 2, 0, 3, 1]
    together = collate([rows[place] for place in order])
    assert together["input_ids"].shape[0] == 5
    assert torch.equal(
        together["shown.pixel_values"], torch.cat([one for place in order if (one := alone[place]) is not None])
    )
    assert "shown.pixel_values" not in collate(rows[2:4])


def test_a_row_that_is_too_long_loses_words_and_not_its_image(tmp_path, encoder_for, processor):
    picture(tmp_path / "0.png", "red")
    row = looked_at("red")
    row["conversations"][0]["value"] = f"<image>\n{'so ' * 40}\nWhich colour?"
    source = opened(write_rows(tmp_path, [row]))
    (whole,) = encoder_for().encode(source.records).features
    shorter = encoder_for(max_length=len(whole) - 20).encode(source.records)
    (cut,) = shorter.features
    assert len(cut) <= len(whole) - 20 and shorter.cut_tokens >= 20
    assert (cut.input_ids == processor.image_token_id).sum() == TOKENS
    assert np.array_equal(cut.input_ids[cut.trained], whole.input_ids[whole.trained])
    with pytest.raises(DataError, match="answer and cue need"):
        encoder_for(max_length=TOKENS + 8).encode(source.records)


def test_other_readers_refuse_rows_that_show_an_image(tmp_path):
    picture(tmp_path / "0.png", "red")
    path = write_rows(tmp_path, [looked_at("red")])
    with pytest.raises(DataError, match=r"such rows train with data\.train\.name: image_text"):
        open_source(SourceSettings(path=str(path)))
    with pytest.raises(RowFault, match=r"such rows train with data\.train\.name: image_text"):
        prompt_of(looked_at("red"))
    with pytest.raises(DataError, match="image_text is not for this task"):
        open_source(SourceSettings(name="image_text", path=str(path)), ("labelled_text",))


def test_a_row_reads_back_as_it_was(tmp_path):
    records = opened(write_album(tmp_path / "first", 2, texts=1)).records
    rows = [{"id": record.example_id, **content(record)} for record in records]
    again = opened(write_rows(tmp_path / "second", rows)).records
    assert [record.turns for record in again] == [record.turns for record in records]


def test_text_alone_needs_no_model_that_sees(tmp_path, tiny_model, make_config):
    from ghosttune.stages.prepare import prepare

    path = write_rows(tmp_path, [told(n) for n in range(8)])
    prepared = prepare(make_config(data__train__path=str(path), data__train__name="image_text"))
    assert type(prepared.encoder) is Encoder and len(prepared.dev) == 1


WRONG = {
    "strategy": ({"vision_feature_select_strategy": "full"}, "makes 4 tokens of an image, .* leaves room for 5"),
    "patch": ({"patch_size": 2}, "makes 4 tokens of an image, .* leaves room for 16"),
    "nothing": ({"patch_size": None}, "cannot say how many tokens an image takes"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_processor_that_does_not_fit_its_model_is_refused(tmp_path, image_config, wrong):
    from ghosttune.stages.model import adapted_model
    from ghosttune.stages.prepare import prepare

    changes, message = WRONG[wrong]
    folder = llava(tmp_path / "model", **changes)
    config = image_config(write_album(tmp_path, 8), model__name=str(folder))
    with pytest.raises(ModelError, match=message):
        adapted_model(prepare(config))


def test_a_model_that_does_not_see_is_refused(tmp_path, tiny_model, image_config):
    config = image_config(write_album(tmp_path, 4), model__name=str(tiny_model))
    with pytest.raises(ModelError, match="does not see"):
        load_processor(config.model)


def test_pillow_is_asked_for_by_the_name_of_its_extra(monkeypatch, image_config, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"ghosttune\[images\]"):
        load_processor(image_config(tmp_path).model)


def test_what_is_said_of_the_dataset():
    text, facts = show("datasets", "image_text")
    assert "LLaVA-Instruct-150K" in text and facts["group"].startswith("the images")
    assert {"source", "revision", "licence", "prompt", "completion", "stop", "metrics", "anchor"} <= facts.keys()


def test_every_colour_is_another_picture(tmp_path, processor):
    paths = [tmp_path / f"{colour}.png" for colour in COLOURS]
    for path in paths:
        picture(path, path.stem)
    pixels = ImageReader(processor).inputs([[str(path)] for path in paths])["pixel_values"]
    assert len({tuple(one.flatten().tolist()) for one in pixels}) == len(COLOURS)
