"""What a run knows of its rows: gradients kept, and rows attributed, compared, grouped and selected by them.

In reading order: opened, index, attribute, tokens, reasons, neighbours, clustering, select.
"""
