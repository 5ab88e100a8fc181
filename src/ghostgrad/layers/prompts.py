"""The rule of PEFT's learned prompts, which are computed once and repeated for every row.

Inside the prompt encoder there is one row for all examples, so the tap sits on `get_prompt`, whose output has one row
per example again, and the encoder is differentiated once per example from there. Prefix tables are looked up per
example and need none of this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ghostgrad.forms import Dense, ExampleGradient
from ghostgrad.rules import RULES, LayerIO


def _repeated(model: Any) -> tuple[str, ...]:
    """Names of the parameters of prompt encoders whose output `get_prompt` repeats."""
    names: list[str] = []
    for adapter, encoder in getattr(model, "prompt_encoder", {}).items():
        if model.peft_config[adapter].peft_type.value in ("PROMPT_TUNING", "P_TUNING"):
            names += [f"prompt_encoder.{adapter}.{name}" for name, _ in encoder.named_parameters()]
    return tuple(names)


@RULES.register("peft.peft_model.PeftModel", keep="nothing", method="get_prompt", owns=_repeated)
def learned_prompt(model: Any, io: LayerIO) -> dict[str, ExampleGradient]:
    """The parameters of the active prompt encoder, [B, *P] each; one vectorised backward of the encoder."""
    adapter = model.active_adapter
    encoder, prefix = model.prompt_encoder[adapter], f"prompt_encoder.{adapter}."
    trained = {name: p.detach() for name, p in encoder.named_parameters() if prefix + name in io.wanted}
    tokens = model.prompt_tokens[adapter].unsqueeze(0).to(io.grad_output.device)

    def prompt(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(encoder, parameters, (tokens,))[0]

    with torch.enable_grad():
        back = torch.func.vjp(prompt, trained)[1]
        gradients = torch.func.vmap(back)(io.grad_output)[0]
    return {prefix + name: Dense(value.detach()) for name, value in gradients.items()}
