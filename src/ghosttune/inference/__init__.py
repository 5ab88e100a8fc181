"""Generation and chat from a run directory or a model."""
