"""Run directories: the interface between commands."""
