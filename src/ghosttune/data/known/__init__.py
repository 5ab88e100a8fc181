"""Known datasets, one file each.

In reading order: text, alpaca, dolly, e2e, samsum, wikisql, squad, cola, sst2, imdb, multi_nli, image_text.
"""
