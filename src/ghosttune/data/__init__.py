"""Rows: where they come from, how a template renders them, and how they become batches.

In reading order: records, turns, columns, messages, content; from where: files, fetching, hub, sources, dataset,
patching, mixing, stored, streaming; to whom: splitting, selecting, retaining, contamination; as tokens: templates,
chat_templates, omissions, encoding, token_texts, packing, blocks; of other tasks: labelled, labelling, tagging,
spans, rewriting, preferences, pairing, showing, images; asked again: questions, inspecting, sql.
"""
