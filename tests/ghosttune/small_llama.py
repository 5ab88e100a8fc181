"""The small model of the proofs, under the name that tests know it by."""

from __future__ import annotations

from ghosttune.proving.specimens import small_llama

__all__ = ["small_llama"]
