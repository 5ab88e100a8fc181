"""Per-example gradients for any torch model; imports torch and numpy, nothing else."""
