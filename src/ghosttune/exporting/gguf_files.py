"""GGUF, the file of llama.cpp and Ollama: a whole model, or a LoRA adapter alone, by the `gguf` package."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttune.errors import InputError, ModelError, listed
from ghosttune.exporting.families import Family, family_of, further_tensors, write_shape
from ghosttune.exporting.lora import pairs_of
from ghosttune.exporting.vocabulary import OTHER_WAY, Vocabulary, vocabulary_of
from ghosttune.models.weights import errors_of_the_disk

if TYPE_CHECKING:
    import torch

KINDS = ("f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""How weights are stored: what the `gguf` package can write."""

EXACT = ("position_embd.weight", "rope_freqs.weight")
"""Matrices that llama.cpp reads as float32."""

LARGEST_F16 = 65504.0


@dataclass(frozen=True)
class Asking:
    """How the model is asked, and where its answers end."""

    chat_template: str | None
    """Jinja."""
    begins_with_bos: bool
    """Whether every prompt begins with the token: llama.cpp and Ollama then put it there."""
    stop_id: int
    """The token that ends an answer."""


@dataclass
class Written:
    """What became of a model's tensors."""

    tensors: int = 0
    parameters: int = 0
    whole: list[str] = field(default_factory=list)
    """Matrices stored as f16 because their rows do not divide into the blocks of the kind that was asked for."""
    notes: list[str] = field(default_factory=list)


def require_gguf() -> Any:
    """The `gguf` package; InputError naming the extra where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise InputError("writing GGUF needs the package gguf: pip install 'ghosttune[export]'") from error
    return gguf


def write_model(model: Any, tokenizer: Any, asking: Asking, path: Path, kind: str, name: str) -> Written:
    """A model of Transformers, its tokenizer and its chat template as one file that llama.cpp opens.

    ModelError, before anything is written, for a family, tokenizer or tensor that cannot be written so that llama.cpp
    computes the same. Beside the model it holds what is stored in another order, and one tensor as it is written.
    """
    gguf = require_gguf()
    config = model.config
    family = family_of(config)
    rows = model.get_input_embeddings().weight.shape[0]
    vocabulary = vocabulary_of(tokenizer, rows)
    tensors = _named(model, family)
    _require_storable(tensors, kind)
    writer = gguf.GGUFWriter(str(path), family.architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(re.sub("(?i)phi-?3", "Phi 3", name))  # by which llama.cpp would let special tokens take in spaces
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[_file_type(kind)])
    write_shape(writer, family, config)
    write_vocabulary(writer, vocabulary, tokenizer, asking)
    done = _finish(writer, tensors, kind)
    done.notes.extend(vocabulary.notes)
    return done


def write_vocabulary(writer: Any, vocabulary: Vocabulary, tokenizer: Any, asking: Asking) -> None:
    """`tokenizer.*` of a GGUF file."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.puts_space is not None:
        writer.add_add_space_prefix(vocabulary.puts_space)
    for special in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{special}_token_id")
        if number is not None:
            getattr(writer, f"add_{special}_token_id")(number)
    if asking.stop_id != tokenizer.eos_token_id:
        writer.add_eot_token_id(asking.stop_id)
    writer.add_add_bos_token(asking.begins_with_bos)
    writer.add_add_eos_token(False)
    if asking.chat_template is not None:
        writer.add_chat_template(asking.chat_template)


def write_adapter(model: Any, path: Path, name: str) -> Written:
    """The LoRA matrices of a PEFT model as one float32 file for `--lora`; ModelError for anything that is not LoRA."""
    gguf = require_gguf()
    base = model.get_base_model()
    family = family_of(base.config)
    pairs = pairs_of(model)
    names = _name_map(base.config, family)
    alpha = max(pair.scale * pair.rank for pair in pairs.values())  # llama.cpp multiplies by alpha / rank
    writer = gguf.GGUFWriter(str(path), family.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    tensors = {}
    for module, pair in pairs.items():
        own = names.get_name(module)
        if own is None:
            raise ModelError(f"llama.cpp has no name for {module} of a {base.config.model_type}")
        tensors[f"{own}.weight.lora_a"] = pair.down
        up = family.reorder(f"{module}.weight", pair.up, base.config)
        tensors[f"{own}.weight.lora_b"] = up * (pair.scale * pair.rank / alpha)
    return _finish(writer, tensors, "f32")


def _named(model: Any, family: Family) -> dict[str, torch.Tensor]:
    """Tensors under llama.cpp's names, as it holds them; ModelError for those it has no name for."""
    config, names = model.config, _name_map(model.config, family)
    state = model.state_dict()
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    if head is not None and "lm_head.weight" in state and state["lm_head.weight"].equal(embeddings):
        del state["lm_head.weight"]  # llama.cpp takes the embeddings where there is no head
    elif True in family.accepts.get("tie_word_embeddings", ()):
        raise ModelError(f"llama.cpp takes the embeddings of a {config.model_type} for its head, and these differ")
    found, strange = {}, []
    for name, tensor in state.items():
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if own is None:
            strange.append(name)
        else:
            found[own] = family.reorder(name, family.change(name, tensor, config), config)
    if strange:
        raise ModelError(f"llama.cpp's {family.architecture} has no place for {listed(strange, 4)}; {OTHER_WAY}")
    return found | further_tensors(config)


def _name_map(config: Any, family: Family) -> Any:
    gguf = require_gguf()
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(numbers[family.architecture], config.num_hidden_layers)


def _require_storable(tensors: Mapping[str, torch.Tensor], kind: str) -> None:
    """ModelError for values that are no numbers, or too large for f16."""
    for name, tensor in tensors.items():
        largest = float(tensor.abs().max())
        if not largest <= float("inf") or largest == float("inf"):
            raise ModelError(f"{name} holds values that are not finite")
        if kind == "f16" and tensor.ndim > 1 and largest > LARGEST_F16:
            raise ModelError(f"{name} holds {largest:.0f}, and f16 ends at {LARGEST_F16:.0f}; use --kind bf16")


def _file_type(kind: str) -> str:
    return "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"


def _finish(writer: Any, tensors: Mapping[str, torch.Tensor], kind: str) -> Written:
    """Writes the file, its tensors one after another."""
    gguf = require_gguf()
    done = Written()
    stored = {name: _stored(name, tensor, kind, done) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        shape = gguf.quant_shape_to_byte_shape(tensor.shape, stored[name])
        writer.add_tensor_info(name, tensor.shape, "float32", math.prod(shape), raw_dtype=stored[name])
    with errors_of_the_disk():
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            values = tensor.detach().float().cpu().contiguous().numpy()
            writer.write_tensor_data(gguf.quantize(values, stored[name]))
        writer.close()
    return done


def _stored(name: str, tensor: torch.Tensor, kind: str, done: Written) -> Any:
    """How a tensor is stored, which `done` counts."""
    gguf = require_gguf()
    done.tensors += 1
    done.parameters += tensor.numel()
    used = gguf.GGMLQuantizationType["F32" if tensor.ndim < 2 or name in EXACT else kind.upper()]
    if tensor.shape[-1] % gguf.GGML_QUANT_SIZES[used][0]:
        done.whole.append(name)
        return gguf.GGMLQuantizationType.F16
    return used
