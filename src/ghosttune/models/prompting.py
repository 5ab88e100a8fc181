"""Learned prompts where PEFT leaves something open: shapes that it does not find, answers read off the wrong place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ghosttune.config.facts import ModelKind
from ghosttune.errors import ConfigError, Problem
from ghosttune.models.modules import head_modules
from ghosttune.models.upstream import without_upstream_reports

if TYPE_CHECKING:
    from torch import Tensor

LEFT_OUT = "QUESTION_ANS"
"""The task for which PEFT's own class takes `token_type_ids` and does not hand them on."""


def fit_prompt(configuration: Any, model: Any, kind: ModelKind) -> None:
    """Enters the model's shape; ConfigError for what PEFT cannot do behind a learned prompt.

    PEFT looks the shape up under names that not every family uses; all families answer to these.
    """
    method, cannot = configuration.peft_type.value.lower(), None
    if kind.adapter_task == LEFT_OUT and getattr(model.config, "type_vocab_size", 0) > 1:
        cannot = "answer questions with this model: PEFT would not tell it by segments which tokens are the question"
    if kind.new_head and model.config.is_encoder_decoder:
        cannot = "judge rows with an encoder and a decoder: PEFT puts learned prompts in front of one of them only"
    if cannot:
        raise ConfigError([Problem("method.type", f"{method} cannot {cannot}; use lora")])
    text = model.config.get_text_config()
    configuration.token_dim, configuration.num_attention_heads = text.hidden_size, text.num_attention_heads


def try_out(adapted: Any) -> None:
    """ValueError where PEFT's guess at the model's shape is wrong, which shows only when a row is read."""
    import torch

    row = torch.tensor([[0, 1]], device=adapted.device)
    decoder = {"decoder_input_ids": row} if adapted.config.is_encoder_decoder else {}
    try:
        with torch.no_grad(), without_upstream_reports():
            adapted(input_ids=row, attention_mask=torch.ones_like(row), **decoder)
    except RuntimeError as error:
        raise ValueError("PEFT makes keys and values of another shape than its attention has; use lora") from error


def prompt_length(model: Any) -> int:
    """Positions that a learned prompt takes in front of every row."""
    adapters = getattr(model, "peft_config", {}).values()
    return max((getattr(adapter, "num_virtual_tokens", 0) or 0 for adapter in adapters), default=0)


def can_do_without(adapted: Any) -> Any:
    """The model with a `disable_adapter` that works behind a learned prompt with a new head too.

    PEFT's asks the model for functions of generation, and would leave the trained head in place.
    """
    if prompt_length(adapted) and adapted.active_peft_config.modules_to_save:
        adapted.disable_adapter = partial(_disabled, adapted)
    return adapted


@contextmanager
def _disabled(adapted: Any) -> Iterator[None]:
    from peft.utils import ModulesToSaveWrapper

    heads = [module for module in adapted.modules() if isinstance(module, ModulesToSaveWrapper)]
    adapted.forward = adapted.get_base_model().forward
    for head in heads:
        head.enable_adapters(False)
    try:
        yield
    finally:
        del adapted.forward
        for head in heads:
            head.enable_adapters(True)


@contextmanager
def reading_last_token(model: Any, mask: Tensor) -> Iterator[None]:
    """While inside, a decoder that judges rows behind learned vectors does it at each row's last token.

    Given vectors, Transformers no longer knows which positions are padding, and reads the answer off the last one. A
    row without padding is judged alike without this. Encoders judge at the first position, a learned one.
    """
    import torch

    if not prompt_length(model):
        yield
        return
    head = model.get_base_model().get_submodule(head_modules(model.get_base_model())[-1])
    rows = torch.arange(len(mask), device=mask.device)

    def select(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = inputs[0]
        in_front = hidden.shape[1] - mask.shape[1] if hidden.dim() == 3 else 0
        if not in_front or not hasattr(head, "in_features"):  # no vectors, or an encoder
            return inputs
        last = in_front + mask.sum(1) - 1
        return (hidden[rows, last][:, None], *inputs[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        with without_upstream_reports():
            yield
    finally:
        handle.remove()
