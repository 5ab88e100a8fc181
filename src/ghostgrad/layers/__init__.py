"""Rules that ship with ghostgrad; importing this package registers them in `ghostgrad.rules.RULES`.

In reading order: linear, embedding, elementwise, adapters, relative, prompts, exact.
"""

from ghostgrad.layers import adapters, elementwise, embedding, linear, prompts, relative

__all__ = ["adapters", "elementwise", "embedding", "linear", "prompts", "relative"]
