"""Training on transformers.Trainer, with our own row order, loss and checkpoints."""
