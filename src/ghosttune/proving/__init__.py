"""Known-answer proofs: what the numbers of ghosttune are worth, measured on this machine against slow references.

In reading order: findings, proofs, reference; models and runs to look at: tokenizers, families, shrinking, specimens,
learned; the proofs: gradients, accounts, freezing, removal, planted, prompts, reading, sketches, stored, nothing,
recipes; on a model of your own: rowwise, own.
"""
