"""Scores and their intervals.

In reading order: scoring, intervals, comparing, judging; by kind: text, labels, numbers, spans, sql, tables,
likelihood, patterns, synonyms, own; of several answers: pairs, pooling, ranking, agreement, degenerate.
"""
