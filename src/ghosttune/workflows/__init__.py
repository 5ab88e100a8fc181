"""One file per command: what the command line and Python both call.

In reading order: train, quickstart, check, preview, infer, report, merge, export, forget, forget_text, sweep,
validate, validation_text, show, explaining, fixing, doctor.
"""
