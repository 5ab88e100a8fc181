"""A tiny random LLaVA with its processor, small images, and rows in LLaVA's layout that one has to look at to learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COLOURS = {"red": (250, 10, 10), "green": (10, 240, 20), "blue": (10, 20, 250), "white": (255, 255, 255)}
SIDE, PATCH = 8, 4
TOKENS = (SIDE // PATCH) ** 2


def llava(folder: Path, **changes: Any) -> Path:
    """A folder with a random model that sees images of 8 x 8; `changes` replace what its processor is told."""
    import torch
    from transformers import AutoTokenizer, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from ghosttune.models.builtin import builtin_model_folder

    tokenizer = AutoTokenizer.from_pretrained(builtin_model_folder("builtin:tiny"))
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, **special}
    config = LlavaConfig(
        text_config={"model_type": "llama", **width, **shape},
        vision_config={"model_type": "clip_vision_model", **width, "image_size": SIDE, "patch_size": PATCH},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=TOKENS,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # what it starts with is too small to tell colours apart
                parameter.normal_(std=0.2)
        head = model.lm_head.weight  # it stays frozen: long rows of one length can say of any word that it is certain
        head.mul_(10 / head.norm(dim=1, keepdim=True))
    model.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    told = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    images = CLIPImageProcessorPil(**{**sizes, **{name: changes.pop(name) for name in [*changes] if name[:3] == "do_"}})
    LlavaProcessor(images, tokenizer, **{**told, **changes}).save_pretrained(folder)
    return folder


def picture(path: Path, colour: str, size: tuple[int, int] = (12, 9)) -> None:
    """A picture of one colour with a dark corner, so that turning it would show."""
    from PIL import Image

    image = Image.new("RGB", size, COLOURS[colour])
    image.paste((0, 0, 0), (0, 0, size[0] // 3, size[1] // 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def looked_at(colour: str, number: int = 0) -> dict[str, Any]:
    """A row that asks for the colour of its image, whose name says nothing."""
    asked = "<image>\nWhich colour is it?" if number % 2 else "Which colour is it?\n<image>"
    said = [{"from": "human", "value": asked}, {"from": "gpt", "value": colour}]
    return {"id": f"row{number}", "image": f"{number}.png", "conversations": said}


def told(number: int) -> dict[str, Any]:
    """A row of text alone, of two exchanges."""
    said = [("human", f"Say {number}"), ("gpt", f"It is {number}."), ("human", "And more?"), ("gpt", f"{number + 1}")]
    return {"id": f"text{number}", "conversations": [{"from": who, "value": what} for who, what in said]}


def write_rows(folder: Path, rows: list[dict[str, Any]], name: str = "rows.json") -> Path:
    """The rows as LLaVA publishes them, a list in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(rows))
    return folder / name


def write_album(folder: Path, count: int, texts: int = 0) -> Path:
    """A file of rows with images of all colours in turn, and rows of text among them; the images lie beside it."""
    colours = [*COLOURS] * count
    for number in range(count):
        picture(folder / "images" / f"{number}.png", colours[number], (12 + number, 9))
    rows = [looked_at(colours[number], number) for number in range(count)]
    return write_rows(folder, [*rows[: count // 2], *(told(number) for number in range(texts)), *rows[count // 2 :]])
