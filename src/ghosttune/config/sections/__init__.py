"""The sections that every run has: each setting with its type, unit, bounds, one line of meaning, why it is there, what
it gives and what it costs. A key is here only if it changes what a run does.

In reading order: model, data, train, measure, evaluate, run, forget.
"""
