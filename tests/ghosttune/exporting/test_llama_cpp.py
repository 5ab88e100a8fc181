"""What llama.cpp computes from files written here, against Transformers: runs where llama-cpp-python is installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exported_families import CONFIGS, small_model, tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ghosttune.exporting.gguf_files import Asking, write_model
from ghosttune.exporting.vocabulary import FIRST_CUTS
from ghosttune.proving.tokenizers import CORPUS

pytestmark = pytest.mark.slow(seconds=60)

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: it is built from source")

TEXTS = [
    "I'll say: it's 12345 of 67, isn't it?\n\n  Two  spaces,\ttabs\r\n",
    "名前は？ Zoë — naïve café 😀 WE'LL",
    "x=[1,2];y+=3 // ok\n\n\n",
    " leading and trailing ",
]


def opened(path, **options):
    return llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, verbose=False, type_k=0, type_v=0, **options)


@pytest.mark.parametrize("family", CONFIGS)
def test_logits_of_every_family(family, tmp_path):
    model, path = small_model(family), tmp_path / "model.gguf"
    write_model(model, tokenizer(), Asking(None, False, 2), path, "f32", family)
    ids = torch.randint(6, 1536, (1, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0].numpy()
    engine = opened(path, logits_all=True)
    engine.eval(ids[0].tolist())
    difference = np.abs(engine.scores[:48] - expected).max() / np.abs(expected).max()
    assert difference < 2e-3


@pytest.mark.parametrize(("name", "whole", "stages"), FIRST_CUTS, ids=[name for name, _, _ in FIRST_CUTS])
def test_texts_are_cut_alike(name, whole, stages, tmp_path):
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(ignore_merges=whole))
    made.pre_tokenizer = pre_tokenizers.Sequence([_stage(stage) for stage in stages])
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([*CORPUS, *TEXTS] * 3, trainer)
    own = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")
    path = tmp_path / "model.gguf"
    write_model(small_model("llama"), own, Asking(None, False, 0), path, "f16", name)
    engine = opened(path)
    assert engine.metadata["tokenizer.ggml.pre"] == name
    for text in TEXTS:
        assert engine.tokenize(text.encode(), add_bos=False, special=True) == own(text).input_ids


def _stage(stage):
    if stage["type"] == "Digits":
        return pre_tokenizers.Digits(individual_digits=stage["individual_digits"])
    if stage["type"] == "Split":
        return pre_tokenizers.Split(Regex(stage["pattern"]["Regex"]), "isolated")
    return pre_tokenizers.ByteLevel(add_prefix_space=stage["add_prefix_space"], use_regex=stage["use_regex"])
