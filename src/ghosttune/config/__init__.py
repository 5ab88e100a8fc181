"""Settings: what they are (schema), where they come from (loading), what follows from them (resolve).

In reading order: setting, sections, schema; from a file: notation, layers, reading, loading, wording, templating;
what follows: facts, resolve, streams; judged: findings, checking, advising, trusting; written: rendering; several
runs: sweeps.
"""
