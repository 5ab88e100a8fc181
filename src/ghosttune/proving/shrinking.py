"""A model's configuration with every kind of layer it has and every size made small.

Transformers' families name the same sizes in many ways; the tables below are those names. What is not a size (kinds of
attention, activations, biases, routing, shared tables) stays as it is, so that a small model takes the same paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ghosttune.errors import ModelError

WIDTH = 64
LAYERS = 2
HEADS = 4
HEAD = WIDTH // HEADS
LARGEST = 4_000_000
"""Parameters a small model may have; a table that no name below makes small is then told by name."""

NOISE = 0.02
"""Standard deviation, that of most families' weights."""

SPARE = 16
"""Entries of the vocabulary behind the tokenizer's, for tokens of images, sounds and the like."""

WIDTHS = set(
    """
    attention_hidden_size d_latents d_model dim emb_dim embedding_dim embedding_size entity_emb_size hidden_size
    hidden_size_global hidden_size_per_layer_input input_embedding_size input_size lru_width n_embd
    output_embedding_size pooler_hidden_size prediction_head_size pronunciation_embed_dim shape_embed_dim
    true_hidden_size intra_bottleneck_size word_embed_proj_dim cross_attention_hidden_size out_hidden_size
    backbone_hidden_size adapter_out_dim output_dim projector_input_dim projector_output_dim ple_embed_dim
    router_hidden_size dim_model_base embedding_rank
    """.split()  # noqa: SIM905
)
"""As wide as the model (made WIDTH), wider (twice that) or narrower (half of it)."""

SIZES: dict[int, str] = {
    1: "topk_group first_k_dense_replace moe_layer_start_index num_dense_layers num_mem_blocks H_cycles "
    "num_random_blocks num_sparse_encoder_layers num_sparse_decoder_layers attn_layer_offset expert_layer_offset",
    LAYERS: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
    "num_decoder_layers num_blocks depth num_self_attends_per_block num_global_layers attn_layer_period "
    "expert_layer_period global_attn_every_n_layers layer_group_size num_layers_per_stack num_experts_per_tok "
    "num_experts_per_token moe_topk moe_k moe_top_k top_k num_expert_group n_group encoder_sparse_step "
    "decoder_sparse_step o_groups n_groups mamba_n_groups mamba_ngroups num_attention_layers max_window_layers "
    "n_layers_per_attn_res_block q_groups k_groups v_groups intermediate_groups output_groups num_hash "
    "linear_num_key_heads L_cycles heads_per_ngram num_feedforward_networks conf_num_hidden_layers "
    "no_rope_layer_interval sliding_window_pattern _sliding_window_pattern",
    HEADS: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "attention_heads num_encoder_attention_heads num_decoder_attention_heads num_self_attention_heads "
    "num_cross_attention_heads index_n_heads swa_num_attention_heads linear_num_heads num_query_groups "
    "num_experts n_routed_experts num_local_experts moe_num_experts zero_expert_num conf_num_attention_heads "
    "linear_num_value_heads num_attention_heads_per_layer index_topk index_topk_blocks expert_capacity "
    "hash_code_len hc_lowrank laurel_rank gated_norm_rank adapter_rank split_ngram_parts "
    "make_ngram_vocab_size_divisible_by",
    8: "n_mamba_heads mamba_n_heads mamba_num_heads rotary_dim chunk_size mamba_chunk_size sliding_window "
    "window_size attention_window attention_window_size sliding_window_size local_attention attention_chunk_size "
    "local_attention_window_len local_attn_chunk_length lsh_attn_chunk_length block_size local_radius "
    "global_block_size index_block_size num_global_tokens num_latents keep_window_size local_transformer_stride "
    "coordinate_size d_rel mem_len xpath_unit_hidden_size",
    HEAD: "head_dim d_kv d_head dim_head kv_channels v_head_dim qk_rope_head_dim qk_nope_head_dim index_head_dim "
    "mamba_d_head mamba_head_dim mamba_headdim linear_head_dim linear_key_head_dim linear_value_head_dim "
    "swa_head_dim attention_head_size state_size ssm_state_size mamba_d_state time_step_rank mamba_dt_rank "
    "q_lora_rank kv_lora_rank o_lora_rank prompt_length prompt_mid_dim entity_vocab_size global_head_dim "
    "segment_means_seq_len num_landmarks shape_size",
    2 * HEAD: "qk_head_dim attention_head_dim moe_intermediate_size expert_ffn_hidden_size "
    "shared_expert_intermediate_size shared_intermediate_size moe_shared_expert_intermediate_size "
    "shared_experts_intermediate_size",
    WIDTH * 3 // 2: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff n_inner d_inner dff dim_ff "
    "ffn_hidden_size hidden_dim intermediate_size_mlp dense_intermediate_size feed_forward_size",
    128: "mamba_d_ssm max_position_embeddings n_positions n_ctx max_seq_len context_length "
    "original_max_position_embeddings model_max_length max_source_positions max_target_positions "
    "max_encoder_position_embeddings max_decoder_position_embeddings rel_extent max_2d_position_embeddings",
    512: "encoder_hash_byte_group_vocab num_hash_buckets ngram_vocab_size_base pronunciation_vocab_size "
    "shape_vocab_size audio_vocab_size codebook_size",
}
"""Size -> entries that are not made larger than it."""

KEY_VALUE_HEADS = {"num_key_value_heads", "num_kv_heads", "kv_n_heads", "swa_num_key_value_heads"}
"""Made one where there is one, HEADS where every head has its own, and half of that otherwise."""

VOCABULARIES = {"vocab_size", "src_vocab_size", "tgt_vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"}
INDICES = (
    "full_attn_idxs",
    "moe_layers",
    "mlp_only_layers",
    "cross_attention_layers",
    "ple_layer_ids",
    "hybrid_layer_ids",
)
"""Lists of the numbers of layers."""

UNSAID = {"head_dim": HEAD, "num_key_value_heads": HEADS}
"""Sizes that follow from others where they are not said, as some classes only find out for published models."""

SMALLER = {name: size for size, names in SIZES.items() for name in names.split()}
COUNTS = SIZES[LAYERS].split()[:8]
"""Entries that say how many layers there are."""


def shrunken(config: Any, vocabulary: int, special: Mapping[str, int] | None = None) -> Any:
    """A configuration of the same class whose model has a few hundred thousand parameters.

    Args:
        vocabulary: how many tokens rows may hold; the model has SPARE more.
        special: `pad_token_id` and the like.

    ModelError where the configuration does not allow the sizes.
    """
    special = dict(special or {})
    entries = shrunken_entries(config.to_dict(), vocabulary, special) | special
    try:
        return type(config).from_dict(entries)
    except Exception as error:  # each class has its own rules
        raise ModelError(f"the configuration of {config.model_type} cannot be made small: {_line(error)}") from error


def shrunken_model(config: Any, loader: Any, seed: int = 0) -> Any:
    """The model that `loader` makes of a shrunken configuration, with weights from `seed`.

    ModelError where there is none, or where it is still large.
    """
    import torch

    try:
        with torch.device("meta"):
            planned = loader.from_config(config)
        count = sum(parameter.numel() for parameter in planned.parameters())
        if count > LARGEST:
            name, largest = max(planned.named_parameters(), key=lambda item: item[1].numel())
            at = f"{largest.numel():,} of them in {name}"
            raise ModelError(f"{config.model_type} has {count:,} parameters in its smallest form, {at}")
        torch.manual_seed(seed)
        return _apart(loader.from_config(config)).eval()
    except ModelError:
        raise
    except Exception as error:  # whatever a family's code raises for sizes it is not made for
        raise ModelError(f"no small model of {config.model_type} can be made: {_line(error)}") from error


def _apart(model: Any) -> Any:
    """The model with a little noise on tensors that hold one number everywhere, such as norms of ones.

    Training has moved those of published models. Left alike, they make ties, which rounding decides (Doge's windows),
    and layers that add nothing.
    """
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if (
                parameter.is_floating_point()
                and parameter.numel() > 1
                and bool((parameter == parameter.flatten()[0]).all())
            ):
                parameter.add_(NOISE * torch.randn_like(parameter))
    return model


def shrunken_entries(entries: dict[str, Any], vocabulary: int, special: Mapping[str, int]) -> dict[str, Any]:
    """The entries of a configuration, made small, those of its parts too."""
    width = next(
        (entries[name] for name in ("hidden_size", "d_model", "n_embd", "dim", "emb_dim") if entries.get(name)), 0
    )
    heads = next((entries[name] for name in SIZES[HEADS].split()[:4] if entries.get(name)), None)
    kept = _kept_layers(entries)
    found: dict[str, Any] = {}
    spare = iter(range(vocabulary, vocabulary + SPARE))
    for name, value in entries.items():
        if isinstance(value, dict) and name in ("rope_parameters", "rope_scaling"):
            value = _rotary(value, entries)
        elif isinstance(value, dict) and all(str(key).isdigit() for key in value) and name == "per_layer_config":
            value = {str(new).zfill(2): value[key] for new, old in enumerate(kept) for key in value if int(key) == old}
            value = {key: shrunken_entries(own, vocabulary, special) for key, own in value.items()}
        elif isinstance(value, dict) and name not in ("id2label", "label2id"):
            value = shrunken_entries(value, vocabulary, special)
        elif name in INDICES and isinstance(value, list):
            value = [new for new, old in enumerate(kept) if old in value]
        elif isinstance(value, list) and len(value) == _count(entries) and name not in ("eos_token_id",):
            value = [_smaller(name, value[layer], width, heads) for layer in kept]
        elif name == "attention_types":  # GPT-Neo's: kinds, how often
            value = [[value[0][0], LAYERS // len(value[0][0])]]
        elif name == "block_sizes":
            value = [1] * len(value)
        elif name in VOCABULARIES and value:
            value = vocabulary + SPARE
        elif name in special:
            value = special[name]
        elif name.endswith(("_token_id", "_token_index")) and value is not None:
            value = next(spare)
        elif name in COUNTS and value:
            own = max(len(kept), len(entries.get("block_types") or ()))  # a pattern that repeats
            value = own if own > LAYERS else _smaller(name, value, width, heads)
        else:
            value = _smaller(name, value, width, heads)
        found[name] = value
    if "state_size" in found and "num_heads" in found:  # Mamba-2's heads fill its inner width
        found["num_heads"] = found["expand"] * WIDTH // HEAD
    if "H_cycles" in found:  # a cache keeps one entry for each layer of each cycle
        found["num_hidden_layers"] = found["num_layers_per_stack"] * found["H_cycles"] * (found["L_cycles"] + 1)
    if found.get("mamba_d_ssm"):
        found["mamba_d_head"] = found["mamba_d_ssm"] // found["mamba_n_heads"]
    return found


def _smaller(name: str, value: Any, width: int, heads: int | None) -> Any:
    if value is None and name in UNSAID:
        return UNSAID[name]
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return value
    if name == "num_kv_shared_layers":  # a layer of each kind keeps its own
        return 0
    if name in WIDTHS:
        return WIDTH if value == width or not width else 2 * WIDTH if value > width else WIDTH // 2
    if name in KEY_VALUE_HEADS:
        return 1 if value == 1 else HEADS if value == heads else HEADS // 2
    return min(value, SMALLER.get(name, value))


def _count(entries: Mapping[str, Any]) -> int | None:
    """How many layers its lists are about."""
    return next((entries[name] for name in COUNTS if entries.get(name)), None)


def _kept_layers(entries: Mapping[str, Any]) -> list[int]:
    """The first layer of each kind there is, by everything that is said of single layers; LAYERS at least."""
    count = _count(entries) or LAYERS
    told = {name: v for name, v in entries.items() if isinstance(v, list) and name not in (*INDICES, "eos_token_id")}
    lists = [value for value in told.values() if len(value) == count]
    indices = [entries[name] for name in INDICES if isinstance(entries.get(name), list)]
    own = entries.get("per_layer_config") or {}
    kinds = [
        repr(([one[n] for one in lists], [n in one for one in indices], own.get(str(n).zfill(2)))) for n in range(count)
    ]
    first = {kind: layer for layer, kind in reversed(list(enumerate(kinds)))}
    kept = sorted(first.values())
    return sorted([*kept, *[n for n in range(count) if n not in kept][: max(0, LAYERS - len(kept))]])


def _rotary(parameters: dict[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary embeddings of heads of size HEAD."""
    found = dict(parameters)
    for name, value in parameters.items():
        if isinstance(value, dict):
            found[name] = _rotary(value, entries)
        elif name == "mrope_section":
            found[name] = [HEAD // 2 - 2 * (HEAD // 8), HEAD // 8, HEAD // 8]
        elif isinstance(value, list):
            found[name] = value[: HEAD // 2]
        elif name == "partial_rotary_factor" and "qk_rope_head_dim" in entries:  # as large as a head now
            found[name] = 1.0
        elif name == "original_max_position_embeddings":
            found[name] = SMALLER[name]
    return found


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
