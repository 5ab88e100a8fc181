"""GGUF files read back by the `gguf` package, against the weights that they are made from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from exported_families import small_model, tokenizer
from gguf import GGUFReader, dequantize
from peft import LoraConfig, get_peft_model

from ghosttune.errors import ModelError
from ghosttune.exporting.gguf_files import Asking, write_adapter, write_model
from ghosttune.exporting.vocabulary import vocabulary_of
from ghosttune.models.upstream import without_upstream_warnings

ASKING = Asking("{{ messages[0].content }}", True, 4)


def read(path):
    """Fields, and tensors as float32 by name."""
    reader = GGUFReader(path)
    tensors = {t.name: dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


def pairs_side_by_side(weight, heads):
    """Row 2i and 2i + 1 of a head are the rows i and i + half of Transformers'."""
    rows = weight.shape[0] // heads
    order = [h * rows + (i // 2) + (i % 2) * (rows // 2) for h in range(heads) for i in range(rows)]
    return weight[order]


@pytest.fixture(scope="module")
def llama():
    return small_model("llama")


def test_a_llama_in_every_entry(llama, tmp_path):
    done = write_model(llama, tokenizer(), ASKING, tmp_path / "m.gguf", "f32", "tuned")
    fields, tensors = read(tmp_path / "m.gguf")
    state = {name: value.numpy() for name, value in llama.state_dict().items()}
    layer, own = "model.layers.1.self_attn", "blk.1"
    for part, heads in (("q", 4), ("k", 2)):
        for kind in ("weight", "bias"):
            expected = pairs_side_by_side(state[f"{layer}.{part}_proj.{kind}"], heads)
            assert np.array_equal(tensors[f"{own}.attn_{part}.{kind}"], expected)
    assert np.array_equal(tensors[f"{own}.ffn_down.weight"], state["model.layers.1.mlp.down_proj.weight"])
    assert np.array_equal(tensors["output.weight"], state["lm_head.weight"])
    assert len(tensors) == done.tensors == len(state)
    assert done.parameters == sum(value.size for value in state.values())
    assert fields["general.architecture"] == "llama" and fields["general.name"] == "tuned"
    shape = {"block_count": 2, "embedding_length": 64, "attention.head_count_kv": 2, "context_length": 128}
    assert {name: fields[f"llama.{name}"] for name in shape} == shape
    assert fields["tokenizer.ggml.pre"] == "smollm" and fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.tokens"] == tokenizer().convert_ids_to_tokens(range(1536))
    assert fields["tokenizer.chat_template"] == ASKING.chat_template
    assert fields["tokenizer.ggml.add_bos_token"] is True and fields["tokenizer.ggml.eot_token_id"] == 4


@pytest.mark.parametrize(("kind", "largest"), [("f16", 5e-4), ("q8_0", 1 / 127)])
def test_smaller_kinds_round_matrices_and_nothing_else(llama, kind, largest, tmp_path):
    write_model(llama, tokenizer(), ASKING, tmp_path / "m.gguf", kind, "m")
    _, tensors = read(tmp_path / "m.gguf")
    weight = llama.model.layers[0].mlp.up_proj.weight.detach().numpy()
    error = np.abs(tensors["blk.0.ffn_up.weight"] - weight).max() / np.abs(weight).max()
    assert 0 < error <= largest
    norm = llama.model.layers[0].input_layernorm.weight.detach().numpy()
    assert np.array_equal(tensors["blk.0.attn_norm.weight"], norm)


def test_what_other_families_hold_otherwise(tmp_path):
    gemma, gpt2, llama3 = small_model("gemma"), small_model("gpt2"), small_model("llama3")
    for name, model in (("gemma", gemma), ("gpt2", gpt2), ("llama3", llama3)):
        write_model(model, tokenizer(), ASKING, tmp_path / name, "f32", name)
    _, tensors = read(tmp_path / "gemma")
    assert np.array_equal(tensors["output_norm.weight"], gemma.model.norm.weight.detach().numpy() + 1)
    assert "output.weight" not in tensors
    _, tensors = read(tmp_path / "gpt2")
    stored = gpt2.transformer.h[0].attn.c_attn.weight.detach().numpy()
    assert np.array_equal(tensors["blk.0.attn_qkv.weight"], stored.T)
    _, tensors = read(tmp_path / "llama3")
    own = llama3.model.rotary_emb.inv_freq.numpy() * tensors["rope_freqs.weight"]
    assert np.allclose(own, 10000.0 ** -(np.arange(0, 16, 2) / 16), rtol=1e-5)


def test_rows_that_do_not_divide_are_counted(tmp_path):
    from ghosttune.proving.specimens import small_llama

    done = write_model(small_llama(1536), tokenizer(), ASKING, tmp_path / "m.gguf", "q8_0", "m")
    assert len(done.whole) == 16 and "blk.0.attn_q.weight" in done.whole


def adapted(**settings):
    with without_upstream_warnings():
        return get_peft_model(small_model("llama"), LoraConfig(**settings))


def test_an_adapter_adds_what_peft_adds(tmp_path):
    model = adapted(r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], use_rslora=True)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    write_adapter(model, tmp_path / "a.gguf", "a")
    fields, tensors = read(tmp_path / "a.gguf")
    assert len(tensors) == 8 and fields["adapter.type"] == "lora" and fields["general.type"] == "adapter"

    def added(name):
        up, down = tensors[f"{name}.weight.lora_b"], tensors[f"{name}.weight.lora_a"]
        return fields["adapter.lora.alpha"] / down.shape[0] * up @ down

    layer = model.get_base_model().model.layers[1]
    expected = layer.mlp.up_proj.get_delta_weight("default").detach().numpy()
    assert np.allclose(added("blk.1.ffn_up"), expected, atol=1e-5)
    expected = layer.self_attn.q_proj.get_delta_weight("default").detach().numpy()
    assert np.allclose(added("blk.1.attn_q"), pairs_side_by_side(expected, 4), atol=1e-5)


def test_what_is_no_lora_pair_is_refused(tmp_path):
    for settings, said in (({"use_dora": True}, "DoRA"), ({"modules_to_save": ["lm_head"]}, "lm_head")):
        model = adapted(r=2, target_modules=["q_proj"], **settings)
        with pytest.raises(ModelError, match=said):
            write_adapter(model, tmp_path / "a.gguf", "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("llama", {"model_type": "olmo2"}, "olmo2 was not tried.*--llama-cpp"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("gemma2", {"query_pre_attn_scalar": 7}, "query_pre_attn_scalar"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(family, change, said, tmp_path):
    model = small_model(family)
    for name, value in change.items():
        setattr(model.config, name, value)
    with pytest.raises(ModelError, match=said):
        write_model(model, tokenizer(), ASKING, tmp_path / "m.gguf", "f16", "m")


def test_values_that_f16_does_not_hold_are_refused(tmp_path):
    model = small_model("llama")
    model.lm_head.weight.data[3, 3] = 1e5
    with pytest.raises(ModelError, match=r"output.weight holds 100000.*--kind bf16"):
        write_model(model, tokenizer(), ASKING, tmp_path / "m.gguf", "f16", "m")
    write_model(model, tokenizer(), ASKING, tmp_path / "m.gguf", "bf16", "m")


def changed(**parts):
    """The built-in tokenizer with other parts in its tokenizer.json."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    own = json.loads(tokenizer().backend_tokenizer.to_str())
    for name, value in parts.items():
        own[name] = value(own[name]) if callable(value) else value
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(own)), eos_token="<eos>")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, "pre_tokenizer"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer"),
        ({"added_tokens": lambda all: [token | {"rstrip": True} for token in all]}, "<pad>.*rstrip"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "WordLevel"),
    ],
)
def test_tokenizers_that_llama_cpp_would_not_follow_are_refused(parts, said):
    with pytest.raises(ModelError, match=said):
        vocabulary_of(changed(**parts), 1536)


def test_scores_of_pieces_follow_their_merges(shared):
    from transformers import AutoTokenizer

    found = vocabulary_of(AutoTokenizer.from_pretrained(shared / "models/stories260K"), 512)
    assert found.model == "llama" and found.puts_space
    merges = AutoTokenizer.from_pretrained(shared / "models/stories260K").backend_tokenizer.to_str()
    pieces = ["".join(pair) for pair in json.loads(merges)["model"]["merges"]]
    scores = dict(zip(found.tokens, found.scores or [], strict=True))
    assert [scores[piece] for piece in pieces] == sorted((scores[piece] for piece in pieces), reverse=True)
