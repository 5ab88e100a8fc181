"""What a run does, stage by stage, from its configuration to what is written at its end.

In reading order: prepare, model, instruments, ready, start, finish, runs; where a run asks for it: ordering,
rewarding, unlearning, launching; before a run: timing, trying; after it: exporting.
"""
