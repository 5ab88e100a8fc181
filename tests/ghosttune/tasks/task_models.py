"""Small random models of every kind a task reads, without dropout, with tokenizers made from a few words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_llama import small_llama

WORDS = """
the a film was is great lovely warm awful dull cold poor really number who made it in paris london rome anna ben lives
works at museum and saw near river on monday did what where when answer colour red green blue not
"""
NUMBERS = [str(number) for number in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
MARKS = [".", ",", "?", "!", "-", "(", ")"]

WIDTH = {
    "initializer_range": 0.2,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


def word_piece(pair_marks: bool = True) -> Any:
    """A BERT-like tokenizer; without `pair_marks` it puts nothing around or between texts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(97, 123)] + [str(digit) for digit in range(10)]
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *WORDS.split(),
        *NUMBERS,
        *MARKS,
        *letters,
        *(f"##{one}" for one in letters),
    ]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    if pair_marks:
        marks = [(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")]
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[SEP]",
    )


def bert(tokenizer: Any) -> Any:
    from transformers import BertConfig, BertModel

    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **WIDTH, **dropout))


def distilbert(tokenizer: Any) -> Any:
    from transformers import DistilBertConfig, DistilBertModel

    shape = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "initializer_range": 0.2, "dropout": 0.0}
    shape |= {"attention_dropout": 0.0, "seq_classif_dropout": 0.0, "qa_dropout": 0.0}
    return DistilBertModel(DistilBertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape))


def llama(tokenizer: Any) -> Any:
    shape = {"max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None, "eos_token_id": 2}
    return small_llama(len(tokenizer), classifier_dropout=0.0, **shape)


def t5(tokenizer: Any) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
    special = {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **shape, **special))
    with torch.no_grad():  # a random decoder hardly listens to its encoder, and no prompt could reach it
        for name, parameter in model.named_parameters():
            if ".EncDecAttention." in name:
                parameter.mul_(3)
    return confident(model)


def bart(tokenizer: Any) -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    stack = {"layers": 2, "attention_heads": 2, "ffn_dim": 24}
    shape = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in stack.items()}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    shape |= {
        "d_model": 16,
        "max_position_embeddings": 64,
        "dropout": 0.0,
        "init_std": 0.2,
        "forced_eos_token_id": None,
    }
    return confident(BartForConditionalGeneration(BartConfig(vocab_size=len(tokenizer), **shape, **special)))


def confident(model: Any) -> Any:
    """The model with longer rows in its output layer, which stays frozen: short ones cannot say a word is certain."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(5)
    return model


FAMILIES: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "bert": (bert, True),
    "distilbert": (distilbert, True),
    "llama": (llama, False),
    "t5": (t5, True),
    "bart": (bart, True),
}
"""How a family's model is made, and whether its tokenizer frames texts with marks."""


def model_folder(family: str, folder: Path) -> Path:
    """A folder with the family's bare model, without a head for any task, and its tokenizer."""
    build, pair_marks = FAMILIES[family]
    tokenizer = word_piece(pair_marks)
    torch.manual_seed(3)
    build(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
