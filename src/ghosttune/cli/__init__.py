"""The command line: a thin shell over the workflows.

In reading order: main, display, pace, summary, terminal; commands by subject: rows, studying, forgetting, leaving,
examining; what stays open: talking, listening, opening.
"""
