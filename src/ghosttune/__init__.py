"""Fine-tune a language model from one YAML file and learn what lowered the held-out loss."""
