"""What other programs read: a tuned model, its adapter and its template in the forms that they know.

In reading order: asking, vocabulary, families, lora, gguf_files, converting, folders, hub.
"""
