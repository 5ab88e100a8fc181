"""Tasks, one file each: how rows become features, and what the loss of a row is."""
