"""Base weights in 8 or 4 bits, by bitsandbytes: LLM.int8 (arXiv 2208.07339) and QLoRA's nf4 (2305.14314)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ghosttune.config.schema import ModelSettings
from ghosttune.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn


def quantized_loading(settings: ModelSettings) -> dict[str, Any]:
    """What `from_pretrained` needs besides; nothing without quantization. ModelError without bitsandbytes."""
    if settings.quantization == "none":
        return {}
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantization {settings.quantization} needs bitsandbytes: pip install 'ghosttune[quant]'"
        )
    import torch
    from transformers import BitsAndBytesConfig

    if settings.quantization == "int8":
        configuration = BitsAndBytesConfig(load_in_8bit=True)
    else:
        configuration = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, settings.dtype),
        )
    device = "cpu" if settings.device == "auto" else settings.device
    return {"quantization_config": configuration, "device_map": {"": device}}


def prepared_for_training(model: Any) -> Any:
    """The quantized model with everything that is not quantized in float32, so that gradients keep their digits.

    On processors that could, bitsandbytes would pack 4-bit weights anew at the first evaluation, with scales rounded to
    bfloat16: the base would change in mid-run. That is off.
    """
    import peft

    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def plain_weight(layer: nn.Module) -> Tensor:
    """The weight of a linear layer as numbers, whatever it is kept in."""
    if not hasattr(layer.weight, "quant_state") and not hasattr(layer.weight, "SCB"):
        return layer.weight.detach()  # type: ignore[return-value]
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer).detach()


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and of what belongs to the quantized ones, tied ones once."""
    total = 0
    for parameter in model.parameters():
        total += parameter.nbytes
        state = getattr(parameter, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            total += sum(
                t.nbytes for t in (getattr(part, "absmax", None), getattr(part, "code", None)) if t is not None
            )
        scales = getattr(parameter, "SCB", None)
        total += scales.nbytes if scales is not None else 0
    return total
