"""Layer, group and role of every module, read from the model's structure and never from its name."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ghosttune.config.facts import ModuleFacts, ParameterFacts, Targets
from ghosttune.errors import ConfigError, ModelError, Problem, listed, nearest

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

ROLES = {
    "q": r"q_proj|query|q_lin|q",
    "k": r"k_proj|key|k_lin|k",
    "v": r"v_proj|value|v_lin|v",
    "qkv": r"c_attn|query_key_value|qkv_proj|qkv",
    "o": r"o_proj|out_proj|out_lin|dense|c_proj|o",
}
"""Names that attention's linear layers carry in the families of Transformers; anything else is its own role."""

FACTORS = {
    "A": r"lora_A|lora_embedding_A|hada_w\d_a|lokr_w1(_a|_b)?|hira_A|gralora_A(_general)?",
    "B": r"lora_B|lora_embedding_B|hada_w\d_b|lokr_w2(_a|_b)?|hira_B|gralora_B(_general)?",
    "magnitude": r"lora_magnitude_vector",
    "scale": r"ia3_l|lora_E|vera_lambda_[bd]|randlora_(lambda|gamma)|frod_lambda_(l|s_values)|boft_s",
    "rotation": r"oft_R|boft_R|hra_u",
    "update": r"miss_block|shira_weight|c3a_kernel",
    "prompt": r"prompt_encoder",
    "bias": r"bias",
}
"""Parts of a parameter's name below its module that say which factor of an adapter it is; any other is the weight."""

GROUP_ROLES = {"attention_qv": {"q", "v", "qkv"}, "keys_values_inner": {"k", "v", "qkv"}}


def module_facts(model: PreTrainedModel) -> list[ModuleFacts]:
    """One entry per linear layer and embedding, in the model's own order.

    Layers are the children of the longest list of equal blocks of the text model, an encoder's before its decoder's;
    within a block a path with `att` in it is attention and every other linear layer is mlp. Outside the blocks, output
    layers are head and the input table embedding. The names are those of the untouched model, also when the model has
    an adapter already.
    """
    model = _base(model)
    wrapped = [f"{name}." for name, module in model.named_modules() if hasattr(module, "base_layer")]
    ends = {
        _name_of(model, _table(model, "input")): "embedding",
        _name_of(model, _table(model, "output")): "head",
    }
    blocks, heads = _blocks(model), head_modules(model)  # type: ignore[arg-type]
    facts = []
    for path, module in model.named_modules():
        name = path.removesuffix(".base_layer")
        if any(name.startswith(inside) for inside in wrapped) or hasattr(module, "base_layer"):
            continue  # the adapter's own layers
        if name in ends:
            group, layer, role = ends[name], None, None
        elif _is_linear(module):
            layer, inner = _layer_of(name, blocks)
            if layer is not None:
                group = "attention" if "att" in inner.lower() else "mlp"
            else:
                group = "head" if name.split(".")[0] in heads else "other"
            role = _role(name.rpartition(".")[2]) if group == "attention" else name.rpartition(".")[2]
        else:
            continue
        facts.append(ModuleFacts(name, layer, group, role))
    return facts


def head_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules that a model of a task has on top of the bare model."""
    if model.base_model is model:
        return []
    return [
        name
        for name, child in model.named_children()
        if child is not model.base_model and next(child.parameters(), None) is not None
    ]


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _name_of(model: nn.Module, wanted: nn.Module | None) -> str:
    """Empty where the model has no such module."""
    return next((name for name, module in model.named_modules() if module is wanted), "")


def targets_in(
    model: PreTrainedModel, target_modules: str | list[str] | None, new_heads: Sequence[str] = ()
) -> Targets:
    """What a method may act on in the untouched `model`; ConfigError when a target matches nothing.

    New heads are not among it, which train anyway; nor is the part of a model that sees.
    """
    from transformers.pytorch_utils import Conv1D

    base: Any = model
    sees = base.config.get_text_config() is not base.config
    writing = (base.get_decoder(), base.get_output_embeddings()) if sees else (base,)
    parts = tuple(_name_of(base, part) for part in writing)

    def is_target(name: str) -> bool:
        return name.startswith(parts) and name.split(".")[0] not in new_heads

    facts = [fact for fact in module_facts(model) if is_target(fact.name)]
    linear = [] if target_modules is None else matched_modules(facts, target_modules)
    layers: list[Any] = [model.get_submodule(name) for name in linear]
    shapes = [
        (len(one.weight), one.nf) if isinstance(one, Conv1D) else (one.in_features, one.out_features) for one in layers
    ]
    return Targets(
        linear=linear,
        transposed=any(isinstance(layer, Conv1D) for layer in layers),
        inputs=[inputs for inputs, _ in shapes],
        outputs=[outputs for _, outputs in shapes],
        inner=[name for name in linear if name in _inner(facts)],
        norms=[name for name, module in model.named_modules() if _is_norm(module) and is_target(name)],
        parameters=[name for name, _ in model.named_parameters() if is_target(name)],
    )


def _inner(facts: list[ModuleFacts]) -> set[str]:
    """The last linear layer of each block's MLP."""
    return set({fact.layer: fact.name for fact in facts if fact.group == "mlp"}.values())


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and weight is not None and weight.dim() == 1


def matched_modules(facts: list[ModuleFacts], target_modules: str | list[str]) -> list[str]:
    """Full names of the linear layers that `method.target_modules` means.

    Raises ConfigError naming every entry that matches nothing, with the nearest name the model has.
    """
    layers = [fact for fact in facts if fact.layer is not None]
    if isinstance(target_modules, str):
        return _group(layers, target_modules)
    matched: dict[str, None] = {}
    problems = []
    for entry in target_modules:
        found = [fact.name for fact in facts if fact.group != "embedding" and _matches(fact.name, entry)]
        if not found:
            last_names = dict.fromkeys(fact.name.rpartition(".")[2] for fact in layers)
            last = max(fact.layer or 0 for fact in layers)
            have = f"the model has {listed(last_names, 20)} in layers 0 to {last}"
            message = f"{entry!r} matches no linear layer{nearest(entry, last_names)} ({have})"
            problems.append(Problem("method.target_modules", message))
        matched.update(dict.fromkeys(found))
    if problems or not target_modules:
        raise ConfigError(problems or [Problem("method.target_modules", "is an empty list; name at least one layer")])
    return list(matched)


def trainable_counts(model: nn.Module, facts: list[ModuleFacts]) -> dict[str, int]:
    """Trainable parameters per group, each tensor counted once; `other` holds those of no known module."""
    counts: Counter[str] = Counter()
    by_length = sorted(facts, key=lambda fact: -len(fact.name))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner = next((fact for fact in by_length if f".{fact.name}." in f".{name}"), None)
            counts[owner.group if owner else "other"] += parameter.numel()
    return dict(counts)


def parameter_facts(model: nn.Module, facts: list[ModuleFacts]) -> dict[str, ParameterFacts]:
    """Module, layer, group and factor of each trainable parameter, by its name in `model`.

    `facts` are those of the base model; wrappers around the model and around its modules may add to the names.
    """
    base = _base(model)
    wrapped = f"{_name_of(model, base)}.".removeprefix(".")
    by_length = sorted(facts, key=lambda fact: -len(fact.name))
    blocks = _blocks(base)
    return {
        name: _parameter_facts(name, name.removeprefix(wrapped), parameter, by_length, blocks)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _parameter_facts(
    name: str, inside: str, parameter: nn.Parameter, facts: list[ModuleFacts], blocks: dict[str, int]
) -> ParameterFacts:
    owner = next((fact for fact in facts if f".{fact.name}." in f".{inside}"), None)
    if owner is not None:
        below = f".{inside}".rpartition(f".{owner.name}.")[2]
        return ParameterFacts(name, owner.name, owner.layer, owner.group, _factor(below), owner.role)
    module = (
        re.split(r"\.ln_tuning_layers\.", inside)[0] if ".ln_tuning_layers." in inside else inside.rpartition(".")[0]
    )
    factor = _factor(inside)
    group = "norm" if parameter.dim() == 1 and factor in ("weight", "bias") else "other"
    return ParameterFacts(name, module, _layer_of(inside, blocks)[0], group, factor)


def _factor(below: str) -> str:
    parts = below.split(".")
    return next((factor for factor, names in FACTORS.items() if any(re.fullmatch(names, p) for p in parts)), "weight")


def _group(layers: list[ModuleFacts], group: str) -> list[str]:
    if group == "all_linear":
        chosen = layers
    elif group in GROUP_ROLES:
        chosen = [fact for fact in layers if fact.group == "attention" and fact.role in GROUP_ROLES[group]]
        if group == "keys_values_inner":
            chosen += [fact for fact in layers if fact.name in _inner(layers)]
    else:
        chosen = [fact for fact in layers if fact.group == group]
    if not chosen:
        raise ConfigError(
            [
                Problem(
                    "method.target_modules", f"{group} matches no linear layer of this model; name the layers in a list"
                )
            ]
        )
    return [fact.name for fact in chosen]


def _matches(name: str, entry: str) -> bool:
    return name == entry or name.endswith(f".{entry}") or fnmatch.fnmatchcase(name, entry)


def _is_linear(module: nn.Module) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D) and not _computes_more(module)


def _computes_more(module: nn.Module) -> bool:
    """Whether a model's own kind of linear layer gives something else than x W + b, such as a router its choices.

    Found out by trying; those of other libraries (quantized ones) are what they are called.
    """
    import torch
    from torch import nn

    kind = type(module)
    own = kind.__module__.startswith(("transformers.models.", "transformers_modules."))
    if not own or not isinstance(module, nn.Linear) or kind.forward is nn.Linear.forward:
        return False
    weight = module.weight
    row = torch.linspace(-1, 1, module.in_features, dtype=weight.dtype, device=weight.device).expand(1, 1, -1)
    try:
        with torch.no_grad():
            found, wanted = module(row), nn.functional.linear(row, weight, module.bias)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return True
    alike = isinstance(found, torch.Tensor) and found.shape == wanted.shape
    return not alike or not (weight.is_meta or torch.allclose(found, wanted, rtol=1e-2, atol=1e-3, equal_nan=True))


def blocks_of(model: Any) -> list[nn.Module]:
    """The layers of a base, an encoder's before its decoder's; of a model that sees, of the part that writes."""
    return [block for path in _blocks(model) for block in model.get_submodule(path)]


def _blocks(model: Any) -> dict[str, int]:
    """Name of the longest list of equal blocks -> number of its first layer; an encoder's before its decoder's.

    Of a model with several parts, such as one that sees, it is the part that writes.
    """
    parts = [_writing(model)]
    if model.config.is_encoder_decoder:
        parts.insert(0, model.get_encoder())
    blocks: dict[str, int] = {}
    first = 0
    for part in parts:
        name, count = _longest_list(part)
        blocks[".".join(filter(None, (_name_of(model, part), name)))] = first
        first += count
    return blocks


def _writing(model: Any) -> Any:
    """The part of the model that writes; the whole where what it calls its decoder is only the output layer."""
    from torch import nn

    part = model.get_decoder()
    return part if any(isinstance(module, nn.ModuleList) for module in part.modules()) else model


def _longest_list(part: nn.Module) -> tuple[str, int]:
    from torch import nn

    lists = {
        name: module
        for name, module in part.named_modules()
        if isinstance(module, nn.ModuleList) and all(_holds_linear(child) for child in module)
    }
    equal = {name: module for name, module in lists.items() if len({type(child) for child in module}) == 1}
    counts = {name: len(module) for name, module in (equal or lists).items()}  # hybrids mix kinds of layers
    if not counts:
        raise ModelError(
            "the model has no list of layers with linear layers (torch.nn.Linear or GPT-2's Conv1D) in each, so that "
            "there is nothing an adapter could be put on; take another model of the kind"
        )
    return max(counts.items(), key=lambda item: (item[1], -len(item[0])))


def _holds_linear(module: nn.Module) -> bool:
    return any(_is_linear(child) for child in module.modules())


def _table(model: Any, which: str) -> nn.Module | None:
    """The model's `input` or `output` embeddings; None where it has none that it names."""
    try:
        return getattr(model, f"get_{which}_embeddings")()
    except NotImplementedError:
        return None


def _layer_of(name: str, blocks: dict[str, int]) -> tuple[int | None, str]:
    """(number of the block, name within it); (None, the name itself) outside the blocks."""
    for path, first in blocks.items():
        if match := re.match(rf"{re.escape(path)}\.(\d+)\.(.+)$", name):
            return first + int(match[1]), match[2]
    return None, name


def _role(last: str) -> str:
    return next((role for role, names in ROLES.items() if re.fullmatch(names, last)), last)
