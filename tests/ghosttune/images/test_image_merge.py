"""A run over images as one plain folder: Transformers alone loads it, and answers as the run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import saved
from PIL import Image
from seeing import picture, write_album
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from ghosttune.cli.main import app
from ghosttune.data.turns import Turn
from ghosttune.inference.pipeline import Pipeline
from ghosttune.models.upstream import without_videos
from ghosttune.workflows.merge import merge
from ghosttune.workflows.train import train

NEW = 8
QUESTION = "Which colour is it?"
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


def by_transformers(folder: Path, image: Path) -> tuple[str, torch.Tensor]:
    """(greedy answer, logits behind the prompt) of what the folder holds, by its own chat template."""
    with without_videos() as besides:  # these tests run without torchvision
        processor: Any = AutoProcessor.from_pretrained(folder, backend="pil", **besides)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[[Image.open(image)]], add_special_tokens=False, return_tensors="pt")
    inputs.pop("text_replacement_offsets", None)
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
        made = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    new = made[0, inputs["input_ids"].shape[1] :].tolist()
    stops = {processor.tokenizer.eos_token_id}
    return processor.tokenizer.decode(new[:-1] if new[-1] in stops else new, skip_special_tokens=True).strip(), logits


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_merged_run_answers_a_row_with_an_image_by_transformers_alone(family, image_config, tmp_path):
    base = saved(family, tmp_path / "base")
    rows = write_album(tmp_path / "album", 8, texts=2)
    changes = {"model__name": str(base), "data__template": "chat", "train__learning_rate": 0.05}
    run = train(image_config(rows, data__max_length=600, **changes), tmp_path / "run")
    picture(tmp_path / "b.png", "blue", (30, 20))
    merge(run.path, tmp_path / "merged")
    answer, logits = by_transformers(tmp_path / "merged", tmp_path / "b.png")
    _, untouched = by_transformers(base, tmp_path / "b.png")
    assert (logits - untouched).abs().max() > 0.01, "the adapter does something"
    asked = (Turn("user", f"<image>\n{QUESTION}", images=(str(tmp_path / "b.png"),)),)
    for place in (run.path, tmp_path / "merged"):
        opened = Pipeline.open(place, "cpu")
        assert opened.generate([asked], max_new_tokens=NEW)[0].text == answer
    command = ["chat", str(tmp_path / "merged"), "--device", "cpu", "--max-new-tokens", str(NEW)]
    told = CliRunner().invoke(app, [*command, "--prompt", QUESTION, "--image", str(tmp_path / "b.png")])
    assert told.output.strip().encode().decode("unicode_escape") == answer, told.exception
