"""Rows: where they come from, how a template renders them, and how they become batches."""
