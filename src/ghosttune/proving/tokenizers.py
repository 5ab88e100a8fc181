"""Tokenizers made in code, with chat templates of the kinds that real models have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ghosttune.models.builtin import builtin_model_folder

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0].content %}"
    "{% else %}{% set rest = messages %}{% set system = none %}{% endif %}{% for m in rest %}"
    "{% if loop.index0 == 0 and system is not none %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content %}"
    "{% else %}{% set content = m.content %}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Once upon a time there was a little girl named Lily.",
    "User: What is the capital of France?\nAssistant: Paris is the capital of France.",
    "name[The Vaults], eatType[pub], priceRange[more than £30], customer rating[5 out of 5], near[Café Adriatic]",
]


def _wrapped(tokenizer: Any, **names: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


def _trained(tokenizer: Any, specials: list[str], alphabet: list[str]) -> Any:
    from tokenizers import trainers

    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 150, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level(specials: list[str], template: str | None = None, adds_bos: bool = False) -> Any:
    """A byte-level BPE as GPT-2's; specials are bos, eos, pad and others."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made = _trained(made, specials, sorted(pre_tokenizers.ByteLevel.alphabet()))
    if adds_bos:
        bos = specials[0]
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))]
        )
    named = _wrapped(made, bos_token=specials[0], eos_token=specials[1], pad_token=specials[2])
    named.chat_template = template
    return named


def first_word_only(template: str | None = None) -> Any:
    """A SentencePiece-like BPE that puts a space before the first word of a text, and nowhere else."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    made = _trained(
        made, ["<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>"], [chr(c) for c in range(32, 127)] + ["\n"]
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    named = _wrapped(made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    named.chat_template = template
    return named


SMALL = ["<bos>", "<eos>", "<pad>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]


def from_folder(folder: Path, template: str | None = None) -> Any:
    """The tokenizer of a folder, with another chat template where one is given."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.chat_template = template or tokenizer.chat_template
    return tokenizer


MADE: dict[str, Callable[[], Any]] = {
    "small": lambda: byte_level(SMALL),
    "small-chatml": lambda: byte_level(SMALL, CHATML),
    "small-llama2": lambda: byte_level(SMALL, LLAMA_2, adds_bos=True),
    "small-gemma": lambda: byte_level(SMALL, GEMMA, adds_bos=True),
    "first-word": lambda: first_word_only(),
    "first-word-zephyr": lambda: first_word_only(ZEPHYR),
    "builtin": lambda: from_folder(builtin_model_folder("builtin:tiny")),
}
"""Tokenizers that need no file but those of the package."""

ONLY_ASCII = {"first-word", "first-word-zephyr"}
NO_SYSTEM = {"small-gemma"}
