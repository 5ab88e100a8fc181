"""What PEFT and Transformers say that nobody could mend, kept from the user."""

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
