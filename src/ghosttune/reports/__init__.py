"""What a run directory shows: figures, their numbers, and the page that holds them. Reads files; imports no torch."""
