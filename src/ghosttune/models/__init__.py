"""Models: loading, adapters, and which module is what.

In reading order: loading, builtin, weights, quantizing, attending, sizing, modules, direct, starting, prompting,
adapter_files, reference, rotations, merging, upstream.
"""
