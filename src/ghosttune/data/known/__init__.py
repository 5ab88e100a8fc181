"""Known datasets, one file each."""
