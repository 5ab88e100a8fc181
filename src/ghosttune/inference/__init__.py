"""Generation and chat from a run directory or a model.

In reading order: pipeline, padding, decoding, sampling, sharing, generating, likelihood, chatting, streaming,
constraining, calling; the server: protocol, answers, logprobs, embedding, embeddings, queueing, batching, scheduling,
told, bases, sight, voices, reasons, serving, access, connections, measuring, openapi, page.
"""
