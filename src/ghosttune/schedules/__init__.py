"""Which tensors train in which updates: the phase language, strategies that write it, and learning rates of phases.

In reading order: language, phases, strategies, rates.
"""
