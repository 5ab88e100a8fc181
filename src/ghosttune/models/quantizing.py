"""Base weights in 8 or 4 bits, by bitsandbytes: LLM.int8 (arXiv 2208.07339) and QLoRA's nf4 (2305.14314)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ghosttune.config.sections.model import ModelSettings
from ghosttune.errors import ModelError, listed
from ghosttune.models.modules import head_modules
from ghosttune.models.upstream import tell_peft_of_bitsandbytes

if TYPE_CHECKING:
    from torch import Tensor, nn

BLOCK = 64
"""Numbers that share a scale in nf4."""


def quantized_loading(settings: ModelSettings, build: Callable[[], Any] | None) -> dict[str, Any]:
    """What `from_pretrained` needs besides; nothing without quantization. ModelError without bitsandbytes.

    `build` makes a model whose head is new and stays as it is, since it trains; None where there is none, and the
    output layer stays.
    """
    if settings.quantization == "none":
        return {}
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantization {settings.quantization} needs bitsandbytes: pip install 'ghosttune[quant]'"
        )
    import torch
    from transformers import BitsAndBytesConfig

    tell_peft_of_bitsandbytes()
    heads = None
    if build is not None:
        with torch.device("meta"):
            heads = head_modules(build())
    if settings.quantization == "int8":
        configuration = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=heads)
    else:
        configuration = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, settings.dtype),
            llm_int8_skip_modules=heads,
        )
    device = "cpu" if settings.device == "auto" else settings.device
    return {"quantization_config": configuration, "device_map": {"": device}}


def prepared_for_training(model: Any) -> Any:
    """The quantized model with everything that is not quantized in float32, so that gradients keep their digits.

    On processors that could, bitsandbytes would pack 4-bit weights anew at the first evaluation, with scales rounded to
    bfloat16: the base would change in mid-run. That is off. ModelError for widths that bitsandbytes reads wrongly.
    """
    import peft

    layers = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    misread = sorted(width for width in {layer.in_features for layer in layers} if _is_misread(width, model.device))
    if misread:
        raise ModelError(
            f"model.quantization nf4 gives wrong weights on this device: layers with {listed(misread)} inputs are read "
            "other than they were written (bitsandbytes on the CPU needs a multiple of 64); use int8, or a GPU"
        )
    return peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _is_misread(width: int, device: Any) -> bool:
    """Whether a weight of so many inputs comes back otherwise than the same numbers in rows of one block each.

    Blocks are written over the ends of rows; the code of bitsandbytes 0.50 for the CPU begins each row with a new one.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    numbers = torch.randn(BLOCK, width, generator=torch.Generator().manual_seed(0)).to(device)
    kept, state = quantize_4bit(numbers, blocksize=BLOCK, quant_type="nf4")
    read = dequantize_4bit(kept, state)
    state.shape = torch.Size([width, BLOCK])
    return not torch.equal(read.flatten(), dequantize_4bit(kept, state).flatten())


def plain_weight(layer: Any) -> Tensor:
    """The weight of a linear layer as numbers, whatever it is kept in.

    PEFT's function for it moves an 8-bit weight, which then has lost its scales.
    """
    if hasattr(layer.weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    scales = _scales(layer)
    return layer.weight.detach() if scales is None else layer.weight.data * (scales[:, None] / 127)


def _scales(layer: Any) -> Tensor | None:
    """Largest number of each row of an 8-bit weight, which move into the layer at its first forward pass."""
    kept = getattr(layer.weight, "SCB", None)
    return getattr(getattr(layer, "state", None), "SCB", None) if kept is None else kept


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and of what belongs to the quantized ones, tied ones once."""
    total = sum(parameter.nbytes for parameter in model.parameters())
    weighted = (module for module in model.modules() if module._parameters.get("weight") is not None)
    return total + sum(tensor.nbytes for module in weighted for tensor in _beside(module))


def _beside(layer: Any) -> list[Tensor]:
    """What a quantized weight needs besides its numbers."""
    state = getattr(layer.weight, "quant_state", None)
    parts = [
        getattr(part, name, None) for part in (state, getattr(state, "state2", None)) for name in ("absmax", "code")
    ]
    return [tensor for tensor in (*parts, _scales(layer)) if tensor is not None]
