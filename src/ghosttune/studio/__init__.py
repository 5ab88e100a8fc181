"""The studio: runs watched, asked about, mended and trained again in a browser of this machine. Extra `studio`.

In reading order: app, gate, folder; what it shows: runs, live, rows, measured, talk; what it does: editing,
processes, patches, loop.
"""
