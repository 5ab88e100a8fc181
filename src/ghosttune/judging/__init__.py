"""Systems that answer the same questions, judged: evaluation, other models as judges, and arms compared.

In reading order: engines, answering, predicting, evaluate, forgetting, sampled, asking; by others: judge, suite; runs
beside each other: arms, compare, comparison_text.
"""
