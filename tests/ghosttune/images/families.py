"""Tiny random models of the families that see, each with its own processor, made without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ghosttune.models.upstream import without_videos

WIDTH = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {"model_type": "clip_vision_model", **WIDTH, "patch_size": 4}
SIGLIP = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}

PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""As the templates of these families are: an image is a part of what is said."""


def tokenizer(special: dict[str, str], image: str) -> Any:
    """That of the built-in model, with the family's tokens, and a chat template that writes an image so."""
    from transformers import AutoTokenizer

    from ghosttune.models.builtin import builtin_model_folder

    found = AutoTokenizer.from_pretrained(builtin_model_folder("builtin:tiny"), extra_special_tokens=special)
    found.chat_template = PARTS.replace("IMAGE", image)
    return found


def shape(tokens: Any, layers: int = 2) -> dict[str, Any]:
    special = {name: getattr(tokens, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    heads = {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048}
    return {**WIDTH, "num_hidden_layers": layers, "vocab_size": len(tokens), **heads, **special}


def llava() -> tuple[Any, Any]:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokens = tokenizer({"image_token": "<image>"}, "<image>")
    config = LlavaConfig(
        text_config={"model_type": "llama", **shape(tokens)},
        vision_config={**CLIP, "image_size": 8},
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    told = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaForConditionalGeneration(config), LlavaProcessor(images, tokens, **told)


def llava_next() -> tuple[Any, Any]:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tokens = tokenizer({"image_token": "<image>"}, "<image>")
    pinpoints = [[8, 16], [16, 8], [16, 16]]
    config = LlavaNextConfig(
        text_config={"model_type": "llama", **shape(tokens)},
        vision_config={**CLIP, "image_size": 8},
        image_grid_pinpoints=pinpoints,
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
    )
    sizes = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    images = LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=pinpoints)
    told = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaNextForConditionalGeneration(config), LlavaNextProcessor(images, tokens, **told)


def qwen(family: str) -> tuple[Any, Any]:
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    names |= {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    tokens = tokenizer(names, "<|vision_start|><|image_pad|><|vision_end|>")
    of = tokens.convert_tokens_to_ids
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    sees = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if family == "Qwen2VL":
        sees |= {"embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2}
    else:
        sees |= {"hidden_size": 16, "out_hidden_size": 16, "intermediate_size": 32, "window_size": 16}
        sees |= {"fullatt_block_indexes": [1]}
    config = getattr(transformers, f"{family}Config")(
        text_config={**shape(tokens), "rope_parameters": rope},
        vision_config=sees,
        image_token_id=of("<|image_pad|>"),
        video_token_id=of("<|video_pad|>"),
        vision_start_token_id=of("<|vision_start|>"),
        vision_end_token_id=of("<|vision_end|>"),
    )
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 16 * 64}, temporal_patch_size=2
    )
    return getattr(transformers, f"{family}ForConditionalGeneration")(config), of_images(
        getattr(transformers, f"{family}Processor"), images, tokens
    )


def idefics3() -> tuple[Any, Any]:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    return _tiled(Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, Idefics3ImageProcessorPil)


def smolvlm() -> tuple[Any, Any]:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMProcessor
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    return _tiled(SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMProcessor, SmolVLMImageProcessorPil)


def _tiled(config_of: Any, model_of: Any, processor_of: Any, images_of: Any) -> tuple[Any, Any]:
    tiles = [f"<row_{row + 1}_col_{column + 1}>" for row in range(3) for column in range(3)]
    names = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"}
    names |= {"global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>"}
    tokens = tokenizer(names, "<image>")
    tokens.add_tokens(tiles, special_tokens=True)
    config = config_of(
        text_config={"model_type": "llama", **shape(tokens)},
        vision_config={**SIGLIP, "image_size": 8},
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokens.pad_token_id,
    )
    images = images_of(size={"longest_edge": 16}, max_image_size={"longest_edge": 8})
    return model_of(config), of_images(processor_of, images, tokens, image_seq_len=1)


def gemma3() -> tuple[Any, Any]:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokens = tokenizer(names, "<start_of_image>")
    of = tokens.convert_tokens_to_ids
    text = {**shape(tokens), "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
    config = Gemma3Config(
        text_config=text,
        vision_config={**SIGLIP, "image_size": 16, "vision_use_head": False},
        mm_tokens_per_image=4,
        tie_word_embeddings=False,
        boi_token_index=of("<start_of_image>"),
        eoi_token_index=of("<end_of_image>"),
        image_token_index=of("<image_soft_token>"),
    )
    images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    return Gemma3ForConditionalGeneration(config), Gemma3Processor(images, tokens, image_seq_length=4)


def of_images(kind: Any, images: Any, tokens: Any, **told: Any) -> Any:
    """The processor, without what makes videos an input: that needs torchvision."""
    has_videos = "video_processor" in kind.get_attributes()
    with without_videos() as besides:
        return kind(image_processor=images, tokenizer=tokens, **told, **(besides if has_videos else {}))


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
    "llava_next": llava_next,
    "qwen2_vl": lambda: qwen("Qwen2VL"),
    "qwen2_5_vl": lambda: qwen("Qwen2_5_VL"),
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "gemma3": gemma3,
}


def saved(family: str, folder: Path) -> Path:
    """A folder with the model and its processor; weights large enough to tell one picture from another."""
    import torch

    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
            elif "norm" not in name and parameter.dim() == 1:
                parameter.normal_(std=0.02)
        head = model.get_output_embeddings().weight
        head.mul_(6 / head.norm(dim=1, keepdim=True))
    model.save_pretrained(folder)
    with without_videos():
        processor.save_pretrained(folder)
    return folder
