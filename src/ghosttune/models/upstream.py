"""What PEFT and Transformers say or do that nobody asked for, kept from the user."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_upstream_reports() -> Iterator[None]:
    """Transformers reports weights that we refuse or the model does not need, and padding that we have seen to."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def without_upstream_warnings() -> Iterator[None]:
    """Without what PEFT 0.21 says that nobody could mend.

    An attribute's old name, norms that are not torch's own, and learned prompts that take no position numbers: rows of
    one length need none.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Position ids are not supported", category=UserWarning)
        warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


@contextmanager
def targets_as_named() -> Iterator[None]:
    """While inside, LoRA goes to the modules it is told to.

    In families with fused experts PEFT 0.21 takes `gate_proj`, `up_proj`, `down_proj` and `gate` for names of
    Transformers 4, drops the modules that are called so now (shared experts, dense layers) and adapts the fused experts
    instead, which nobody named.
    """
    from peft.utils import transformers_weight_conversion as conversion

    before = conversion.convert_peft_config_for_transformers
    conversion.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        yield
    finally:
        conversion.convert_peft_config_for_transformers = before
