"""Tasks, one file each: how rows become features, and what the loss of a row is.

In reading order: protocol, causal, seq2seq, labels, sequence, token, extraction; preferences: preference, losses,
reward; answers that are drawn: grpo, policy; forgetting: unlearning.
"""
