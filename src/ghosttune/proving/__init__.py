"""Known-answer proofs: what the numbers of ghosttune are worth, measured on this machine against slow references."""
